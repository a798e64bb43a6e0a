"""One line of log a request: when, who, what, how it ended, how long it took. No key and no prompt is in it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["JsonLines", "RequestLog", "RequestRecord"]

_log = logging.getLogger("perfusion.serving.requests")
_MOST_PATH = 200


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """What is noted of a request. The query is left out."""

    client: str
    method: str
    path: str
    status: int  # 0: the client went away before an answer
    seconds: float
    sent: int  # bytes of the answer

    def __str__(self) -> str:
        return f"{self.client} {self.method} {self.path} {self.status} {self.seconds * 1000:.1f} ms {self.sent} bytes"


class RequestLog:
    """Notes each request once it is over."""

    def __init__(self, app: ASGIApp, observe: Callable[[RequestRecord], object]) -> None:
        """`observe`: told of each request too."""
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI calls."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, sent = time.perf_counter(), 0, 0

        async def noted(message: Message) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            client = scope.get("state", {}).get("client") or (
                scope["client"][0] if scope.get("client") else "-"
            )
            record = RequestRecord(
                client=client, method=scope["method"], path=_plain(scope["path"])[:_MOST_PATH], status=status,
                seconds=time.perf_counter() - began, sent=sent,
            )  # fmt: skip
            self._observe(record)
            _log.info("%s", record, extra={"request": record})


class JsonLines(logging.Formatter):
    """Records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        facts = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        request = getattr(record, "request", None)
        if isinstance(request, RequestRecord):
            return json.dumps(facts | asdict(request))
        facts["message"] = record.getMessage()
        if record.exc_info:
            facts["trace"] = self.formatException(record.exc_info)
        return json.dumps(facts)


def _plain(path: str) -> str:
    """A path on one line: a client may put anything into it."""
    return "".join(character if character.isprintable() and character != " " else "?" for character in path)
