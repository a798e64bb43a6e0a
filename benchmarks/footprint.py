"""python benchmarks/footprint.py: what the lean runtime takes on the disk and how soon it draws, freshly installed.

Makes an environment of its own below build/, installs this checkout with its extra `cpu` into it, weighs what was
installed and times fresh processes from their start to the first picture. --short times one.

Three parts are weighed apart: the runtime, which is the code with all libraries it needs; the embedded model with its
pictures; and the bytecode that pip makes of every file (pip install --no-compile leaves it out).
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import ROOT, write_record

FOLDER = ROOT / "build" / "footprint"
RUNS = 7
SIZE_TARGET_MB, START_TARGET_SECONDS = 200, 1.5
BROUGHT = {
    "pip",
    "setuptools",
    "wheel",
    "_distutils_hack",
    "distutils",
    "pkg_resources",
}  # by the environment itself
FIRST_PICTURE = """
import json, sys
from perfusion.runtime import Runtime
Runtime(provider="cpu").generate("a photo of a bus on a beach", seed=0)
forbidden = sorted({"torch", "diffusers", "transformers", "onnx"} & set(sys.modules))
try:
    import resource
except ImportError:  # Windows, which keeps this number elsewhere
    kilobytes = 0
else:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"kb": kilobytes, "forbidden": forbidden}))
"""


def install() -> Path:
    """A new environment with the package and what it needs to draw; its interpreter."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, with_pip=True)
    python = FOLDER / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *constraints, f"{ROOT}[cpu]"], check=True, cwd=FOLDER
    )
    return python


def sizes(python: Path) -> dict[str, dict[str, float]]:
    """Megabytes of each part, by top-level package, without what every environment has."""
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    weighed: dict[str, dict[str, float]] = {"runtime": {}, "model": {}, "bytecode": {}}
    for path in Path(found).rglob("*"):
        parts = path.relative_to(found).parts
        name = parts[0].split("-")[0].split(".")[0]
        if not path.is_file() or name in BROUGHT:
            continue
        part = "bytecode" if path.suffix == ".pyc" else "runtime"
        if parts[:2] == ("perfusion", "pocket") and path.suffix not in (".py", ".pyc"):
            part = "model"
        weighed[part][name] = weighed[part].get(name, 0.0) + path.stat().st_size / 1e6
    return weighed


def first_pictures(python: Path, runs: int) -> tuple[list[float], dict[str, Any]]:
    """Seconds from the start of fresh processes to their end, after one that warms the disk's cache."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        process = subprocess.run(
            [python, "-c", FIRST_PICTURE], cwd=FOLDER, capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - start)
    return seconds[1:], json.loads(process.stdout)


def main() -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one process, and no record")
    args = parser.parse_args()
    python = install()
    weighed = sizes(python)
    seconds, facts = first_pictures(python, 1 if args.short else RUNS)
    row: dict[str, Any] = {
        "runtime_mb": round(sum(weighed["runtime"].values()), 1),
        "runtime_target_mb": SIZE_TARGET_MB,
        "embedded_model_mb": round(sum(weighed["model"].values()), 1),
        "bytecode_mb": round(sum(weighed["bytecode"].values()), 1),
        "largest_mb": {
            name: round(size, 1)
            for name, size in sorted(weighed["runtime"].items(), key=lambda one: -one[1])
            if size >= 1
        },
        "first_picture_seconds": round(statistics.median(seconds), 3),
        "first_picture_target_seconds": START_TARGET_SECONDS,
        "runs": len(seconds),
        "peak_memory_mb": round(facts["kb"] * 1024 / 1e6),
        "imported_that_should_not_be": facts["forbidden"],
        "torch_installed": "torch" in weighed["runtime"],
    }
    print(json.dumps(row, indent=1))
    if not args.short:
        print(write_record("footprint", [row]))
    missed = (
        row["runtime_mb"] > SIZE_TARGET_MB or row["torch_installed"] or row["imported_that_should_not_be"]
    )
    if not args.short:
        missed = missed or row["first_picture_seconds"] > START_TARGET_SECONDS
    if missed:
        print("a target was missed", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
