"""Exported graphs kept between runs of a benchmark, under build/, while what they are made from stays the same."""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.record import ROOT
from perfusion.files import writing_folder

__all__ = ["EXPORTER", "kept"]

FOLDER = ROOT / "build" / "graphs"
EXPORTER = (*sorted((ROOT / "export").glob("*.py")), ROOT / "perfusion" / "base" / "attention.py")
PACKAGES = ("diffusers", "onnx-ir", "onnxscript", "torch", "transformers")
_COMPLETE = "bundle.json"  # what `writing_folder` replaces a folder by; empty here


def kept(name: str, make: Callable[[Path], None], made_from: Iterable[Path], folder: Path = FOLDER) -> Path:
    """The folder of `name`, filled by `make` only where it is not there or was made from other files or packages.

    What an older state of the files gave is removed.
    """
    path = folder / f"{name}-{_digest(made_from)}"
    if not (path / _COMPLETE).exists():
        with writing_folder(path) as new:
            make(new)
            (new / _COMPLETE).touch()
    for other in folder.glob(f"{name}-*"):
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    return path


def _digest(files: Iterable[Path]) -> str:
    """Of the files' bytes and of the packages that export, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    for package in PACKAGES:
        try:
            digest.update(f"{package} {version(package)}\n".encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()[:16]
