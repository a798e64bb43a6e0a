"""What stands at the socket from the first moment on: it says "not yet" until the model is open and warm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from perfusion.serving.answers import error_answer
from perfusion.serving.gate import HEADERS

__all__ = ["Doorway"]

_RETRY_SECONDS = 5


class Doorway:
    """An application whose own application comes later.

    `/healthz` says that the process lives; everything else is 503 with `Retry-After` until `open` is done.
    """

    def __init__(
        self,
        make: Callable[[], ASGIApp],
        *,
        when_open: Callable[[], object],
        when_failed: Callable[[], object],
        finish: Callable[[], Awaitable[object]],
    ) -> None:
        """`make`: makes the application, in a thread. One of the next two is called in the event loop afterwards.
        `finish`: waits at the end until nothing is under way."""
        self._make, self._when_open, self._when_failed, self._finish = make, when_open, when_failed, finish
        self._app: ASGIApp | None = None
        self.error: BaseException | None = None  # what `make` has failed with

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's beginning and end, as ASGI calls."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/healthz":
            await PlainTextResponse("ok")(scope, receive, send)
        else:
            headers = {**HEADERS, "Retry-After": str(_RETRY_SECONDS)}
            if scope["path"] == "/":
                headers["Refresh"] = "1"  # a browser that came early asks again by itself
            sentence = "The model is being opened. Try again in a moment."
            answer = error_answer(scope["path"], 503, sentence, headers=headers)
            await answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        opening = asyncio.create_task(self._open())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.wait([opening])
        await self._finish()
        await send({"type": "lifespan.shutdown.complete"})

    async def _open(self) -> None:
        try:
            self._app = await asyncio.to_thread(self._make)
        except BaseException as error:
            self.error = error
            self._when_failed()
        else:
            self._when_open()
