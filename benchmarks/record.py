"""What was measured, on which machine, at which commit: one JSON file for each benchmark and machine."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from perfusion.files import writing

__all__ = ["peak_memory_mb", "write_record"]

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "ray",
    "safetensors",
    "tokenizers",
    "torch",
)


def write_record(name: str, rows: Sequence[Mapping[str, Any]], kind: str = "") -> Path:
    """Write `rows` to benchmarks/records/NAME-MACHINE.json; an older record of the same machine is replaced.

    `kind` tells machines apart that call themselves the same.
    """
    machine = _machine()
    slug = re.sub("[^a-z0-9]+", "-", machine["processor"].lower()).strip("-")
    path = RECORDS / f"{'-'.join(filter(None, (name, slug, str(machine['cores']), kind)))}.json"
    record = {
        "benchmark": name,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine,
        "versions": _versions(),
        "peak_memory_mb": peak_memory_mb(),
        "rows": list(rows),
    }
    with writing(path, "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
    return path


def peak_memory_mb() -> int | None:
    """The most memory this process or one it started has held so far, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(max(peaks) * unit / 1e6)


def _commit() -> str:
    """The commit, with a plus sign when files differ from it, or "unknown" outside a checkout."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": _cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """The processor's name as Linux tells it (a board's own name on ARM), or what Python knows."""
    for path, pattern in (("/proc/device-tree/model", "(.+)"), ("/proc/cpuinfo", r"model name\s*: (.+)")):
        try:
            match = re.search(pattern, Path(path).read_text(errors="replace").rstrip("\0\n"))
        except OSError:
            continue
        if match:
            return " ".join(match.group(1).split())
    return platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
