"""The gate that every request passes: access, limits, and headers that go with every answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from anyio import fail_after  # in the caller's own task; asyncio's wait_for makes one for every message
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perfusion.serving.access import Access
from perfusion.serving.answers import StatusError, error_answer
from perfusion.serving.rates import Limits, Rates

__all__ = ["HEADERS", "Gate", "client_of"]

HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
}
"""With every answer that has none of its own; no script runs that is not a file of the page."""

_WRONG_KEY = 15.0  # requests that one with a wrong key counts for
_RETRY_SECONDS = 2
_PICTURES = ("/api/trainings", "/api/masks", "/api/fronts")  # what takes several photos in one body
_TWO_LENGTHS = "The request has both Content-Length and Transfer-Encoding. Send one of them."


class Gate:
    """Lets requests in, or refuses them, before anything of them is read."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits) -> None:
        self._app, self._access, self._limits = app, access, limits
        self._rates = Rates(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = self._with_headers(send)
        headers, path = Headers(scope=scope), scope["path"]
        address = scope["client"][0] if scope.get("client") else ""
        refusal = self._access.refusal(path, headers)
        if refusal is not None:
            price = _WRONG_KEY if refusal.status == 401 else 1.0
            if not self._rates.charge(address, price):
                await _busy(path)(scope, receive, send)
                return
            more = {"WWW-Authenticate": "Bearer, Basic"} if refusal.status == 401 else {}
            answer = error_answer(path, refusal.status, refusal.sentence, headers=more)
            await answer(scope, receive, send)
            return
        client = (self._access.owner(headers) if self._access.keys else None) or address
        scope.setdefault("state", {})["client"] = client
        if not self._rates.enter(client):
            await _busy(path)(scope, receive, send)
            return
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy before us may have read the other one of the two, and taken what follows for another request.
            await error_answer(path, 400, _TWO_LENGTHS, headers={"Connection": "close"})(scope, receive, send)
            self._rates.leave(client)
            return
        try:
            await self._app(scope, self._bounded(path, headers, receive), self._charging(client, send))
        finally:
            self._rates.leave(client)

    def _charging(self, client: str, send: Send) -> Send:
        """`send`, where signing in with a wrong key costs what a wrong key costs elsewhere."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                self._rates.fine(client, _WRONG_KEY)
            await send(message)

        return sent

    def _bounded(self, path: str, headers: Headers, receive: Receive) -> Receive:
        """`receive`, which gives up a body that is too large or too slow; what was said beforehand counts too."""
        most = self._limits.pictures_bytes if path.startswith(_PICTURES) else self._limits.body_bytes
        said = headers.get("content-length", "")
        total = int(said) if said.isdecimal() else 0
        ends = asyncio.get_running_loop().time() + self._limits.body_seconds
        begun = False
        complete = False

        async def bounded() -> Message:
            """The next part of the body."""
            nonlocal total, begun, complete
            if complete:  # what follows is that the client goes away
                return await receive()
            if total > most:
                raise _too_large(most)
            if not begun:
                begun, total = True, 0
            try:
                with fail_after(ends - asyncio.get_running_loop().time()):
                    message = await receive()
            except TimeoutError:
                raise StatusError(408, "The body came too slowly. Send it again.") from None
            total += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if total > most:
                raise _too_large(most)
            return message

        return bounded

    def _with_headers(self, send: Send) -> Send:
        """`send`, with the headers of every answer, which gives up a client that takes nothing."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            with fail_after(self._limits.send_seconds):
                await send(message)

        return sent


def client_of(request: Request) -> str:
    """Whose request it is: the key's holder, or else the address that it comes from. No header says it."""
    return str(request.state.client)


def _busy(path: str) -> ASGIApp:
    return error_answer(
        path, 429, "These are too many requests at once. Try again in a moment.",
        headers={"Retry-After": str(_RETRY_SECONDS)},
    )  # fmt: skip


def _too_large(most: int) -> StatusError:
    return StatusError(413, f"The body is larger than {most >> 20} MiB. Send less.")
