"""Counters of a fleet: those of its replicas side by side, each with the replica's name, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["merged"]


def merged(texts: Mapping[str, str]) -> str:
    """One text of several, by the names of the replicas that they are of."""
    registry = CollectorRegistry()
    registry.register(_Replicas(texts))
    return generate_latest(registry).decode()


class _Replicas(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """Every counter once, each sample with the label of its replica."""
        families: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                whole = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": replica}
                    whole.add_sample(sample.name, labels, sample.value)
        return families.values()
