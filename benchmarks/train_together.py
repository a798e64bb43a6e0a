"""python benchmarks/train_together.py: what several concepts in one training step could gain at most.

A step whose batch holds rows of several concepts, each with its own edit, does at least the work of a step of one
concept with as many rows. So k concepts of b rows in one step gain at most k·t(b) / t(k·b), t being the seconds of
one concept's step. That is measured, without the work that rows of different concepts would add.

Models: `pocket`, the embedded one; `sd15-quarter`, Stable Diffusion 1.5 with every width divided by four, at 256 px;
and `sd15`, its true size with random weights, at 256 px and on few steps. --short takes the first and writes no record.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

import torch

from benchmarks.record import write_record
from benchmarks.train_speed import Case, train_ours

TARGET = 1.15
"""A gain below this does not pay for a second way to train."""

CASES = (
    (Case(model="pocket", batch_size=16, rounds=8), (1, 2, 4)),
    (Case(model="sd15-quarter", batch_size=4, rounds=4, divisor=4, resolution=256), (1, 2)),
    (Case(model="sd15", batch_size=1, rounds=3, divisor=1, resolution=256), (1, 2)),
)


def main() -> int:
    """Measure, print and record."""
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--short", action="store_true", help="the embedded model alone, and no record")
    args = command.parse_args()
    rows = [row for case, concepts in CASES[: 1 if args.short else None] for row in _rows(case, concepts)]
    print(json.dumps(rows, indent=1))
    if not args.short:
        print(write_record("train-together", rows))
    return 0


def _rows(case: Case, concepts: tuple[int, ...]) -> list[dict[str, Any]]:
    seconds = {count: _step_seconds(replace(case, batch_size=count * case.batch_size)) for count in concepts}
    return [
        {
            "model": case.model, "resolution": case.resolution or 128, "rows_of_a_concept": case.batch_size,
            "concepts": count, "threads": torch.get_num_threads(), "steps": case.rounds - 1,
            "seconds": round(seconds[count], 4), "gain_at_most": round(count * seconds[1] / seconds[count], 3),
            "target": TARGET,
        }
        for count in concepts
    ]  # fmt: skip


def _step_seconds(case: Case) -> float:
    """Of a step, the median without the first."""
    ends: list[float] = []
    train_ours(case.build(), case, case.rounds, lambda: ends.append(time.perf_counter()))
    return statistics.median(later - earlier for earlier, later in pairwise(ends))


if __name__ == "__main__":
    raise SystemExit(main())
