"""The door of a fleet: it lets requests in, hands each to a replica, and to another one where that dies.

A door has no model and no route of its own but health and counters. What it hands on is answered by the application of
`perfusion.serving`, which is the single server's too.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from perfusion.fleet.fleet_counters import merged
from perfusion.serving.access import Access
from perfusion.serving.answers import StatusError, failure
from perfusion.serving.application import guards
from perfusion.serving.rates import Limits

__all__ = ["Call", "Crew", "ReplicaAnswer", "ReplicaDiedError", "door_application"]

TRIES = 3
"""How often a request is handed out whose replica dies: what kills three is left alone."""

EVERYWHERE = ("/sdapi/v1/interrupt", "/sdapi/v1/skip", "/sdapi/v1/progress")
"""What concerns a client's pictures wherever they are drawn: all replicas are asked."""

_log = logging.getLogger("perfusion.serving.door")
_RETRY_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request as it travels: what ASGI says of it, and its whole body."""

    scope: dict[str, Any]
    body: bytes

    @classmethod
    async def of(cls, scope: Scope, receive: Receive) -> Call:
        """A request, once its body is there."""
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise asyncio.CancelledError
            body += message.get("body", b"")
            if not message.get("more_body", False):
                return cls(scope={name: scope[name] for name in _TRAVELLING if name in scope}, body=body)


_TRAVELLING = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client",
    "server",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReplicaAnswer:
    """What a replica has answered."""

    replica: str
    """Its name."""
    status: int
    body: bytes


class ReplicaDiedError(Exception):
    """A replica has ended before its answer was whole."""


class Crew(Protocol):
    """The replicas, as a door sees them."""

    def answer(self, call: Call) -> AsyncGenerator[Message]:
        """The messages of the answer to a call, by the replica that has the least to do.

        Raises:
            ReplicaDiedError: it died.
            StatusError: all replicas are busy.
        """

    async def answers(self, call: Call) -> Sequence[ReplicaAnswer]:
        """Every replica's answer."""


def door_application(crew: Crew, access: Access, limits: Limits) -> Starlette:
    """The application of a door."""

    async def healthy(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def metrics(request: Request) -> Response:
        call = await Call.of(request.scope, request.receive)
        answers = await crew.answers(call)
        return PlainTextResponse(merged({answer.replica: answer.body.decode() for answer in answers}))

    async def everywhere(request: Request) -> Response:
        call = await Call.of(request.scope, request.receive)
        return _busiest(await crew.answers(call))

    async def failed(request: Request, error: Exception) -> Response:
        return failure(request.url.path, error)

    return Starlette(
        routes=[
            Route("/healthz", healthy), Route("/metrics", metrics),
            *(Route(path, everywhere, methods=["GET", "POST"]) for path in EVERYWHERE),
            Mount("/", _HandOut(crew)),
        ],
        middleware=guards(access, limits, lambda record: None),
        exception_handlers={StatusError: failed, HTTPException: failed, Exception: failed},
    )  # fmt: skip


class _HandOut:
    """Hands requests to replicas."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = await Call.of(scope, receive)
        for tries in range(1, TRIES + 1):
            begun = False
            try:
                async with aclosing(_from_body_on(self._crew.answer(call))) as messages:
                    async for message in messages:
                        begun = True
                        await send(message)
            except ReplicaDiedError:
                _log.warning("a replica died with a request for %s, try %d", call.scope["path"], tries)
                if begun:  # a part of the answer is out: the client must see that the rest is missing
                    raise
            else:
                return
        raise StatusError(
            503, f"{TRIES} replicas died with this request, as when memory runs out. Ask for less at once.",
            retry_after=_RETRY_SECONDS,
        )  # fmt: skip


async def _from_body_on(messages: AsyncGenerator[Message]) -> AsyncGenerator[Message]:
    """An answer's messages, its head held back until some of its body is there: until then it can be had again."""
    async with aclosing(messages):
        head = await anext(messages)
        body = await anext(messages)
        yield head
        yield body
        async for message in messages:
            yield message


def _busiest(answers: Sequence[ReplicaAnswer]) -> Response:
    """Of all replicas' answers that of one which has work for the client, else any."""
    if not answers:
        raise StatusError(503, "No replica is up. Ask again in a moment.", retry_after=_RETRY_SECONDS)

    def jobs(answer: ReplicaAnswer) -> int:
        fields = json.loads(answer.body or b"null")
        return int(fields["state"]["job_count"]) if isinstance(fields, dict) and "state" in fields else 0

    answer = max(answers, key=jobs)
    return Response(answer.body, answer.status, media_type="application/json")
