"""Signing in: the page gives the key once and gets a cookie, since event streams and pictures send no Bearer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.serving.access import COOKIE, COOKIE_SECONDS, Access
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import json_body
from perfusion.serving.body_fields import text_of

__all__ = ["sign_in_routes"]


def sign_in_routes(access: Access) -> list[Route]:
    """The routes of signing in and out."""

    async def login(request: Request) -> Response:
        """A cookie for the right key."""
        key = text_of(await json_body(request), "key")
        answer = JSONResponse({"key": bool(access.keys)})
        if not access.keys:
            return answer
        if access.owner_of(key.encode()) is None:
            raise StatusError(401, "This key is wrong.", field="key")
        answer.set_cookie(
            COOKIE, access.cookie(key), max_age=COOKIE_SECONDS, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    async def logout(request: Request) -> Response:
        """The cookie taken back."""
        answer = JSONResponse({})
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return [Route("/api/login", login, methods=["POST"]), Route("/api/logout", logout, methods=["POST"])]
