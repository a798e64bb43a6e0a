"""python benchmarks/train.py: how long the sample concept takes to train on the embedded model, start to file."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

import torch

from benchmarks.record import ROOT, write_record
from perfusion.training import TrainingConfig, train_concept

STEPS, TARGET_SECONDS = 300, 240


def main() -> int:
    """Train once, print, record."""
    pictures = ROOT / "examples" / "subjects" / "school-bus"
    config = TrainingConfig(
        superclass="bus", token="<school-bus>", masks=pictures / "masks", steps=STEPS, select="last"
    )
    times: list[float] = []
    start = time.perf_counter()
    concept = train_concept(pictures, config, report=lambda step, loss: times.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as folder:
        concept.save(Path(folder) / "concept.safetensors")
        size = (Path(folder) / "concept.safetensors").stat().st_size
    row: dict[str, Any] = {
        "model": "pocket", "steps": STEPS, "batch_size": config.batch_size, "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start, 1), "target_seconds": TARGET_SECONDS,
        "steps_per_second": round((len(times) - 1) / (times[-1] - times[0]), 2), "file_bytes": size,
    }  # fmt: skip
    print(row)
    print(write_record("train", [row]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
