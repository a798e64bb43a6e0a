"""Answers to what cannot be served: every error is an object of the dialect it was asked in, never a traceback."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.errors import BusyError, CancelledError, ConceptError, PerfusionError, RequestError

__all__ = ["StatusError", "error_answer", "error_object", "failure", "is_our_fault", "refused_routes"]

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 5


class StatusError(RequestError):
    """A request that is refused with a status of its own."""

    def __init__(
        self, status: int, message: str, *, field: str | None = None, retry_after: int | None = None
    ) -> None:
        """`field`: what in the request is at fault. `retry_after`: seconds after which it may be served."""
        super().__init__(message)
        self.status, self.field, self.retry_after = status, field, retry_after


def failure(path: str, error: Exception) -> Response:
    """The answer to a request for `path` that ended with an error."""
    if isinstance(error, StatusError):
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return error_answer(path, error.status, str(error), error.field, headers)
    if isinstance(error, HTTPException):
        return error_answer(path, error.status_code, f"{str(error.detail).rstrip('.')}.")
    if isinstance(error, BusyError):
        return error_answer(path, 429, str(error), headers={"Retry-After": str(_RETRY_SECONDS)})
    if isinstance(error, CancelledError):
        return error_answer(path, 499, str(error))
    if not is_our_fault(error):
        return error_answer(path, 400, str(error))
    _log.error("a request for %s failed", path, exc_info=error)
    message = (
        str(error) if isinstance(error, PerfusionError) else "This server has failed; its log says more."
    )
    return error_answer(path, 500, message, headers={"x-should-retry": "false"})


def refused_routes(status: int, reason: str, *paths: str) -> list[Route]:
    """Routes that this server has not, answered with the reason."""

    async def refuse(request: Request) -> Response:
        raise StatusError(status, reason)

    return [Route(path, refuse, methods=["GET", "POST", "PATCH", "DELETE"]) for path in paths]


def error_answer(
    path: str, status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error as the clients of a path's dialect read it."""
    kind = _kind(status)
    body: dict[str, Any]
    if path.startswith("/sdapi/"):
        body = {"error": kind, "detail": message, "body": "", "errors": message}
    elif path.startswith("/v1/"):
        body = error_object(status, message, field)
    else:
        body = {"error": {"message": message, "type": kind, "field": field}}
    return JSONResponse(body, status, headers=headers)


def error_object(status: int, message: str, field: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": _kind(status), "param": field, "code": None}}


def _kind(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")


def is_our_fault(error: BaseException) -> bool:
    """Whether an error is the server's own: anything but a request or a concept that cannot be used."""
    return not isinstance(error, RequestError | ConceptError | BusyError | CancelledError)
