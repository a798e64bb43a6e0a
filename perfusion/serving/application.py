"""The server as one ASGI application: routes of all dialects, the rules of access, errors as objects."""

from __future__ import annotations

import logging
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from perfusion.errors import BusyError, CancelledError, PerfusionError, RequestError
from perfusion.runtime import Runtime
from perfusion.serving.access import Access
from perfusion.serving.desk import Desk, TooLargeError
from perfusion.serving.openai_images import error_object, openai_routes
from perfusion.serving.webui import webui_routes

__all__ = ["make_application"]

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 5
_SECURE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def make_application(runtime: Runtime, access: Access) -> Starlette:
    """The application that draws with a runtime for those whom `access` lets in."""
    desk = Desk(runtime)

    async def healthy(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def failed(request: Request, error: Exception) -> Response:
        return _failure(request.url.path, error)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(_metrics(runtime))

    return Starlette(
        routes=[
            Route("/healthz", healthy), Route("/readyz", healthy), Route("/metrics", metrics),
            *openai_routes(desk), *webui_routes(desk),
        ],
        middleware=[Middleware(_Gate, access=access)],
        exception_handlers={PerfusionError: failed, HTTPException: failed, Exception: failed},
    )  # fmt: skip


class _Gate:
    """Lets requests in, or refuses them, before anything of them is read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._access.refusal(scope["path"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, sentence = refusal
        headers = {"WWW-Authenticate": "Bearer, Basic"} if status == 401 else {}
        await _answer(scope["path"], status, sentence, headers)(scope, receive, send)


def _failure(path: str, error: Exception) -> Response:
    """An error as an object of the dialect it was asked in, never as a traceback."""
    if isinstance(error, HTTPException):
        return _answer(path, error.status_code, f"{error.detail}.")
    if isinstance(error, BusyError):
        return _answer(path, 429, str(error), {"Retry-After": str(_RETRY_SECONDS)})
    if isinstance(error, RequestError):
        return _answer(path, 413 if isinstance(error, TooLargeError) else 400, str(error))
    if isinstance(error, CancelledError):
        return _answer(path, 499, str(error))
    _log.error("a request for %s failed", path, exc_info=error)
    message = (
        str(error) if isinstance(error, PerfusionError) else "This server has failed; its log says more."
    )
    return _answer(path, 500, message, {"x-should-retry": "false"})


def _answer(path: str, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body: dict[str, Any] = error_object(status, message)
    if path.startswith("/sdapi/"):
        body = {"error": body["error"]["type"], "detail": message, "body": "", "errors": message}
    return JSONResponse(body, status, headers={**_SECURE_HEADERS, **(headers or {})})


def _metrics(runtime: Runtime) -> str:
    """Counters in Prometheus' text format."""
    lines = [
        "# TYPE perfusion_queue_waiting gauge",
        f"perfusion_queue_waiting {runtime.queue.waiting}",
        "# TYPE perfusion_unet_calls_total counter",
    ]
    for call, number in runtime.queue.calls.items():
        labels = f'pictures="{call.pictures}",concepts="{call.concepts}",steps="{call.steps}"'
        lines.append(f"perfusion_unet_calls_total{{{labels}}} {number}")
    return "\n".join(lines) + "\n"
