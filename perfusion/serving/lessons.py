"""Trainings that were asked for over HTTP: one after another, each a process of perfusion-train at low priority.

Each lesson has a folder with its photos, its facts and what perfusion-train keeps, so it goes on after a restart. Torch
is in the other process alone: what crashes or fills the memory there takes no drawing with it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.errors import PerfusionError
from perfusion.files import writing
from perfusion.serving.answers import StatusError
from perfusion.serving.library import Library, check_name

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MOST_PHOTOS", "Lesson", "LessonBounds", "LessonSpec", "Lessons"]

MOST_PHOTOS = 10
_MOST_KEPT = 50  # that are over
_NICE = 10
_CONCEPT, _SHEET, _FACTS, _PHOTOS = "concept.safetensors", "concept.sheet.png", "lesson.json", "photos"
_PROGRESS = re.compile(r"^training .* (\d+)/(\d+), \S+ elapsed(?:, ([\d:]+) left)?(?:, loss ([\d.]+))?$")


@dataclass(frozen=True, kw_only=True)
class LessonBounds:
    """How much of all clients is taken on."""

    open: int = 8  # lessons that wait or run
    size: int = 2 << 30  # bytes of their folders, those that are over too


@dataclass(frozen=True, kw_only=True)
class LessonSpec:
    """What is to be learned: pictures of one thing, its kind and its name."""

    name: str
    superclass: str
    photos: tuple[Image, ...]
    steps: int | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 1 <= len(self.photos) <= MOST_PHOTOS:
            raise StatusError(
                400,
                f"There are {len(self.photos)} photos, expected 1 to {MOST_PHOTOS}.",
                field="pictures",
            )
        if not re.fullmatch(r"[\w' -]{1,60}", self.superclass) or not self.superclass.strip():
            raise StatusError(
                400,
                f"The superclass is {self.superclass[:60]!r}, expected a plain word such as cat.",
                field="superclass",
            )
        if self.steps is not None and not 1 <= self.steps <= 10_000:
            raise StatusError(400, f"The steps are {self.steps}, expected 1 to 10000.", field="steps")


@dataclass(kw_only=True)
class Lesson:
    """One training: whose it is, what it learns and how far it is."""

    id: str
    client: str
    name: str
    superclass: str
    steps: int | None
    created: float
    state: str = "waiting"  # "waiting", "training", "done", "failed" or "cancelled"
    step: int = 0
    total: int | None = None
    loss: float | None = None
    seconds_left: int | None = None
    error: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ("done", "failed", "cancelled")


class Lessons:
    """The lessons of one server, in the order they were asked for."""

    def __init__(
        self, folder: Path, library: Library, *, model: Path | None = None, bounds: LessonBounds | None = None
    ) -> None:
        """`folder`: where they are kept. `model`: the base model's folder; None: the embedded model."""
        self._folder, self._library, self._model = folder, library, model
        self._bounds = bounds or LessonBounds()
        self._entrance = threading.Lock()  # one lesson comes in after another
        self._lock = threading.Lock()  # of all that follows
        self._lessons = {lesson.id: lesson for lesson in _kept(folder)}
        self._process: subprocess.Popen[str] | None = None
        self._running: str | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self._wake()

    def submit(self, client: str, spec: LessonSpec) -> Lesson:
        """Put a lesson behind the others. Where its pictures have no room, the oldest that are over go.

        Raises:
            StatusError: its name is taken, too many wait, or there is no room.
        """
        with self._entrance:
            self._check(spec)
            lesson = Lesson(
                id=secrets.token_hex(12), client=client, name=spec.name, superclass=spec.superclass.strip(),
                steps=spec.steps, created=time.time(),
            )  # fmt: skip
            try:
                self._keep_photos(lesson, spec.photos)
                self._make_room(lesson)
                self._write(lesson)
            except BaseException:
                shutil.rmtree(self._place(lesson), ignore_errors=True)
                raise
            with self._lock:
                self._lessons[lesson.id] = lesson
        self._wake()
        return lesson

    def _check(self, spec: LessonSpec) -> None:
        with self._lock:
            lessons = [lesson for lesson in self._lessons.values() if not lesson.is_over]
        names = [known.name for known in self._library.concepts] + [lesson.name for lesson in lessons]
        if spec.name.casefold() in (name.casefold() for name in names):
            raise StatusError(
                409, f"There is a concept {spec.name!r} already. Choose another name.", field="name"
            )
        if len(lessons) >= self._bounds.open:
            raise StatusError(
                429, f"{self._bounds.open} trainings wait, and no more may. Try again later.", retry_after=60
            )

    def _keep_photos(self, lesson: Lesson, photos: tuple[Image, ...]) -> None:
        folder = self._place(lesson) / _PHOTOS
        folder.mkdir(parents=True)
        for number, photo in enumerate(photos, start=1):
            photo.save(folder / f"{number}.png")

    def _make_room(self, newest: Lesson) -> None:
        """Throw the oldest away that are over, until they are few enough and all have room.

        Raises:
            StatusError: those that are not over fill it; then none is thrown away.
        """
        with self._lock:
            lessons = sorted(self._lessons.values(), key=lambda lesson: lesson.created)
        sizes = {lesson.id: _bytes_in(self._place(lesson)) for lesson in (*lessons, newest)}
        over = [lesson for lesson in lessons if lesson.is_over]
        total = sum(sizes.values())
        if total - sum(sizes[lesson.id] for lesson in over) > self._bounds.size:
            raise StatusError(
                507,
                f"The trainings of this server have {self._bounds.size / 1e9:.3g} GB, and these pictures have no room. "
                "Send fewer or smaller ones, or wait until a training is done.",
                field="pictures",
            )
        while over and (len(over) > _MOST_KEPT or total > self._bounds.size):
            oldest = over.pop(0)
            total -= sizes[oldest.id]
            self.remove(oldest)

    def of(self, client: str) -> list[Lesson]:
        """A client's own, the newest first."""
        with self._lock:
            own = [lesson for lesson in self._lessons.values() if lesson.client == client]
        return sorted(own, key=lambda lesson: -lesson.created)

    def get(self, client: str, number: str) -> Lesson:
        """One of a client's own.

        Raises:
            StatusError: there is none.
        """
        with self._lock:
            lesson = self._lessons.get(number)
        if lesson is None or lesson.client != client:
            raise StatusError(404, "There is no such training of yours.")
        return lesson

    def sheet(self, lesson: Lesson) -> Path | None:
        """What was learned from and what is drawn with it, as one picture; None before the end."""
        path = self._place(lesson) / _SHEET
        return path if path.is_file() else None

    def remove(self, lesson: Lesson) -> None:
        """Stop one that is under way, and throw away one that is over. Its concept stays in the library."""
        if lesson.is_over:
            with self._lock:
                self._lessons.pop(lesson.id, None)
            shutil.rmtree(self._place(lesson), ignore_errors=True)
            return
        self._end(lesson, "cancelled")
        with self._lock:
            if self._running == lesson.id and self._process is not None:
                self._process.terminate()

    def close(self) -> None:
        """Stop working; what is under way goes on after the next start."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.terminate()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _wake(self) -> None:
        with self._lock:
            waiting = any(not lesson.is_over for lesson in self._lessons.values())
            if waiting and self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="perfusion-lessons", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                waiting = [lesson for lesson in self._lessons.values() if not lesson.is_over]
                if self._closed or not waiting:
                    self._thread = None
                    return
                lesson = min(waiting, key=lambda each: each.created)
            try:
                self._teach(lesson)
            except (PerfusionError, OSError) as error:
                self._end(lesson, "failed", str(error))

    def _teach(self, lesson: Lesson) -> None:
        """Run one lesson to its end, and put its concept into the library."""
        with self._lock:
            if self._closed or lesson.is_over:
                return
            lesson.state = "training"
            process = subprocess.Popen(
                self._command(lesson), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                encoding="utf-8", errors="replace", env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            )  # fmt: skip
            self._process, self._running = process, lesson.id
        if sys.platform != "win32":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        reason = _followed(lesson, process)
        with self._lock:
            self._process = self._running = None
            if self._closed or lesson.is_over:
                return
        if process.returncode == 0:
            self._library.add((self._place(lesson) / _CONCEPT).read_bytes(), lesson.name)
            self._end(lesson, "done")
        else:
            self._end(lesson, "failed", reason or f"The training ended with {process.returncode}.")

    def _command(self, lesson: Lesson) -> list[str]:
        place = self._place(lesson)
        command = [sys.executable, "-m", "perfusion.commands.train", f"--images={place / _PHOTOS}"]
        command += [f"--superclass={lesson.superclass}", f"--token=<{lesson.name}>"]
        command += [f"--output={place / _CONCEPT}", "--resume"]
        command += [f"--steps={lesson.steps}"] if lesson.steps else []
        return command + ([f"--model={self._model}"] if self._model else [])

    def _end(self, lesson: Lesson, state: str, error: str | None = None) -> None:
        lesson.state, lesson.error, lesson.seconds_left = state, error, None
        self._write(lesson)

    def _write(self, lesson: Lesson) -> None:
        with suppress(PerfusionError), writing(self._place(lesson) / _FACTS, "w") as file:
            json.dump(asdict(lesson), file)

    def _place(self, lesson: Lesson) -> Path:
        return self._folder / lesson.id


def _followed(lesson: Lesson, process: subprocess.Popen[str]) -> str:
    """Read a training's progress until it ends; its last line that is none."""
    reason = ""
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            match = _PROGRESS.match(line.strip())
            if match is None:
                reason = line.strip().removeprefix("perfusion-train: ") or reason
                continue
            step, total, left, loss = match.groups()
            lesson.step, lesson.total = int(step), int(total)
            lesson.loss = float(loss) if loss else None
            lesson.seconds_left = _seconds(left) if left else None
    process.wait()
    return reason


def _bytes_in(folder: Path) -> int:
    """What the files below a folder take; one that goes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def _seconds(clock: str) -> int:
    """1:02 or 1:02:03 in seconds."""
    total = 0
    for part in clock.split(":"):
        total = total * 60 + int(part)
    return total


def _kept(folder: Path) -> list[Lesson]:
    """The lessons of a folder; what was under way waits again."""
    lessons = []
    known = {field.name for field in fields(Lesson)}
    for path in folder.glob(f"*/{_FACTS}"):
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            lesson = Lesson(**{name: value for name, value in facts.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError):
            continue  # somebody else's folder, or one that was half written by an older version
        if path.parent.name == lesson.id:
            lesson.state = lesson.state if lesson.is_over else "waiting"
            lessons.append(lesson)
    return lessons
