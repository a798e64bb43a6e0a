"""Where the thing is in photos, found before it is learned: a process of perfusion-train that trains nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.serving.answers import StatusError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MaskSearch", "PhotoMask"]

_PATIENCE = 600.0  # seconds for a large model to be opened and asked
_LOOK_SECONDS = 0.2  # between two looks at whether anybody still waits


@dataclass(frozen=True, kw_only=True)
class PhotoMask:
    """The mask of a photo: a PNG of its size, white where the thing is."""

    data: bytes
    cover: float
    """The share of the photo that it covers; 1 where nothing was found, and all of the photo counts."""


class MaskSearch:
    """Finds masks, for one client after another, since each search opens the model."""

    def __init__(self, model: Path | None = None) -> None:
        """`model`: the base model's folder; None: the embedded model."""
        self._model = model
        self._turn = threading.Lock()
        self._closed = threading.Event()

    def find(self, photos: Sequence[Image], superclass: str, given_up: threading.Event) -> list[PhotoMask]:
        """The masks of some photos, in order.

        Args:
            given_up: set when nobody waits any longer; the search is then ended.

        Raises:
            StatusError: they cannot be found, and why; or the search was ended.
        """
        while not self._turn.acquire(timeout=_LOOK_SECONDS):
            self._check(given_up)
        try:
            with tempfile.TemporaryDirectory(prefix="perfusion-masks-") as folder:
                return self._found_in(Path(folder), photos, superclass, given_up)
        finally:
            self._turn.release()

    def close(self) -> None:
        """End what is under way."""
        self._closed.set()

    def _check(self, given_up: threading.Event) -> None:
        if given_up.is_set() or self._closed.is_set():
            raise StatusError(503, "The search for masks was ended. Ask again.")

    def _found_in(
        self, folder: Path, photos: Sequence[Image], superclass: str, given_up: threading.Event
    ) -> list[PhotoMask]:
        sources, masks, report = folder / "photos", folder / "masks", folder / "report.json"
        sources.mkdir()
        for number, photo in enumerate(photos, start=1):
            photo.save(sources / f"{number:02}.png")
        self._run(self._command(sources, masks, superclass), report, given_up)
        covers: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["covers"]
        return [
            PhotoMask(data=(masks / name).read_bytes(), cover=float(covers[name]))
            for name in (f"{number:02}.png" for number in range(1, len(photos) + 1))
        ]

    def _command(self, sources: Path, masks: Path, superclass: str) -> list[str]:
        command = [sys.executable, "-m", "perfusion.commands.train", f"--images={sources}"]
        command += [f"--superclass={superclass}", f"--write-masks={masks}", "--json", "--quiet"]
        return command + ([f"--model={self._model}"] if self._model else [])

    def _run(self, command: list[str], report: Path, given_up: threading.Event) -> None:
        """Run a search to its end, or end it when nobody waits."""
        faults = report.with_suffix(".stderr")
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
        with report.open("wb") as answer, faults.open("wb") as complaints:
            process = subprocess.Popen(command, stdout=answer, stderr=complaints, env=environment)
            waited = 0.0
            try:
                while process.poll() is None:
                    self._check(given_up)
                    if waited > _PATIENCE:
                        raise StatusError(
                            504, f"No mask was found within {_PATIENCE:.0f} s. Teach without looking."
                        )
                    try:
                        process.wait(_LOOK_SECONDS)
                    except subprocess.TimeoutExpired:
                        waited += _LOOK_SECONDS
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if process.returncode:
            lines = faults.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = (
                lines[-1].removeprefix("perfusion-train: ")
                if lines
                else f"It ended with {process.returncode}."
            )
            raise StatusError(422, reason)
