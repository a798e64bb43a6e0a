"""What OpenVINO compiled, kept on the disk for the next start: whole and unchanged, or not at all.

A file holds one graph, compiled for one set of shapes: a header of JSON that says what decided it, then OpenVINO's own
bytes. OpenVINO looks at few of them before it trusts the rest, so their checksum is compared first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import PerfusionError
from perfusion.files import cache_folder, writing
from perfusion.locking import HeldError, NoLocksError, lock
from perfusion.runtime.compute.waits import waits

__all__ = ["CompiledModels", "Key"]

Key = Mapping[str, Any]
"""All that decides what a graph is compiled to, as JSON has it."""

_log = logging.getLogger(__name__)

_MOST_BYTES = 16 << 30  # of all files; the UNet of Stable Diffusion 1.5 takes 3.4 GB for each set of shapes
_HEADER = 4096  # bytes; a page, so that the rest can be mapped
_SUFFIX = ".compiled"
_POLL_SECONDS = 0.2
_DEAD_SECONDS = 3600.0  # what was written to last so long ago, nobody is writing any more


class CompiledModels:
    """A folder of compiled graphs by their keys; those not used the longest go first.

    What cannot be read or written is compiled again: nothing here raises.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = _MOST_BYTES) -> None:
        """`folder`: by default `openvino` in this program's cache folder."""
        self.folder = cache_folder() / "openvino" if folder is None else folder
        self._most = most_bytes

    def load(self, key: Key) -> NDArray[np.uint8] | None:
        """OpenVINO's bytes, mapped from the file; None where they are not there. A damaged file is removed."""
        path = self._path(key)
        try:
            problem, blob = _read(path, key)
            if not problem:
                os.utime(path)  # so that it counts as used
                return blob
        except FileNotFoundError:
            return None
        except (
            OSError,
            ValueError,
        ) as error:  # ValueError: a header that is no JSON, or a file too short to map
            problem = str(error)
        self.discard(key, problem)
        return None

    def discard(self, key: Key, problem: str) -> None:
        """Remove a file that cannot be used, and say so."""
        path = self._path(key)
        _log.warning("%s is not used and its graph is compiled again: %s", path, problem)
        with suppress(OSError):
            path.unlink()

    def has(self, key: Key) -> bool:
        """Whether there is a file of this key, whole or not."""
        return self._path(key).is_file()

    def room_for(self, size: int) -> bool:
        """Whether so many bytes are worth keeping: within the bound, with as many left free on the disk."""
        folder = next(parent for parent in (self.folder, *self.folder.absolute().parents) if parent.exists())
        try:
            return size <= self._most and 2 * size <= shutil.disk_usage(folder).free
        except OSError:
            return False

    def store(self, key: Key, blob: bytes) -> None:
        """Keep OpenVINO's bytes, and remove what then exceeds the bound."""
        facts = {"key": key, "sha256": hashlib.sha256(blob).hexdigest()}
        header = json.dumps(facts, sort_keys=True).encode().ljust(_HEADER)
        if len(header) > _HEADER or not self.room_for(len(blob)):
            _log.info("what was compiled is not kept: there is no room for its %d bytes", len(blob))
            return
        try:
            with writing(self._path(key)) as file:
                file.write(header)
                file.write(blob)
        except PerfusionError as error:
            _log.warning("what was compiled is not kept, so the next start compiles again: %s", error)
            return
        self._prune()

    @contextmanager
    def turn(self, key: Key) -> Iterator[None]:
        """Let one process at a time compile for a key: whoever comes meanwhile waits, and finds what it stored."""
        path, told = self._path(key).with_suffix(".lock"), False
        with ExitStack() as stack:
            while True:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(lock(path, strict=True))
                except HeldError as error:
                    if not told:
                        waits.info(
                            "waiting for process %s, which compiles the same graph", error.pid or "unknown"
                        )
                    told = True
                    time.sleep(_POLL_SECONDS)
                    continue
                except (NoLocksError, OSError):  # then each compiles for itself
                    pass
                break
            yield

    def _path(self, key: Key) -> Path:
        text = json.dumps(key, sort_keys=True, separators=(",", ":"))
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}{_SUFFIX}"

    def _prune(self) -> None:
        """Remove the files that were not used the longest until the bound holds, and what killed processes left."""
        with suppress(OSError):
            for path in self.folder.glob(".*.partial"):
                if path.stat().st_mtime < time.time() - _DEAD_SECONDS:
                    path.unlink()
            files = [(path.stat(), path) for path in self.folder.glob(f"*{_SUFFIX}")]
            size = sum(stat.st_size for stat, _ in files)
            for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
                if size <= self._most:
                    break
                path.unlink()
                size -= stat.st_size


def _read(path: Path, key: Key) -> tuple[str, NDArray[np.uint8]]:
    """What is wrong with a file ("" for nothing), and its bytes behind the header."""
    own = getattr(os, "geteuid", None)
    if own is not None and path.stat().st_uid != own():  # a cache folder may lie where everybody writes
        return "it belongs to another user", np.empty(0, np.uint8)
    with open(path, "rb") as file:
        facts = json.loads(file.read(_HEADER))
    blob = np.memmap(path, np.uint8, "r", offset=_HEADER)
    if not isinstance(facts, dict) or facts.get("key") != key:
        return "it is of something else", blob
    if facts.get("sha256") != hashlib.sha256(blob.data).hexdigest():
        return "its bytes are not those that were written", blob
    return "", blob
