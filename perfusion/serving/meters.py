"""Counters of a server, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from perfusion.runtime import Runtime
from perfusion.serving.request_log import RequestRecord

__all__ = ["Meters"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_DIALECTS = {"v1": "openai", "sdapi": "webui", "api": "own"}


class Meters:
    """What is counted, each server for itself."""

    def __init__(self, runtime: Runtime) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_QueueCollector(runtime))
        self._requests = Counter(
            "perfusion_requests", "Requests over HTTP", ("dialect", "status"), registry=self._registry
        )
        self._answers = Histogram(
            "perfusion_request_seconds", "From a request to the end of its answer", ("dialect",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._pictures = Counter(
            "perfusion_pictures",
            "Pictures ordered, by how they ended",
            ("dialect", "state"),
            registry=self._registry,
        )
        self._waits = Histogram(
            "perfusion_wait_seconds", "From an order to the first step of a picture", buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip

    def request(self, record: RequestRecord) -> None:
        """Count a request that is over."""
        dialect = _DIALECTS.get(record.path.split("/", 2)[1], "none")
        self._requests.labels(dialect, str(record.status)).inc()
        self._answers.labels(dialect).observe(record.seconds)

    def picture(self, dialect: str, state: str) -> None:
        """Count a picture that is over."""
        self._pictures.labels(dialect, state).inc()

    def wait(self, seconds: float) -> None:
        """Note how long a picture has waited for its turn."""
        self._waits.observe(seconds)

    def text(self) -> bytes:
        """All, in Prometheus' text format."""
        return generate_latest(self._registry)


class _QueueCollector(Collector):
    """The drawing queue's own counters, read when they are asked for."""

    def __init__(self, runtime: Runtime) -> None:
        self._queue = runtime.queue

    def collect(self) -> Iterable[Metric]:
        for name, value in (("waiting", self._queue.waiting), ("drawing", self._queue.drawing)):
            yield GaugeMetricFamily(f"perfusion_queue_{name}", f"Pictures {name}", value=value)
        labels = ("pictures", "concepts", "steps")
        calls = CounterMetricFamily(
            "perfusion_unet_calls", "Calls of the UNet, by their pictures, concepts and steps", labels=labels
        )
        for call, number in self._queue.calls.items():
            calls.add_metric([str(getattr(call, label)) for label in labels], number)
        yield calls
