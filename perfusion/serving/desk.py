"""Between requests over HTTP and the drawing queue: bodies in, jobs of each client, pictures out."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from perfusion.errors import RequestError
from perfusion.runtime import Job, Runtime

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MOST_BYTES", "Desk", "TooLargeError", "encoded", "json_body"]

MOST_BYTES = 32 << 20  # of a body
MOST_PICTURES = 10  # of a request
_SEEDS = 2**32
_POLL_SECONDS = 0.25  # between two looks at whether the client is still there


class TooLargeError(RequestError):
    """A body of more bytes than are read."""


class Desk:
    """Takes orders for pictures and knows whose they are."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._jobs: dict[str, list[Job]] = {}

    def jobs(self, client: str) -> list[Job]:
        """The jobs of a client that are not done."""
        return [job for job in self._jobs.get(client, ()) if not job.done]

    def cancel(self, client: str) -> None:
        """Stop a client's own jobs."""
        for job in self.jobs(client):
            job.cancel()

    async def draw(
        self, request: Request, prompt: str, seed: int | None, count: int, options: dict[str, Any]
    ) -> tuple[list[Image], list[int]]:
        """Pictures of one prompt, and their seeds, which rise from `seed` on (None or below 0: one by chance).

        They are cancelled where the client goes away, or where one of them fails.

        Raises:
            PerfusionError: what `Runtime.submit` and `Job.result` raise.
        """
        if not 1 <= count <= MOST_PICTURES:
            raise RequestError(f"There are {count} pictures to draw, expected 1 to {MOST_PICTURES}.")
        first = secrets.randbelow(_SEEDS - MOST_PICTURES) if seed is None or seed < 0 else seed
        seeds = [first + number for number in range(count)]
        client = client_of(request)
        jobs: list[Job] = []
        try:
            for each in seeds:
                jobs.append(self.runtime.submit(prompt, seed=each, client=client, **options))
                self._jobs.setdefault(client, []).append(jobs[-1])
            watch = asyncio.ensure_future(_cancel_when_gone(request, jobs))
            try:
                return [await job for job in jobs], seeds
            finally:
                watch.cancel()
        finally:
            for job in jobs:
                job.cancel()
            self._forget(client, jobs)

    def _forget(self, client: str, jobs: list[Job]) -> None:
        rest = [job for job in self._jobs.get(client, ()) if job not in jobs]
        if rest:
            self._jobs[client] = rest
        else:
            self._jobs.pop(client, None)


def client_of(request: Request) -> str:
    """Whose request it is: the address it comes from."""
    return request.client.host if request.client else ""


async def json_body(request: Request) -> dict[str, Any]:
    """A request's JSON object.

    Raises:
        TooLargeError: more bytes than `MOST_BYTES`; no more of them are read.
        RequestError: no JSON object.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise TooLargeError(f"The body is larger than {MOST_BYTES >> 20} MiB. Send less.")
    try:
        fields = json.loads(bytes(body))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise RequestError('The body is no JSON object. Send one, such as {"prompt": "a cat"}.')
    return fields


def encoded(picture: Image, kind: str = "png", quality: int | None = None) -> str:
    """A picture's file as base64; `kind` is "png", "jpeg" or "webp", `quality` 0 to 100 for the last two."""
    stream = io.BytesIO()
    options: dict[str, Any] = {} if kind == "png" or quality is None else {"quality": quality}
    picture.save(stream, kind, **options)
    return base64.b64encode(stream.getvalue()).decode()


async def _cancel_when_gone(request: Request, jobs: list[Job]) -> None:
    """Cancel jobs as soon as nobody waits for them."""
    gone: Callable[[], Any] = request.is_disconnected
    while not await gone():
        await asyncio.sleep(_POLL_SECONDS)
    for job in jobs:
        job.cancel()
