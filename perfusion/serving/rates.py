"""How much one client may ask for at once, so that no client is all that a server does."""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["Limits", "Rates"]

_MOST_CLIENTS = 10_000  # that are remembered


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is served to one client."""

    requests: int = 64  # at the same time, event streams too
    rate: float = 50.0  # requests a second, in the mean
    burst: float = 300.0  # requests that may come at once
    body_bytes: int = 32 << 20
    pictures_bytes: int = 256 << 20  # of a training's pictures together
    body_seconds: float = 120.0  # for a body to arrive
    send_seconds: float = 60.0  # for a part of an answer to be taken


class Rates:
    """Counts requests of each client: a bucket of tokens that fills with time, and those under way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tokens: dict[str, tuple[float, float]] = {}  # how many there were, and when
        self._running: dict[str, int] = {}

    def enter(self, client: str) -> bool:
        """Whether one more request of a client is served; if so, `leave` is to follow."""
        if self._running.get(client, 0) >= self._limits.requests or not self.charge(client, 1):
            return False
        self._running[client] = self._running.get(client, 0) + 1
        return True

    def leave(self, client: str) -> None:
        """A request of a client has ended."""
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]

    def charge(self, client: str, price: float) -> bool:
        """Take tokens from a client; False where it has too few, which leaves it those."""
        tokens = self._now(client)
        enough = tokens >= price
        self._put(client, tokens - price if enough else tokens)
        return enough

    def fine(self, client: str, price: float) -> None:
        """Take tokens from a client for what it has done, also where it then owes some."""
        self._put(client, self._now(client) - price)

    def _now(self, client: str) -> float:
        now = time.monotonic()
        tokens, then = self._tokens.get(client, (self._limits.burst, now))
        return min(self._limits.burst, tokens + (now - then) * self._limits.rate)

    def _put(self, client: str, tokens: float) -> None:
        self._tokens.pop(client, None)
        if len(self._tokens) >= _MOST_CLIENTS:
            del self._tokens[next(iter(self._tokens))]  # the one that has not asked for the longest
        self._tokens[client] = (tokens, time.monotonic())
