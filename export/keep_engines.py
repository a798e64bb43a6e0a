"""The engines of the bundle that an export replaces: those of graphs that come out the same go on.

An engine belongs to a graph by its checksum (perfusion.tensorrt.engine_store), and takes up to half an hour to build.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from perfusion.bundle.facts import graph_facts
from perfusion.bundle.reader import read_bundle
from perfusion.tensorrt.engine_store import ENGINES, find_engines

__all__ = ["keep_engines"]

_ENDINGS = (".engine", ".json", ".jit")
"""What belongs to an engine; the last is what TensorRT for RTX compiled from it on the card."""


def keep_engines(old: Path, new: Path) -> list[Path]:
    """Put into the bundle ``new`` the engines of ``old`` that were built from the very graphs that ``new`` has.

    With them go the timings that builders have taken, which are of the GPU and of no graph. ``old`` keeps what it has.
    Returns the engines that were kept, relative to the bundle. Raises `OSError` where ``new`` cannot be written.
    """
    if not (old / ENGINES).is_dir():
        return []
    files = list((old / ENGINES).glob("*/timing-*.cache"))
    bundle = read_bundle(new, verify=False)
    kept = []
    for name, graph in graph_facts(bundle).items():
        key = {"graph_sha256": graph.sha256, "precision": bundle.precision}
        engines = [engine.file for engine in find_engines(old, name, key)[0] if engine.file.is_file()]
        files += [file.with_suffix(ending) for file in engines for ending in _ENDINGS]
        kept += [file.relative_to(old) for file in engines]
    for file in files:
        if file.is_file():
            _share(file, new / file.relative_to(old))
    return kept


def _share(file: Path, place: Path) -> None:
    """The same file in two places; a copy where the file system has no such thing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place)
    except OSError:  # exFAT on a board's card, for one
        shutil.copyfile(file, place)
