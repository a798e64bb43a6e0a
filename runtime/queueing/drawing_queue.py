"""The drawing queue: pictures of many requests in the same calls of the UNet, each joining and leaving at its own step.

A thread draws as long as there is something to draw. Pictures that fit together go into one call, and that whose last
step is the longest ago goes first.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import BusyError, CancelledError, PerfusionError, RequestError
from perfusion.runtime.drawing_parts import DrawingParts
from perfusion.runtime.preparation import Draft
from perfusion.runtime.queueing.fair_order import FairOrder
from perfusion.runtime.queueing.job import Job
from perfusion.runtime.queueing.shared_call import Picture, SharedCall, choose_call
from perfusion.runtime.sampling.course import begin_courses, predict
from perfusion.runtime.sampling.loop import Drawn
from perfusion.runtime.step import Step
from perfusion.runtime.stopping import Stop

__all__ = ["DrawingQueue"]

Array = NDArray[np.float32]


class DrawingQueue:
    """Jobs in, pictures out; see `Runtime.submit`. For several threads at once."""

    def __init__(self, parts: DrawingParts, *, batch_size: int, capacity: int) -> None:
        """`batch_size`: pictures in one call. `capacity`: jobs that may wait."""
        self._parts = parts
        self._batch_size, self._capacity = batch_size, capacity
        # of all that follows; never held while a graph runs or a caller is called
        self._lock = threading.Lock()
        self._waiting: FairOrder[Picture] = FairOrder()
        self._drawing: list[Picture] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        self._calls: Counter[SharedCall] = Counter()
        self._now = 0  # calls of the UNet so far

    @property
    def waiting(self) -> int:
        """Jobs whose turn has not come."""
        return len(self._waiting)

    @property
    def drawing(self) -> int:
        """Jobs that are being drawn."""
        return len(self._drawing)

    @property
    def calls(self) -> Counter[SharedCall]:
        """How many calls of the UNet there were, by their pictures, concepts and steps."""
        with self._lock:
            return Counter(self._calls)

    def submit(
        self,
        draft: Draft,
        stop: Stop,
        *,
        exact: bool,
        priority: float,
        client: str,
        deadline: float | None,
        callback: Callable[[Step], object] | None,
    ) -> Job:
        """Put a picture behind the others.

        Raises:
            BusyError: as many jobs wait as may.
            RequestError: the runtime is closed.
        """
        job = Job(draft.request, stop, self._position, deadline)
        picture = Picture(job=job, draft=draft, exact=exact, callback=callback)
        with self._lock:
            if self._closed:
                raise RequestError("This runtime is closed. Open another one.")
            if len(self._waiting) >= self._capacity:
                raise BusyError(
                    f"{self._capacity} pictures wait to be drawn, and no more may. Try again when some are done."
                )
            self._waiting.add(picture, client=client, priority=priority)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="perfusion-drawing")
                self._thread.start()
        return job

    def close(self) -> None:
        """Cancel all jobs and take no more; returns when the last step is done."""
        with self._lock:
            self._closed = True
            for picture in (*self._waiting.items(), *self._drawing):
                picture.job.cancel()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _position(self, job: Job) -> int | None:
        with self._lock:
            jobs = [picture.job for picture in self._waiting.items()]
        return jobs.index(job) if job in jobs else None

    def _work(self) -> None:
        """Draw until nothing is left; the thread's own function."""
        while True:
            self._drop_ended()
            self._let_in()
            with self._lock:
                if not self._drawing and not len(self._waiting):
                    self._thread = None
                    return
                group = choose_call(
                    self._drawing, self._batch_size,
                    own_timesteps=self._parts.bundle.has_regions,
                    reads_scale="timestep_cond" in self._parts.bundle.unet.conditions,
                )  # fmt: skip
            if group:
                with self._parts.turn:
                    self._step(group)
            for picture in [picture for picture in group if picture.course.finished]:
                self._guard(picture, self._hand_over)

    def _drop_ended(self) -> None:
        """Let those go that were cancelled or are too late, wherever they stand."""
        with self._lock:
            pictures = (*self._waiting.items(), *self._drawing)
        for picture in pictures:
            try:
                picture.job.check()
            except CancelledError as error:
                self._fail(picture, error)

    def _let_in(self) -> None:
        """Begin as many as there is room for, the next in turn first."""
        while True:
            with self._lock:
                if not len(self._waiting) or len(self._drawing) >= self._batch_size:
                    return
                picture = self._waiting.pop()
                self._drawing.append(picture)
            self._guard(picture, self._begin)

    def _begin(self, picture: Picture) -> None:
        """Encode what a picture is drawn from."""
        draft, check = picture.draft, picture.job.check
        with self._parts.turn:
            self._parts.preparation.admit(picture.size)
            phases = self._parts.preparation.phases(draft, check)
            courses = begin_courses(
                self._parts.bundle, self._parts.graphs, draft.request, draft.schedule, phases, check
            )
        picture.begin(courses[0])

    def _step(self, group: list[Picture]) -> None:
        """One call of the UNet for some pictures; where it fails, each is tried alone."""
        try:
            group = self._admitted(group)
            self._parts.graphs.stage("denoise")
            courses = [picture.course for picture in group]
            rows = [row for course in courses for row in course.rows]
            predictions = predict(self._parts.graphs, courses, self._parts.feeds.of(rows, courses[0].request))
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0], error)
            else:
                for picture in group:
                    self._step([picture])
            return
        with self._lock:
            self._now += 1
            self._calls[SharedCall.of(group)] += 1
        for picture, noise_pred in zip(group, predictions, strict=True):
            picture.last_call = self._now
            self._guard(picture, partial(self._advance, noise_pred))

    def _admitted(self, group: list[Picture]) -> list[Picture]:
        """As many of some pictures as fit into one call."""
        while True:
            try:
                self._parts.preparation.admit(SharedCall.size(group))
            except RequestError:
                if len(group) == 1:
                    raise
                group = group[: len(group) // 2]
            else:
                return group

    def _advance(self, noise_pred: Array, picture: Picture) -> None:
        """Take a picture's step, and tell who waits for it."""
        course = picture.course
        index, timestep = course.index, float(course.timestep)
        course.advance(noise_pred)
        state = Drawn(
            index=index,
            total=len(course.schedule),
            timestep=timestep,
            latents=course.latents,
            clean=course.clean,
        )
        step = self._parts.step(state, picture.size)
        picture.job.report(step)
        if picture.callback is not None and picture.callback(step) is False:
            picture.job.cancel()

    def _hand_over(self, picture: Picture) -> None:
        """Decode a picture that has taken its last step."""
        picture.job.check()
        (image,) = self._parts.decode(picture.course.latents, picture.job.check, size=picture.size)
        self._forget(picture)
        picture.job.finish(image)

    def _guard(self, picture: Picture, work: Callable[[Picture], None]) -> None:
        """Do some work on a picture; what goes wrong is that picture's own failure."""
        if picture.job.done:
            return
        try:
            work(picture)
        except Exception as error:
            self._fail(picture, error)

    def _fail(self, picture: Picture, error: Exception) -> None:
        self._forget(picture)
        if isinstance(error, MemoryError):
            error = PerfusionError("The memory is full. Draw a smaller picture, or fewer at once.")
        if not picture.job.done:
            picture.job.fail(error)

    def _forget(self, picture: Picture) -> None:
        with self._lock:
            self._waiting.remove(picture)
            if picture in self._drawing:
                self._drawing.remove(picture)
