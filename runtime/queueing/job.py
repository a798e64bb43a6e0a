"""One picture that was asked for: waiting, being drawn, or done. For any thread, and for asyncio."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # another class before Python 3.11
from typing import TYPE_CHECKING, Any

from perfusion.errors import CancelledError
from perfusion.runtime.step import Step
from perfusion.runtime.stopping import Stop

if TYPE_CHECKING:
    from PIL.Image import Image

    from perfusion.runtime.request import Request

__all__ = ["Job"]


class Job:
    """A picture on order, as `Runtime.submit` gives it.

        job = runtime.submit("a photo of <cat>", seed=3)
        job.result()                                          # in a thread: waits for the picture
        await job                                             # in asyncio: the same

    `progress` and `step` say how far it is, `request` what was asked for.
    """

    def __init__(
        self, request: Request, stop: Stop, position: Callable[[Job], int | None], deadline: float | None
    ) -> None:
        """`deadline`: seconds from now after which nobody wants the picture any more."""
        self.request = request  # what was asked for, checked, with the bundle's defaults
        self._stop = stop
        self._position = position
        self._deadline = deadline
        self._ends = None if deadline is None else time.monotonic() + deadline
        self._future: Future[Image] = Future()
        self._future.set_running_or_notify_cancel()  # it ends by `cancel` of this class alone
        self._step: Step | None = None

    def __await__(self) -> Generator[Any, None, Image]:
        return self._waited().__await__()

    @property
    def done(self) -> bool:
        """Whether there is a picture or an error."""
        return self._future.done()

    @property
    def state(self) -> str:
        """ "waiting", "drawing", "done", "cancelled" or "failed"."""
        if not self.done:
            return "drawing" if self.position is None else "waiting"
        error = self._future.exception()
        if error is None:
            return "done"
        return "cancelled" if isinstance(error, CancelledError) else "failed"

    @property
    def position(self) -> int | None:
        """How many pictures are before it in the queue; None when its turn has come."""
        return None if self.done else self._position(self)

    @property
    def step(self) -> Step | None:
        """The newest step, with its `preview` and `sketch`; None before the first."""
        return self._step

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        if self.done:
            return 1.0
        return 0.0 if self._step is None else (self._step.index + 1) / (self._step.total + 1)

    def result(self, timeout: float | None = None) -> Image:
        """The picture, once it is drawn.

        Raises:
            TimeoutError: it was not done after `timeout` seconds; it is still drawn.
            CancelledError: it was cancelled, or its deadline passed.
            RequestError: it cannot be drawn, for example for lack of memory.
        """
        try:
            return self._future.result(timeout)
        except (TimeoutError, FutureTimeoutError):
            if self.done:
                raise
            raise TimeoutError(
                f"The picture was not done after {timeout:g} seconds. Wait longer, or cancel it."
            ) from None

    def cancel(self) -> None:
        """Stop it, within one step; who waits for it gets `CancelledError`. One that is done stays done."""
        self._stop.ask()

    def check(self) -> None:
        """Raises CancelledError where it is to end: it was cancelled, or its deadline has passed."""
        self._stop.check()
        if self._ends is not None and time.monotonic() > self._ends:
            raise CancelledError(
                f"The picture was not done within its deadline of {self._deadline:g} seconds."
            )

    def when_done(self, callback: Callable[[Job], object]) -> None:
        """Call back with this job when it is done, in the thread that draws; at once where it is done already."""
        self._future.add_done_callback(lambda _: callback(self))

    def report(self, step: Step) -> None:
        """Take note of a step; for the queue."""
        self._step = step

    def finish(self, picture: Image) -> None:
        """Hand the picture over; for the queue."""
        self._future.set_result(picture)

    def fail(self, error: BaseException) -> None:
        """Hand an error over; for the queue."""
        self._future.set_exception(error)

    async def _waited(self) -> Image:
        import asyncio  # its import takes longer than the runtime's own, and most callers have no loop

        try:
            return await asyncio.shield(asyncio.wrap_future(self._future))
        except asyncio.CancelledError:
            self.cancel()  # as a task that awaits another one
            raise
