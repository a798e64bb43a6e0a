"""Pictures drawn with what a lesson has learned so far, by the server's own runtime while the training goes on.

perfusion-train keeps a snapshot every so many steps beside its output. Each is a concept, so it can be drawn at once.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from perfusion.concept.concept_file import Concept
from perfusion.errors import PerfusionError
from perfusion.files import writing
from perfusion.serving.portraits import Portraits

__all__ = ["LessonSamples"]

_log = logging.getLogger(__name__)
_SNAPSHOT = re.compile(r"step-(\d+)\.safetensors")
_FOLDER = "samples"


class LessonSamples:
    """The pictures of one lesson, a file a step."""

    def __init__(self, portraits: Portraits, work: Path, place: Path) -> None:
        """`work`: where the training keeps its snapshots. `place`: the lesson's folder."""
        self._portraits, self._work, self._folder = portraits, work, place / _FOLDER
        self._tried = set(self.steps)

    @property
    def steps(self) -> list[int]:
        """The steps of which there is a picture, in order."""
        return sorted(int(path.stem) for path in self._folder.glob("*.png") if path.stem.isdigit())

    def path(self, step: int) -> Path:
        """Where the picture of a step is."""
        return self._folder / f"{step}.png"

    def look(self) -> None:
        """Draw with the snapshots that have come since."""
        if not self._work.is_dir():
            return
        names = [(path, _SNAPSHOT.fullmatch(path.name)) for path in self._work.iterdir()]
        for step, path in sorted((int(match[1]), path) for path, match in names if match):
            if step not in self._tried:
                self._tried.add(step)
                self._draw(step, path)

    def _draw(self, step: int, snapshot: Path) -> None:
        try:
            picture = self._portraits.of_stranger(Concept.load(snapshot))
            self._folder.mkdir(exist_ok=True)
            with writing(self.path(step)) as file:
                picture.save(file, "PNG")
        except (PerfusionError, OSError) as error:  # the training goes on without
            _log.warning("no picture was drawn after step %d: %s", step, error)
