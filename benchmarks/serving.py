"""python benchmarks/serving.py: what the server adds to a picture, and 16 clients with 16 concepts in shared calls.

The embedded model behind perfusion-serve's own application, over a socket of this machine. The overhead is the time of
a request less that of the same picture drawn alone and encoded, in turns, at few steps: it hardly depends on them. The
graphs' own time wavers by more than it, so the overhead without the time in graphs is told beside it; the bar is for
that. The clients draw with different numbers of steps, so that they come and go at different times; what the calls of
the UNet held is read from /metrics.

--bundle DIR draws with another bundle and random concepts instead, few steps at --size, for the ratio to one batch
alone. --short takes few pictures and writes no record.
"""

import argparse
import json
import re
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import peak_memory_mb, write_record
from benchmarks.servers.local_server import Client, server_of
from perfusion.runtime import Runtime
from perfusion.runtime.compute.onnx_graph import OnnxGraph
from perfusion.serving.picture_encoding import as_file

OVERHEAD_MS, SHARE_OF_BATCH, PICTURES, CONCEPTS, LONGEST_WAIT, PREVIEW_STEPS = 5.0, 0.9, 6.0, 6.0, 2.0, 3
OVERHEAD_STEPS = 4
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is drawn."""

    clients: int
    rounds: int
    steps: int
    bundle: Path | None = None
    size: int | None = None  # pixels; None: the bundle's own

    @property
    def options(self) -> dict[str, Any]:
        """For `Runtime.generate` and for requests."""
        return {} if self.size is None else {"width": self.size, "height": self.size}

    def steps_of(self, client: int) -> int:
        """A client's own number of steps; the mean over all is `steps`."""
        spread = max(1, self.steps // 10)
        return self.steps + (-2, -1, 1, 2)[client % 4] * spread if self.steps > 2 * spread else self.steps


def main() -> int:
    """Measure, print and record."""
    args = _options()
    load = Load(
        clients=8 if args.bundle else 16, rounds=1 if args.short else 2 if args.bundle else 6,
        steps=args.steps or (2 if args.short else 3 if args.bundle else 20), bundle=args.bundle,
        size=args.size if args.bundle else None,
    )  # fmt: skip
    row: dict[str, Any] = {
        "model": args.name if args.bundle else "pocket", "clients": load.clients, "batch": BATCH, "steps": load.steps,
        "rounds": load.rounds, "size": load.size,
    }  # fmt: skip
    if not args.bundle:
        row |= _overhead(load.bundle, 2 if args.short else 60) | _first_preview(load, 2 if args.short else 6)
    row |= _throughput(load) | {"peak_memory_mb": peak_memory_mb()}
    print(json.dumps(row, indent=1))
    missed = _missed(row)
    print(*missed, sep="\n", file=sys.stderr)
    if not args.short:
        print(write_record(f"serving-{args.name}" if args.bundle else "serving", [row | {"missed": missed}]))
    return int(bool(missed) and not args.short)


def _options() -> argparse.Namespace:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--short", action="store_true", help="one round of two steps, and no record")
    command.add_argument("--bundle", type=Path, metavar="DIR", help="another bundle, with random concepts")
    command.add_argument("--name", default="sd15", help="what the record calls it (default: %(default)s)")
    command.add_argument("--size", type=int, default=256, help="of its pictures (default: %(default)s)")
    command.add_argument("--steps", type=int, help="(default: 20, with --bundle 3)")
    return command.parse_args()


def _missed(row: dict[str, Any]) -> list[str]:
    """The bars of the issue that a row does not reach."""
    bars = {
        "share_of_batch": row["share_of_batch"] >= SHARE_OF_BATCH,
        "pictures_a_second": row["pictures_a_second"] >= row["at_batch_size_1"],
        "longest_over_mean_wait": row["longest_over_mean_wait"] <= LONGEST_WAIT,
        "mean_pictures_a_call": row["mean_pictures_a_call"] >= PICTURES,
        "mean_concepts_a_call": row["mean_concepts_a_call"] >= CONCEPTS,
        "overhead_outside_graphs_ms": row.get("overhead_outside_graphs_ms", 0) <= OVERHEAD_MS,
        "first_preview_step": row.get("first_preview_step", 0) <= PREVIEW_STEPS,
    }
    return [f"missed: {name} is {row[name]}" for name, is_reached in bars.items() if not is_reached]


def _overhead(bundle: Path | None, pairs: int) -> dict[str, float]:
    """Milliseconds that a request takes more than its picture alone, whole and without graphs; medians of pairs."""
    with server_of(bundle, 1, 1) as (port, runtime), Client(port) as client:

        def alone() -> None:
            prompt = "a photo of a <thing-0> on a beach"
            as_file(runtime.generate(prompt, seed=3, num_inference_steps=OVERHEAD_STEPS))

        def served() -> None:
            client.draw(0, 3, num_inference_steps=OVERHEAD_STEPS)

        for warm in (alone, served):
            warm()
        with _timed_graphs() as in_graphs:
            pairs_of_times = [(_times(served, in_graphs), _times(alone, in_graphs)) for _ in range(pairs)]

    def more(name: str) -> float:
        return round(statistics.median(served[name] - alone[name] for served, alone in pairs_of_times), 2)

    alone_ms = round(statistics.median(alone["whole_ms"] for _, alone in pairs_of_times), 1)
    return {
        "overhead_ms": more("whole_ms"), "overhead_outside_graphs_ms": more("outside_graphs_ms"), "alone_ms": alone_ms,
    }  # fmt: skip


@contextmanager
def _timed_graphs() -> Iterator[list[float]]:
    """A list that gets the seconds of each run of a graph."""
    seconds: list[float] = []
    run = OnnxGraph.run

    def timed(graph: OnnxGraph, **feeds: Any) -> Any:
        start = time.perf_counter()
        try:
            return run(graph, **feeds)
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(OnnxGraph, "run", timed):
        yield seconds


def _times(work: Callable[[], object], in_graphs: list[float]) -> dict[str, float]:
    """Milliseconds that some work takes, with and without those in graphs."""
    in_graphs.clear()
    whole = _seconds(work)
    return {"whole_ms": 1000 * whole, "outside_graphs_ms": 1000 * (whole - sum(in_graphs))}


def _first_preview(load: Load, jobs: int) -> dict[str, Any]:
    """The largest number of steps that a job had taken when its first preview came, while others draw."""
    with server_of(load.bundle, load.clients, BATCH) as (port, _):
        crowd = [_Crowd(port, number, 10**6, load) for number in range(1, BATCH)]
        try:
            with Client(port) as client:
                steps = [client.first_preview(0, seed, num_inference_steps=20) for seed in range(jobs)]
        finally:
            for each in crowd:
                each.stop()
    return {"first_preview_step": max(steps)}


def _throughput(load: Load) -> dict[str, Any]:
    """Pictures a second of all clients, beside 8 equal pictures in one call, and beside the same clients at batch 1."""
    with server_of(load.bundle, load.clients, BATCH) as (port, runtime), Client(port) as client:
        client.draw(0, 0, num_inference_steps=1, **load.options)
        # before and after, so that a machine that slows down counts for both
        batch = _batches(runtime, load)
        before = _calls(client)
        served, waits = _served(port, load)
        calls = _calls(client) - before
        batch += _batches(runtime, load)
    with server_of(load.bundle, load.clients, 1) as (port, _), Client(port) as client:
        client.draw(0, 0, num_inference_steps=1, **load.options)
        single, _ = _served(port, load, rounds=max(1, load.rounds // 2))
    together = BATCH / statistics.median(batch)
    return {
        "pictures_a_second": round(served, 3),
        "of_one_batch": round(together, 3),
        "at_batch_size_1": round(single, 3),
        "share_of_batch": round(served / together, 3),
        **{f"mean_{name}_a_call": round(mean, 2) for name, mean in _means(calls).items()},
        "longest_over_mean_wait": round(max(waits) / statistics.mean(waits), 2),
    }


def _served(port: int, load: Load, rounds: int | None = None) -> tuple[float, list[float]]:
    """Pictures a second of all clients together, and how long each picture was waited for."""
    rounds = rounds or load.rounds
    began = time.perf_counter()
    crowd = [_Crowd(port, number, rounds, load) for number in range(load.clients)]
    for each in crowd:
        each.join()
    seconds = time.perf_counter() - began
    return load.clients * rounds / seconds, [wait for each in crowd for wait in each.waits]


class _Crowd(threading.Thread):
    """One client of a crowd, who draws picture after picture."""

    def __init__(self, port: int, number: int, rounds: int, load: Load) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._port, self._number, self._rounds, self._load = port, number, rounds, load
        self._ends = threading.Event()
        self.start()

    def run(self) -> None:
        """Draw until the rounds are over."""
        steps = self._load.steps_of(self._number)
        with Client(self._port) as client:
            for seed in range(self._rounds):
                if self._ends.is_set():
                    return
                draw = lambda seed=seed: client.draw(  # noqa: E731
                    self._number, seed, num_inference_steps=steps, **self._load.options
                )
                self.waits.append(_seconds(draw))

    def stop(self) -> None:
        """End after the picture that is drawn."""
        self._ends.set()
        self.join()


def _calls(client: Client) -> Counter[tuple[int, int, int]]:
    """How many calls of the UNet there were, by their pictures, concepts and steps."""
    pattern = r'perfusion_unet_calls_total\{concepts="(\d+)",pictures="(\d+)",steps="(\d+)"\} ([\d.e+]+)'
    return Counter({
        (int(pictures), int(concepts), int(steps)): int(float(count))
        for concepts, pictures, steps, count in re.findall(pattern, client.text("/metrics"))
    })  # fmt: skip


def _means(calls: Counter[tuple[int, int, int]]) -> dict[str, float]:
    total = sum(calls.values())
    sums = [sum(call[place] * count for call, count in calls.items()) for place in range(3)]
    return {name: value / total for name, value in zip(("pictures", "concepts", "steps"), sums, strict=True)}


def _batches(runtime: Runtime, load: Load) -> list[float]:
    """Seconds of each of some calls for eight equal pictures."""
    return [_seconds(lambda: _draw(runtime, load)) for _ in range(max(1, load.rounds // 2))]


def _draw(runtime: Runtime, load: Load) -> None:
    """Eight equal pictures in one call."""
    prompts = ["a photo of a <thing-0> on a beach"] * BATCH
    runtime.generate(prompts, seed=list(range(BATCH)), num_inference_steps=load.steps, **load.options)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
