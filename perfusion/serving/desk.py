"""The desk: takes orders for pictures, knows whose they are, and sees them into the drawing queue."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from perfusion.errors import RequestError
from perfusion.runtime import Job, Runtime
from perfusion.runtime.picture_settings import settings_of
from perfusion.serving.answers import StatusError
from perfusion.serving.gate import client_of
from perfusion.serving.history import History
from perfusion.serving.library import Library
from perfusion.serving.order import Order, PictureSpec
from perfusion.serving.picture_encoding import as_file

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Desk", "MOST_PICTURES"]

MOST_PICTURES = 16  # of a request
_SEEDS = 2**32
_POLL_SECONDS = 0.25  # between two looks at whether the client is still there
_RETRY_SECONDS = 5
_MOST_ORDERS = 1000  # that are over and remembered


class Desk:
    """Takes orders of all dialects."""

    def __init__(
        self,
        runtime: Runtime,
        library: Library,
        history: History,
        *,
        settings: bool = True,
        client_queue: int = 64,
    ) -> None:
        """`settings`: whether pictures' files say how they were drawn. `client_queue`: pictures of one client that may
        wait or be drawn."""
        self.runtime, self.library, self.history = runtime, library, history
        self._has_settings, self._client_queue = settings, client_queue
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

    def close(self) -> None:
        """Write what is drawn; nothing is taken afterwards."""
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
        if not 1 <= spec.count <= MOST_PICTURES:
            raise RequestError(f"There are {spec.count} pictures to draw, expected 1 to {MOST_PICTURES}.")
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

    async def draw(self, request: Request, spec: PictureSpec, *, dialect: str) -> tuple[list[Image], Order]:
        """The pictures of an order for which the client waits; they are cancelled where it goes away.

        Raises:
            PerfusionError: what `take` and `Order.results` raise.
        """
        order = await self.take(client_of(request), spec, dialect=dialect)
        watch = asyncio.ensure_future(cancel_when_gone(request, order))
        try:
            return await order.results(), order
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
        spec, library = order.spec, self.library
        seed = spec.seed
        first = secrets.randbelow(_SEEDS - MOST_PICTURES) if seed is None or seed < 0 else seed
        with library.lock:  # the concepts that the settings name are those that are drawn
            prompt = library.words(spec.prompt)
            options = dict(spec.options)
            if changes := options.get("concept_settings"):
                options["concept_settings"] = _renamed(changes, library.word)
            for number, each in enumerate(range(first, first + spec.count)):
                job = self.runtime.submit(
                    prompt, seed=each, exact=spec.exact, client=order.client,
                    callback=partial(order.advance, number), **options,
                )  # fmt: skip
                order.jobs.append(job)
                order.settings.append(settings_of(self.runtime, prompt, each, exact=spec.exact, **options))
        if order.is_stored:
            self.history.begin(order.id, order.client, order.created, order.settings[0])

    def _when_done(self, order: Order, number: int, job: Job) -> None:
        """In the thread that draws: hand the picture on."""
        if not order.is_stored:
            order.settle()
            return
        self._files.submit(self._store, order, number, job)

    def _store(self, order: Order, number: int, job: Job) -> None:
        """Put a picture into the history; in a thread of its own."""
        if job.state == "done":
            settings = order.settings[number]
            data = as_file(job.result(), "png", settings if self._has_settings else None)
            order.pictures[number] = self.history.add(order.id, order.client, number, data, settings)
        order.settle()
        order.touch()
        if order.is_over:
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


def _renamed(changes: Any, word: Callable[[str], str]) -> Any:
    return (
        {word(str(token)): change for token, change in changes.items()}
        if isinstance(changes, dict)
        else changes
    )
