"""The desk: takes orders for pictures, knows whose they are, and sees them into the drawing queue."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from perfusion.concept.prompt_syntax import with_words
from perfusion.errors import CancelledError, RequestError
from perfusion.runtime import Job, Runtime, Step
from perfusion.runtime.picture_settings import settings_of_request
from perfusion.serving.answers import StatusError, is_our_fault
from perfusion.serving.history import History
from perfusion.serving.library import WordLibrary
from perfusion.serving.meters import Meters
from perfusion.serving.order import Order, PictureSpec
from perfusion.serving.picture_encoding import as_file
from perfusion.serving.shelf import Riders, renamed_prompt, renamed_regions

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Desk"]

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25  # between two looks at whether the client is still there
_RETRY_SECONDS = 5
_MOST_CHARACTERS = 32_000  # of a prompt, as with OpenAI
_END_SECONDS = 10.0  # for the step to end in which a job is cancelled
_MOST_ORDERS = 1000  # that are over and remembered


class Desk:
    """Takes orders of all dialects."""

    def __init__(
        self, runtime: Runtime, library: WordLibrary, history: History | None, meters: Meters, *,
        settings: bool = True, client_queue: int = 64, riders: int = 256,
    ) -> None:  # fmt: skip
        """`history`: None where nothing is kept of clients beyond their requests. `settings`: whether pictures' files
        say how they were drawn. `client_queue`: pictures of one client that may wait or be drawn. `riders`: concepts
        that came with requests and stay loaded for the next."""
        self.runtime, self.library, self.history = runtime, library, history
        self._riders = Riders(runtime, riders)
        self._meters, self._has_settings, self._client_queue = meters, settings, client_queue
        self._is_stopping = False
        self.faults = 0  # pictures in a row that failed by a fault of this server's own
        self._orders: dict[str, Order] = {}
        self._files = ThreadPoolExecutor(1, thread_name_prefix="perfusion-history")

    def orders(self, client: str) -> list[Order]:
        """A client's own orders, the newest first."""
        return [order for order in reversed(self._orders.values()) if order.client == client]

    def order(self, client: str, number: str) -> Order:
        """One of a client's own orders.

        Raises:
            StatusError: there is none.
        """
        order = self._orders.get(number)
        if order is None or order.client != client:
            raise StatusError(404, "There is no such job of yours; it may have expired.")
        return order

    def under_way(self, client: str) -> list[Order]:
        """A client's own orders that are not over, the oldest first."""
        return [order for order in self._orders.values() if order.client == client and not order.is_over]

    def stop(self) -> None:
        """Take no more orders."""
        self._is_stopping = True

    def cancel_all(self) -> None:
        """Stop all that is not over."""
        for order in list(self._orders.values()):
            order.cancel()

    async def finished(self) -> None:
        """Wait until nothing is under way."""
        while any(not order.is_over for order in self._orders.values()):
            await asyncio.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Write what is drawn; nothing is taken afterwards."""
        self.stop()
        self.cancel_all()
        for order in list(self._orders.values()):
            for job in list(order.jobs):
                _wait_for_end(job)
        self._files.shutdown()

    async def take(
        self, client: str, spec: PictureSpec, *, dialect: str = "own", is_stored: bool = False
    ) -> Order:
        """Put the pictures of an order into the queue, all or none.

        Raises:
            RequestError: what cannot be drawn.
            BusyError: the queue is full.
            StatusError: the client has too many under way.
        """
        if self._is_stopping:
            raise _stopping()
        if is_stored and self.history is None:
            raise StatusError(501, "This server keeps no pictures. Ask for the picture itself.")
        most = min(spec.most, self._client_queue)
        if not 1 <= spec.count <= most:
            raise RequestError(f"There are {spec.count} pictures to draw, expected 1 to {most}.")
        if sum(order.spec.count for order in self.under_way(client)) + spec.count > self._client_queue:
            raise StatusError(
                429, f"{self._client_queue} of your pictures wait or are drawn, and no more may. Wait for some.",
                retry_after=_RETRY_SECONDS,
            )  # fmt: skip
        order = Order(client, spec, dialect=dialect, is_stored=is_stored)
        self._orders[order.id] = order
        try:
            await asyncio.to_thread(self._submit, order)
        except BaseException:
            order.cancel()
            del self._orders[order.id]
            raise
        for number, job in enumerate(order.jobs):
            job.when_done(partial(self._when_done, order, number))
        self._forget_old()
        return order

    async def pictures(self, request: Request, order: Order) -> list[Image]:
        """The pictures of an order for which the client waits; they are cancelled where it goes away.

        Raises:
            PerfusionError: what `Order.results` raises.
        """
        watch = asyncio.ensure_future(cancel_when_gone(request, order))
        try:
            return await order.results()
        except CancelledError as error:
            raise (_stopping() if self._is_stopping else error) from None
        finally:
            watch.cancel()
            self.drop(order)

    def drop(self, order: Order) -> None:
        """Stop an order, and forget it."""
        order.cancel()
        self._orders.pop(order.id, None)

    def settings(self, order: Order, number: int) -> dict[str, Any] | None:
        """What the file of a picture says of its drawing."""
        return order.settings[number] if self._has_settings else None

    def _submit(self, order: Order) -> None:
        spec = order.spec
        with self.library.lock:  # the concepts that the settings name are those that are drawn
            riders = self._riders.words(spec.files)
            for number, (prompt, seed, options) in enumerate(spec.drawings(order.seed)):
                prompt, options = self._in_words(spec, prompt, options, riders)
                job = self.runtime.submit(
                    prompt, seed=seed, exact=spec.exact, client=order.client,
                    callback=partial(self._step, order, number), **options,
                )  # fmt: skip
                order.jobs.append(job)
                order.settings.append(settings_of_request(self.runtime, job.request, exact=spec.exact))
        if order.is_stored and self.history is not None:
            self.history.begin(order.id, order.client, order.created, order.settings[0])

    def _in_words(
        self, spec: PictureSpec, prompt: str, options: dict[str, Any], riders: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        """A prompt and options with the concepts' own words in them. `riders`: those of concepts that came along.

        Raises:
            StatusError: a text that is far too long.
        """
        for name, text in (("prompt", prompt), ("negative_prompt", options.get("negative_prompt", ""))):
            if len(text) > _MOST_CHARACTERS:
                raise StatusError(
                    400,
                    f"The {name} has {len(text)} characters, expected at most {_MOST_CHARACTERS}.",
                    field=name,
                )
        prompt, options = self.library.words(renamed_prompt(prompt, riders)), dict(options)
        if riders and "regions" in options:
            options["regions"] = renamed_regions(options["regions"], riders)
        if spec.names_by_tags and options.get("prompt_syntax") != "plain":
            prompt, added = with_words(prompt, self.runtime.concepts)
            for word in added:
                _log.warning(
                    "the prompt has the tag of %s and not the word, which is put before the tag", word
                )
        if changes := options.get("concept_settings"):
            options["concept_settings"] = _renamed(
                changes, lambda token: riders.get(token) or self.library.word(token)
            )
        return prompt, options

    def _step(self, order: Order, number: int, step: Step) -> None:
        """In the thread that draws: tell whoever watches."""
        if step.index == 0:
            self._meters.wait(time.time() - order.created)
        order.advance(number, step)

    def _when_done(self, order: Order, number: int, job: Job) -> None:
        """In the thread that draws: hand the picture on."""
        self._meters.picture(order.dialect, job.state)
        self.faults = self.faults + 1 if _is_faulty(job) else 0 if job.state == "done" else self.faults
        if not order.is_stored:
            order.settle()
            return
        self._files.submit(self._store, order, number, job)

    def _store(self, order: Order, number: int, job: Job) -> None:
        """Put a picture into the history; in a thread of its own. Where that fails, so does the order."""
        assert self.history is not None  # or `take` had refused
        if order.is_over:
            return
        try:
            if job.state == "done":
                settings = order.settings[number]
                data = as_file(
                    order.spec.finished(job.result()), "png", settings if self._has_settings else None
                )
                order.pictures[number] = self.history.add(order.id, order.client, number, data, settings)
            order.settle()
        except Exception as error:  # such as a full disk
            _log.error("a picture could not be kept", exc_info=error)
            order.cancel()
            order.end("failed", "The picture could not be kept; the server's log says more.")
        order.touch()
        if order.is_over:
            with suppress(sqlite3.Error):  # the next start says of it that it failed
                self.history.end(order.id, order.state, order.error)

    def _forget_old(self) -> None:
        over = [order.id for order in self._orders.values() if order.is_over]
        for number in over[: max(0, len(over) - _MOST_ORDERS)]:
            del self._orders[number]


async def cancel_when_gone(request: Request, order: Order) -> None:
    """Cancel an order as soon as nobody waits for it."""
    gone: Callable[[], Any] = request.is_disconnected
    while not await gone():
        await asyncio.sleep(_POLL_SECONDS)
    order.cancel()


def _wait_for_end(job: Job) -> None:
    """Wait for a job, whatever comes of it."""
    with suppress(Exception):
        job.result(_END_SECONDS)


def _is_faulty(job: Job) -> bool:
    """Whether a job that is over failed, and not for what was asked."""
    try:
        job.result(0)
    except Exception as error:
        return is_our_fault(error)
    return False


def _stopping() -> StatusError:
    return StatusError(
        503, "This server is being stopped. Ask again in a moment.", retry_after=_RETRY_SECONDS
    )


def _renamed(changes: Any, word: Callable[[str], str]) -> Any:
    return (
        {word(str(token)): change for token, change in changes.items()}
        if isinstance(changes, dict)
        else changes
    )
