"""python benchmarks/serving.py: what the server adds to a picture, and 16 clients with 16 concepts in shared calls.

The embedded model behind perfusion-serve's own application, over a socket of this machine. The overhead is the time of
a request less that of the same picture drawn alone and encoded, in turns. --short takes few pictures and writes no
record.
"""

import argparse
import http.client
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

import uvicorn

from benchmarks.record import peak_memory_mb, write_record
from perfusion.runtime import Runtime
from perfusion.serving.access import Access
from perfusion.serving.application import ServerParts, Service
from perfusion.serving.history import History
from perfusion.serving.library import Library
from perfusion.serving.picture_encoding import as_file

CLIENTS, BATCH, STEPS, ROUNDS = 16, 8, 20, 6
OVERHEAD_MS, SHARE_OF_BATCH = 5.0, 0.9
SAMPLES = ("gold-hat", "pink-cake", "school-bus")


def main() -> int:
    """Measure, print and record."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--short", action="store_true", help="one round of two steps, and no record")
    args = command.parse_args()
    rounds, steps = (1, 2) if args.short else (ROUNDS, STEPS)
    row: dict[str, Any] = {
        "model": "pocket", "clients": CLIENTS, "batch": BATCH, "steps": steps, "rounds": rounds,
        **_overhead(rounds * 3, steps), **_throughput(rounds, steps), "peak_memory_mb": peak_memory_mb(),
        "overhead_target_ms": OVERHEAD_MS, "share_of_batch_target": SHARE_OF_BATCH,
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    if args.short:
        return 0
    print(write_record("serving", [row]))
    missed = row["overhead_ms"] > OVERHEAD_MS or row["share_of_batch"] < SHARE_OF_BATCH
    if missed:
        print("a target was missed", file=sys.stderr)
    return int(missed)


def _overhead(pairs: int, steps: int) -> dict[str, float]:
    """Milliseconds that a request takes more than its picture alone, median over pairs in turns."""
    with _server(1) as (port, runtime):
        draw = _client(port)

        def alone() -> None:
            as_file(runtime.generate("a photo of a <thing-0> on a beach", seed=3, num_inference_steps=steps))

        def served() -> None:
            draw(0, 3, steps)

        for warm in (alone, served):
            warm()
        differences = [_seconds(served) - _seconds(alone) for _ in range(pairs)]
    return {"overhead_ms": round(statistics.median(differences) * 1000, 2)}


def _throughput(rounds: int, steps: int) -> dict[str, Any]:
    """Pictures a second of 16 clients with 16 concepts, beside 8 equal pictures in one call and one in each."""
    with _server(BATCH) as (port, runtime):
        waits = list[float]()
        began = time.perf_counter()
        threads = [
            threading.Thread(target=_ask, args=(port, number, rounds, steps, waits))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        served = CLIENTS * rounds / (time.perf_counter() - began)
        calls = runtime.queue.calls
        prompt = ["a photo of a <thing-0> on a beach"] * BATCH
        batch = [_seconds(lambda: _draw(runtime, prompt, steps)) for _ in range(rounds)]
    with _server(1) as (port, runtime):
        single = [_seconds(lambda: _draw(runtime, prompt[:1], steps)) for _ in range(rounds * 2)]
    total = sum(calls.values())
    together = BATCH / statistics.median(batch)
    return {
        "pictures_a_second": round(served, 3),
        "of_one_batch": round(together, 3),
        "one_by_one": round(1 / statistics.median(single), 3),
        "share_of_batch": round(served / together, 3),
        "mean_pictures_a_call": round(sum(call.pictures * count for call, count in calls.items()) / total, 2),
        "mean_concepts_a_call": round(sum(call.concepts * count for call, count in calls.items()) / total, 2),
        "mean_steps_a_call": round(sum(call.steps * count for call, count in calls.items()) / total, 2),
        "longest_over_mean_wait": round(max(waits) / statistics.mean(waits), 2),
    }


@contextmanager
def _server(batch_size: int) -> Iterator[tuple[int, Runtime]]:
    """A server with 16 concepts; its port and its runtime."""
    runtime = Runtime(batch_size=batch_size)
    for number in range(CLIENTS):  # a concept under another token is another concept
        runtime.load_concept(SAMPLES[number % len(SAMPLES)], token=f"<thing-{number}>")
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        parts = ServerParts(
            runtime=runtime,
            library=Library(runtime, samples=False),
            history=History(Path(folder)),
            access=Access(),
        )
        service = Service(parts)
        config = uvicorn.Config(
            service.application, log_config=None, access_log=False, ws="none", timeout_keep_alive=600
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1], runtime
        finally:
            server.should_exit = True
            thread.join()
            service.close()


def _client(port: int) -> Callable[[int, int, int], None]:
    """Draws over one connection: a client's concept, a seed, a number of steps."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def draw(number: int, seed: int, steps: int) -> None:
        fields = {
            "prompt": f"a photo of a <thing-{number}> on a beach", "seed": seed, "num_inference_steps": steps,
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/images/generations", json.dumps(fields), headers)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body

    return draw


def _ask(port: int, number: int, rounds: int, steps: int, waits: list[float]) -> None:
    draw = _client(port)
    for seed in range(rounds):
        waits.append(_seconds(lambda seed=seed: draw(number, seed, steps)))  # type: ignore[misc]


def _draw(runtime: Runtime, prompts: list[str], steps: int) -> None:
    runtime.generate(prompts, seed=list(range(len(prompts))), num_inference_steps=steps)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
