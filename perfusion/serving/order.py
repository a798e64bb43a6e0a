"""An order: the pictures of one request, whose it is, and how far it is."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from perfusion.runtime import Job, Step
from perfusion.serving.answers import StatusError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Drawing", "Finish", "Order", "PictureSpec"]

_SEEDS = 2**32

Drawing = tuple[str, int, dict[str, Any]]
"""A prompt, a seed, and options of `Runtime.submit`."""

Finish = Callable[["Image"], "Image"]
"""What is done with a picture after it is drawn."""


@dataclass(frozen=True, kw_only=True)
class PictureSpec:
    """What is to be drawn: `count` pictures of a prompt, whose seeds rise from `seed` on (None: one by chance)."""

    most: ClassVar[int] = 16  # pictures of one request

    prompt: str
    seed: int | None = None
    count: int = 1
    exact: bool = False
    names_by_tags: bool = False  # a concept's <lora:name:strength> names it, without its word in the prompt
    partials: int = 0  # pictures on the way that are decoded, evenly spread over its steps
    files: Mapping[str, bytes] = field(
        default_factory=dict
    )  # concepts that come with the request, by their words
    options: dict[str, Any] = field(default_factory=dict)  # of `Runtime.submit`
    finish: Finish | None = None

    def drawings(self, first: int) -> Iterator[Drawing]:
        """What each of its pictures is drawn from; `first` is the seed where none is said."""
        return ((self.prompt, seed, self.options) for seed in range(first, first + self.count))

    def finished(self, picture: Image) -> Image:
        """A picture as the client gets it."""
        return picture if self.finish is None else self.finish(picture)


class Order:
    """Pictures on order. It lives in the event loop that made it; the thread that draws tells it with `touch`."""

    def __init__(self, client: str, spec: PictureSpec, *, dialect: str, is_stored: bool) -> None:
        """`is_stored`: whether its pictures go into the history, and it is done only once they lie there."""
        self.id = secrets.token_hex(12)
        self.client, self.spec, self.dialect, self.is_stored = client, spec, dialect, is_stored
        self.created = time.time()
        self.seed = _first_seed(spec)
        self.jobs: list[Job] = []
        self.settings: list[dict[str, Any]] = []  # of each picture, as its file carries them
        self.pictures: dict[int, str] = {}  # by their number, where they lie in the history
        self.partials: dict[int, list[Image]] = {}  # by a picture's number, those on its way
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._is_watched = False  # by somebody who waits for changes
        self._outcome: tuple[str, str | None] | None = None  # once it is over: its state and what went wrong
        self._first_step: tuple[float, int] | None = None  # when, and how many steps were made

    @property
    def state(self) -> str:
        """ "waiting", "drawing", "done", "failed" or "cancelled"."""
        if self._outcome is not None:
            return self._outcome[0]
        waits = all(job.state == "waiting" for job in self.jobs)
        return "waiting" if waits else "drawing"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self._outcome is not None

    @property
    def error(self) -> str | None:
        """Why it failed or was cancelled."""
        return self._outcome[1] if self._outcome else None

    @property
    def position(self) -> int | None:
        """How many pictures are before its first in the queue; None when its turn has come."""
        return self.jobs[0].position if self.jobs and self.state == "waiting" else None

    @property
    def steps(self) -> tuple[int, int]:
        """How many steps of all its pictures are made, and of how many."""
        usual = int(self.settings[0]["num_inference_steps"]) if self.settings else 0
        if self.is_over:
            return usual * len(self.pictures), usual * self.spec.count
        totals = [job.step.total if job.step else usual for job in self.jobs]
        steps = [job.step.index + 1 if job.step else 0 for job in self.jobs]
        return sum(steps), sum(totals)

    @property
    def seconds_left(self) -> float | None:
        """An estimate by the pace so far; None before there is one."""
        step, total = self.steps
        if self._first_step is None or self.is_over or step <= self._first_step[1]:
            return None
        began, first = self._first_step
        return round((time.monotonic() - began) / (step - first) * (total - step), 2)

    def cancel(self) -> None:
        """Stop what is not done of it."""
        for job in self.jobs:
            job.cancel()

    def cancel_open(self) -> None:
        """Stop it, for a client that wants to know.

        Raises:
            StatusError: it is over.
        """
        if self.is_over:
            raise StatusError(409, f"This job is {self.state} already.")
        self.cancel()

    def address(self, number: int) -> str | None:
        """Where a picture of it lies in the history; None before it is drawn."""
        return f"/api/pictures/{self.pictures[number]}" if number in self.pictures else None

    def cancel_next(self) -> None:
        """Stop the first that is not done of it; the others go on."""
        for job in [job for job in self.jobs if not job.done][:1]:
            job.cancel()

    def advance(self, number: int, step: Step) -> None:
        """Take note of a picture's step; in the thread that draws, whose turn it is to decode too."""
        if self._first_step is None:
            self._first_step = time.monotonic(), self.steps[0]
        partials = self.partials.setdefault(number, [])
        due = step.total * (len(partials) + 1) / (self.spec.partials + 1)
        if len(partials) < self.spec.partials and step.index + 1 >= due:
            partials += step.preview()
        self.touch()

    def touch(self) -> None:
        """Wake up who waits for a change; for any thread. An event loop that is woken takes time from the drawing."""
        if not self._is_watched:
            return
        with suppress(RuntimeError):  # the server has ended meanwhile
            self._loop.call_soon_threadsafe(self._wake)

    async def change(self, timeout: float | None = None) -> None:
        """Wait until something has happened to it, at most so many seconds.

        The first time it returns at once: look again at what happened before it was watched.
        """
        if not self._is_watched:
            self._is_watched = True
            return
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    async def results(self) -> list[Image]:
        """Its pictures, once all are drawn.

        Raises:
            PerfusionError: what one of them failed with; the others are then cancelled.
        """
        try:
            return [await job for job in list(self.jobs)]
        finally:
            self.cancel()

    def settle(self) -> None:
        """See whether it is over; what is over lets go of its pictures."""
        if self.is_over or not self.jobs or not all(job.done for job in self.jobs):
            return
        states = [job.state for job in self.jobs]
        state = next((bad for bad in ("failed", "cancelled") if bad in states), "done")
        if self.is_stored and len(self.pictures) < states.count("done"):
            return
        self.end(state, _reason(self.jobs[states.index(state)]) if state != "done" else None)
        if self.is_stored:
            self.jobs.clear()

    def end(self, state: str, error: str | None = None) -> None:
        """It is over, with a state and what went wrong."""
        self._outcome = state, error
        self.touch()

    def facts(self) -> dict[str, Any]:
        """What clients are told of it."""
        step, total = self.steps
        return {
            "id": self.id, "state": self.state, "position": self.position, "step": step, "total": total,
            "seconds_left": self.seconds_left, "error": self.error, "created": self.created,
            "pictures": [self.address(number) for number in sorted(self.pictures)],
            "settings": {**self.settings[0], "count": self.spec.count} if self.settings else None,
        }  # fmt: skip

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _first_seed(spec: PictureSpec) -> int:
    """The seed of a specification, or one by chance."""
    if spec.seed is None or spec.seed < 0:
        return secrets.randbelow(_SEEDS - spec.most)
    return spec.seed


def _reason(job: Job) -> str:
    try:
        job.result(0)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""
