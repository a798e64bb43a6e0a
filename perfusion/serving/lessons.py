"""Trainings that were asked for over HTTP: one after another, each a process of perfusion-train at low priority.

Each lesson has a folder with its photos, its facts and what perfusion-train keeps, so it goes on after a restart. Torch
is in the other process alone: what crashes or fills the memory there takes no drawing with it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.errors import PerfusionError
from perfusion.files import writing
from perfusion.serving.answers import StatusError
from perfusion.serving.lesson_process import follow, read_verdict
from perfusion.serving.lesson_samples import LessonSamples
from perfusion.serving.library import Library, check_name
from perfusion.serving.mask_search import MaskSearch, PhotoMask
from perfusion.serving.portraits import Portraits
from perfusion.serving.superclass_routes import check_superclass

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MOST_PHOTOS", "Lesson", "LessonBounds", "LessonSpec", "Lessons"]

MOST_PHOTOS = 10
MOST_STEPS = 10_000
_MOST_KEPT = 50  # that are over
_NICE = 10
_CONCEPT, _SHEET, _FACTS, _REPORT = "concept.safetensors", "concept.sheet.png", "lesson.json", "report.json"
_PHOTOS, _MASKS = "photos", "masks"
_MORE = 1.5  # times the steps, where nobody says how many a lesson that goes on is to have


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
    masks: tuple[Image, ...] = ()
    """One a photo, of its size and light where the thing is; none: the training finds them."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 1 <= len(self.photos) <= MOST_PHOTOS:
            raise StatusError(
                400,
                f"There are {len(self.photos)} photos, expected 1 to {MOST_PHOTOS}.",
                field="pictures",
            )
        check_superclass(self.superclass)
        if self.masks and [mask.size for mask in self.masks] != [photo.size for photo in self.photos]:
            raise StatusError(
                400,
                f"There are {len(self.masks)} masks for {len(self.photos)} photos, expected one for each, of its size.",
                field="masks",
            )  # fmt: skip
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise StatusError(400, f"The steps are {self.steps}, expected 1 to {MOST_STEPS}.", field="steps")


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
    grade: str | None = None
    """How well it was learned, in a word: "learned", "colours only", …"""
    verdict: str | None = None
    """The same in a sentence."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ("done", "failed", "cancelled")


class Lessons:
    """The lessons of one server, in the order they were asked for."""

    def __init__(
        self, folder: Path, library: Library, *, model: Path | None = None, scorer: Path | None = None,
        bounds: LessonBounds | None = None,
    ) -> None:  # fmt: skip
        """`folder`: where they are kept. `model`: the base model's folder; None: the embedded model. `scorer`: what
        chooses and judges; None: the embedded model's own, for that model alone."""
        self._folder, self._library, self._model = folder, library, model
        self._scorer = scorer
        self._search, self._portraits = MaskSearch(model), Portraits(library.runtime)
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
                self._keep_photos(lesson, spec)
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

    def _keep_photos(self, lesson: Lesson, spec: LessonSpec) -> None:
        photos, masks = self._place(lesson) / _PHOTOS, self._place(lesson) / _MASKS
        photos.mkdir(parents=True)
        for number, photo in enumerate(spec.photos, start=1):
            photo.save(photos / f"{number}.png")
        for number, mask in enumerate(spec.masks, start=1):
            masks.mkdir(exist_ok=True)
            mask.convert("L").save(masks / f"{number}.png")

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

    def samples(self, lesson: Lesson) -> LessonSamples:
        """What was drawn with it while it was learned."""
        work = self._place(lesson) / f"{_CONCEPT}.work"
        return LessonSamples(self._portraits, work, self._place(lesson))

    def subject(self, lesson: Lesson) -> list[Image]:
        """The photos that it learned from, cut to the thing where its masks say where that is."""
        from perfusion.judging.selection import cut_to_mask
        from perfusion.picture_input import as_rgb, open_picture

        place = self._place(lesson)
        pictures = []
        for path in sorted((place / _PHOTOS).glob("*.png")):
            mask = place / _MASKS / path.name
            pictures.append(
                cut_to_mask(as_rgb(open_picture(path)), open_picture(mask) if mask.is_file() else None)
            )
        return pictures

    def go_on(self, lesson: Lesson, steps: int | None = None) -> None:
        """Let one that is over wait again: what was stopped or failed from where it was, what is done for more steps.

        Raises:
            StatusError: it is not over, or there are no more steps than were done.
        """
        if not lesson.is_over:
            raise StatusError(409, f"This training is {lesson.state}. Wait for its end, or stop it.")
        done = lesson.step if lesson.state == "done" else 0
        if lesson.state == "done" and steps is None:
            steps = round(_MORE * done)
        if steps is not None and not done < steps <= MOST_STEPS:
            raise StatusError(
                400, f"The steps are {steps}, expected more than the {done} that were done, at most {MOST_STEPS}.",
                field="steps",
            )  # fmt: skip
        lesson.steps = steps or lesson.steps
        lesson.grade = lesson.verdict = None
        self._end(lesson, "waiting")
        self._wake()

    def remove(self, lesson: Lesson) -> None:
        """Stop one that is under way, or throw away one that is over. Its concept stays in the library."""
        if lesson.is_over:
            with self._lock:
                self._lessons.pop(lesson.id, None)
            shutil.rmtree(self._place(lesson), ignore_errors=True)
            return
        self._end(lesson, "cancelled")
        with self._lock:
            if self._running == lesson.id and self._process is not None:
                self._process.terminate()

    def find_masks(
        self, photos: Sequence[Image], superclass: str, given_up: threading.Event
    ) -> list[PhotoMask]:
        """Where the thing is in some photos; see `MaskSearch.find`.

        Raises:
            StatusError: not found; or a lesson is under way that needs the device for a large model.
        """
        if self._running is not None and self._model is not None:
            raise StatusError(
                409, "A lesson is under way and needs the device. Look at the masks when it is over, or teach without.",
                retry_after=30,
            )  # fmt: skip
        return self._search.find(photos, superclass, given_up)

    def close(self) -> None:
        """Stop working; what is under way goes on after the next start."""
        self._search.close()
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
            with (self._place(lesson) / _REPORT).open("wb") as report:
                process = subprocess.Popen(
                    self._command(lesson), stdin=subprocess.PIPE, stdout=report, stderr=subprocess.PIPE, text=True,
                    encoding="utf-8", errors="replace", env={**os.environ, "PYTHONIOENCODING": "utf-8"},
                )  # fmt: skip
            self._process, self._running = process, lesson.id
        if sys.platform != "win32":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        reason = follow(lesson, process, self.samples(lesson).look)
        with self._lock:
            self._process = self._running = None
            if self._closed or lesson.state != "training":  # stopped, and perhaps asked to go on meanwhile
                return
        if process.returncode == 0:
            self._library.put((self._place(lesson) / _CONCEPT).read_bytes(), lesson.name)
            lesson.grade, lesson.verdict = read_verdict(self._place(lesson) / _REPORT)
            self._end(lesson, "done")
        else:
            self._end(lesson, "failed", reason or f"The training ended with {process.returncode}.")

    def _command(self, lesson: Lesson) -> list[str]:
        place = self._place(lesson)
        command = [sys.executable, "-m", "perfusion.serving.lesson_worker", f"--images={place / _PHOTOS}"]
        command += [f"--superclass={lesson.superclass}", f"--token=<{lesson.name}>"]
        command += [f"--output={place / _CONCEPT}", "--resume", "--keep-state", "--json"]
        command += [f"--masks={place / _MASKS}"] if (place / _MASKS).is_dir() else []
        command += [f"--steps={lesson.steps}"] if lesson.steps else []
        command += [f"--scorer={self._scorer}"] if self._scorer else []
        return command + ([f"--model={self._model}"] if self._model else [])

    def _end(self, lesson: Lesson, state: str, error: str | None = None) -> None:
        lesson.state, lesson.error, lesson.seconds_left = state, error, None
        self._write(lesson)

    def _write(self, lesson: Lesson) -> None:
        with suppress(PerfusionError), writing(self._place(lesson) / _FACTS, "w") as file:
            json.dump(asdict(lesson), file)

    def _place(self, lesson: Lesson) -> Path:
        return self._folder / lesson.id


def _bytes_in(folder: Path) -> int:
    """What the files below a folder take; one that goes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
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
