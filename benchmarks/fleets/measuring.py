"""What a fleet of this machine costs and does: the numbers that the simulation is fed with and held against."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT
from benchmarks.servers.local_server import Client
from perfusion.embedded import bundle_path
from perfusion.runtime import Runtime
from perfusion.serving.picture_encoding import as_file

__all__ = ["SAMPLES", "asked_by_clients", "costs_alone", "costs_together", "seconds_around", "shop_of"]

SAMPLES = ("gold-hat", "pink-cake", "school-bus")
_SHORT, _LONG = 4, 12  # steps, whose difference is that of calls alone


def shop_of(folder: Path, concepts: int) -> list[str]:
    """A library of so many concepts, copies of the samples under names of their own; the names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"c{number}" for number in range(concepts)]
    for number, name in enumerate(names):
        sample = bundle_path() / "concepts" / f"{SAMPLES[number % len(SAMPLES)]}.safetensors"
        shutil.copy(sample, folder / f"{name}.safetensors")
    return names


def costs_alone(batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of one process with one thread, as `Costs` has them; each the median of some rounds.

    The calls' is what further steps take. What a picture takes besides is split at its decoding.
    """
    logging.getLogger("perfusion").setLevel(logging.ERROR)  # numbers are no words of the embedded model
    with Runtime(provider="cpu", threads=1, batch_size=batch) as runtime:
        tokens = [f"<thing-{number}>" for number in range(batch)]
        for number, token in enumerate(tokens):
            runtime.load_concept(SAMPLES[number % len(SAMPLES)], token=token)
        count = iter(range(1_000_000))

        def draw(pictures: int, steps: int) -> float:
            prompts = [f"a photo of a {token} number {next(count)} on a beach" for token in tokens[:pictures]]
            seeds = list(range(pictures))
            return _seconds(lambda: runtime.generate(prompts, seed=seeds, num_inference_steps=steps))

        draw(batch, 1)
        sizes = range(1, batch + 1)
        spans = {size: [(draw(size, _SHORT), draw(size, _LONG)) for _ in range(rounds)] for size in sizes}
        calls = [
            statistics.median((long - short) / (_LONG - _SHORT) for short, long in spans[size])
            for size in sizes
        ]
        besides = statistics.median(
            (short - _SHORT * calls[size - 1]) / size for size in sizes for short, _ in spans[size]
        )
        step = list(runtime.denoise("a <thing-0>", num_inference_steps=1))[-1]
        end = statistics.median(_seconds(lambda: as_file(step.pictures()[0])) for _ in range(3 * rounds))
        read = statistics.median(_reading(runtime) for _ in range(20 * rounds))
    return {"calls": calls, "begin": max(0.0, besides - end), "end": end, "read": read}


def _reading(runtime: Runtime) -> float:
    path = bundle_path() / "concepts" / f"{SAMPLES[0]}.safetensors"
    seconds = _seconds(lambda: runtime.load_concept(path, token="<another>"))
    runtime.unload_concept("<another>")
    return seconds


def costs_together(processes: int, batch: int, rounds: int) -> dict[str, Any]:
    """`costs_alone` of so many processes at the same time, their mean: they share the memory's paths."""
    module = "benchmarks.fleets.measuring"
    code = f"import json, {module} as measuring; print(json.dumps(measuring.costs_alone({batch}, {rounds})))"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(processes)
    ]
    costs = [json.loads(process.communicate()[0]) for process in running]
    mean = {name: statistics.mean(each[name] for each in costs) for name in ("begin", "end", "read")}
    calls = [statistics.mean(column) for column in zip(*(each["calls"] for each in costs), strict=True)]
    return {"calls": calls, **mean}


def seconds_around(port: int, word: str, alone: float, steps: int, rounds: int) -> float:
    """What a request takes more than its picture, drawn `alone`, does within the replica."""
    ask = _client(port)
    ask(word, 0, steps)
    return max(0.0, statistics.median(_seconds(lambda: ask(word, 1, steps)) for _ in range(rounds)) - alone)


def asked_by_clients(port: int, words: list[str], clients: int, pictures: int, steps: int) -> dict[str, Any]:
    """What clients see of which each asks for its next picture when it has the last; the words in turn."""
    spans: list[tuple[float, float]] = []
    numbers = iter(range(pictures))
    lock = threading.Lock()

    def client() -> None:
        ask = _client(port)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            began = time.perf_counter()
            ask(words[number % len(words)], number, steps)
            spans.append((began, time.perf_counter()))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return summary(spans)


def summary(spans: list[tuple[float, float]]) -> dict[str, Any]:
    """Pictures a second, and seconds of a picture, without the first tenth."""
    ordered = sorted(spans, key=lambda span: span[1])
    first = len(ordered) // 10
    counted = ordered[first:]
    return {
        "pictures": len(counted),
        "pictures_a_second": round(len(counted) / (counted[-1][1] - ordered[max(0, first - 1)][1]), 3),
        "median_seconds": round(statistics.median(end - began for began, end in counted), 3),
    }


def _client(port: int) -> Callable[[str, int, int], None]:
    """Draws over one connection: a word, a seed, a number of steps."""
    client = Client(port)

    def draw(word: str, seed: int, steps: int) -> None:
        """Ask by OpenAI's route, and wait for the picture."""
        prompt = f"a photo of a {word} number {seed} on a beach"
        client.post("/v1/images/generations", {"prompt": prompt, "seed": seed, "num_inference_steps": steps})

    return draw


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
