"""python benchmarks/startup.py: how long a user waits before anything happens, in fresh processes.

Importing the runtime, `--help`, and the first picture with the embedded model, with the peak memory of the last.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import ROOT, write_record

RUNS = 7
FIRST_PICTURE = """
from perfusion.runtime import Runtime
Runtime().generate("a photo of a bus on a beach", seed=0)
try:
    import resource
except ImportError:  # Windows, which keeps this number elsewhere
    print(0)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
CASES: dict[str, tuple[list[str], float | None]] = {
    "python itself": (["-c", "pass"], None),
    "import perfusion.runtime": (["-c", "import perfusion.runtime"], 0.6),
    "perfusion-generate --help": (["-m", "perfusion.commands.generate", "--help"], 0.3),
    "first picture, 20 steps": (["-c", FIRST_PICTURE], 1.5),
}


def measure(arguments: list[str]) -> tuple[list[float], str]:
    """Wall seconds of some runs after one that warms the disk's cache, and what the last one printed."""
    seconds, output = [], ""
    for run in range(RUNS + 1):
        start = time.perf_counter()
        process = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        if run:
            seconds.append(time.perf_counter() - start)
        output = process.stdout
    return seconds, output


def main() -> int:
    """Start every case several times, print, record."""
    rows: list[dict[str, Any]] = []
    for name, (arguments, target) in CASES.items():
        seconds, output = measure(arguments)
        row: dict[str, Any] = {
            "what": name,
            "seconds_median": round(statistics.median(seconds), 3),
            "runs": RUNS,
        }
        if target is not None:
            row["target_seconds"] = target
        if arguments[-1] is FIRST_PICTURE and int(output):
            row["peak_memory_mb"] = round(int(output) / 1024)
        rows.append(row)
        print(row)
    print(write_record("startup", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
