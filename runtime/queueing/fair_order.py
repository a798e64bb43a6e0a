"""Whose turn is next: the higher priority first, and within one priority every client in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["FairOrder"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Ticket(Generic[T]):
    rank: tuple[float, int, int]  # the lowest is served first
    item: T


class FairOrder(Generic[T]):
    """Items of several clients in the order of their turns (start-time fair queuing, Goyal et al. 1996).

    The n-th waiting item of a client stands in round n from the present one: a client with a hundred items does not
    keep another with one waiting for more than a round. It is not for several threads at once.
    """

    def __init__(self) -> None:
        self._tickets: list[_Ticket[T]] = []
        self._rounds: dict[str, int] = {}  # the last round that a client stands in
        self._now = 0  # the round of the last item served
        self._count = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, item: T, *, client: str = "", priority: float = 0) -> None:
        """Put an item behind the others of its client."""
        turn = max(self._now, self._rounds.get(client, 0)) + 1
        self._rounds[client] = turn
        self._count += 1
        self._tickets.append(_Ticket(rank=(-priority, turn, self._count), item=item))
        self._tickets.sort(key=lambda ticket: ticket.rank)

    def pop(self) -> T:
        """Take out the item whose turn it is."""
        ticket = self._tickets.pop(0)
        self._now = max(self._now, ticket.rank[1])
        self._rounds = {client: turn for client, turn in self._rounds.items() if turn > self._now}
        return ticket.item

    def items(self) -> list[T]:
        """All, the next first."""
        return [ticket.item for ticket in self._tickets]

    def remove(self, item: T) -> None:
        """Take one out; nothing happens where it is not there."""
        self._tickets = [ticket for ticket in self._tickets if ticket.item is not item]
