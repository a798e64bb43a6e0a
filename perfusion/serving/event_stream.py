"""Server-sent events: what a page or a client reads while something is drawn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

__all__ = ["KEEPALIVE_SECONDS", "event", "event_stream"]

KEEPALIVE_SECONDS = 15.0
"""After so long without an event a comment is sent, so that nobody between thinks the stream is dead."""


def event(data: Any, name: str | None = None) -> bytes:
    """One event; `data` as JSON, on one line."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"{f'event: {name}{chr(10)}' if name else ''}data: {text}\n\n".encode()


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """An answer of events, kept alive while there is none."""
    return StreamingResponse(
        _kept_alive(events),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _kept_alive(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    following = asyncio.ensure_future(anext(events))
    try:
        while True:
            ready, _ = await asyncio.wait([following], timeout=KEEPALIVE_SECONDS)
            if not ready:
                yield b": keepalive\n\n"
                continue
            try:
                yield following.result()
            except StopAsyncIteration:
                return
            following = asyncio.ensure_future(anext(events))
    finally:
        following.cancel()
