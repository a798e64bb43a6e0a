"""`/api/pictures`: the history over HTTP, to each client his own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import json_body
from perfusion.serving.body_fields import flag_of, number_of, text_of, whole_of
from perfusion.serving.gate import client_of
from perfusion.serving.history import History, StoredPicture

__all__ = ["picture_routes"]

_MOST = 500  # pictures of one answer


def picture_routes(history: History) -> list[Route]:
    """The routes of the history."""

    async def pictures(request: Request) -> Response:
        query: dict[str, Any] = dict(request.query_params)
        favourite = flag_of(query, "favourite") if query.get("favourite") else None
        listed = await asyncio.to_thread(
            history.pictures, client_of(request), search=text_of(query, "search"), favourite=favourite,
            before=number_of(query, "before"), limit=max(1, min(_MOST, whole_of(query, "limit", 100) or 1)),
        )  # fmt: skip
        return JSONResponse([_facts(picture) for picture in listed])

    async def file(request: Request) -> Response:
        picture = await asyncio.to_thread(_own, history, request)
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        try:
            data = await asyncio.to_thread(history.file(picture).read_bytes)
        except FileNotFoundError:  # it went meanwhile
            raise _gone() from None
        return Response(data, media_type="image/png", headers=headers)

    async def change(request: Request) -> Response:
        fields = await json_body(request)
        picture = await asyncio.to_thread(_own, history, request)
        await asyncio.to_thread(history.mark, picture, flag_of(fields, "favourite"))
        return JSONResponse(_facts(await asyncio.to_thread(_own, history, request)))

    async def remove(request: Request) -> Response:
        await asyncio.to_thread(history.remove, await asyncio.to_thread(_own, history, request))
        return Response(status_code=204)

    methods: dict[str, Callable[[Request], Any]] = {"GET": file, "PATCH": change, "DELETE": remove}
    return [
        Route("/api/pictures", pictures),
        *(Route("/api/pictures/{id}", answer, methods=[method]) for method, answer in methods.items()),
    ]


def _own(history: History, request: Request) -> StoredPicture:
    picture = history.picture(client_of(request), request.path_params["id"])
    if picture is None:
        raise _gone()
    return picture


def _gone() -> StatusError:
    return StatusError(404, "There is no such picture of yours; it may have expired.")


def _facts(picture: StoredPicture) -> dict[str, Any]:
    """What clients are told of a picture; the times are seconds since 1970."""
    return {
        "id": picture.id, "url": f"/api/pictures/{picture.id}", "job": picture.job, "created": picture.created,
        "prompt": picture.prompt, "settings": picture.settings, "bytes": picture.size,
        "width": picture.settings["width"], "height": picture.settings["height"], "seed": picture.settings["seed"],
        "favourite": picture.is_favourite, "expires": picture.expires, "expires_soon": picture.expires_soon,
    }  # fmt: skip
