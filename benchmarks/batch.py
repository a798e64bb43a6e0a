"""python benchmarks/batch.py: a batch of 8 pictures with 8 different concepts, beside the same batch with one.

The embedded model and concepts of random numbers: what they hold does not change the time. Both batches run in turns,
in one call of the UNet a step, on the same cores; the ratio is of each pair. --short takes two pairs.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import peak_memory_mb, write_record
from perfusion.runtime import Runtime

BATCH, STEPS, PAIRS = 8, 10, 9
TARGET = 1.05
SAMPLES = ("gold-hat", "pink-cake", "school-bus")


def main() -> int:
    """Measure, print and record."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--short", action="store_true", help="two pairs of two steps, and no record")
    args = given.parse_args()
    pairs, steps = (2, 2) if args.short else (PAIRS, STEPS)
    with Runtime(batch_size=BATCH) as runtime:
        tokens = [f"<thing-{index}>" for index in range(BATCH)]
        for index, token in enumerate(tokens):  # a concept under another token is another concept
            runtime.load_concept(SAMPLES[index % len(SAMPLES)], token=token, bias=0.4 + 0.02 * index)

        def seconds(chosen: list[str]) -> float:
            start = time.perf_counter()
            runtime.generate(
                [f"a photo of a {token} on a beach" for token in chosen],
                seed=list(range(BATCH)),
                num_inference_steps=steps,
            )
            return time.perf_counter() - start

        different, same = tokens, tokens[:1] * BATCH
        seconds(different), seconds(same)  # the first of each pays for what is set up once
        times = [(seconds(different), seconds(same)) for _ in range(pairs)]
    row: dict[str, Any] = {
        "model": "pocket", "batch": BATCH, "steps": steps, "pairs": pairs,
        "different_seconds": round(statistics.median(one for one, _ in times), 4),
        "same_seconds": round(statistics.median(other for _, other in times), 4),
        "different_over_same": round(statistics.median(one / other for one, other in times), 3),
        "target": TARGET,
        "peak_memory_mb": peak_memory_mb(),
    }  # fmt: skip
    print(row)
    if args.short:
        return 0
    print(write_record("batch", [row]))
    if row["different_over_same"] > TARGET:
        print(f"slower than {TARGET} times", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
