"""onnxruntime's arena, played through with the sizes of one run: what it takes from the system, and what is touched.

A graph's arrays never need more than their sum while they live, but an arena cuts them out of regions that it grows
by doubling and never gives back, and pieces of different regions do not join. The difference is up to a third.
The rules are those of onnxruntime's "BFC" arena (best fit with coalescing) with its default settings.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["ArenaUse", "Event", "live_peak", "play"]

Event = tuple[int, int]
"""An array's number, and the bytes it takes; 0 bytes give it back."""

_LEAST = 256
_FIRST_REGION = 1 << 20
_LARGEST_DOUBLING = 1 << 30
_MOST_WASTE = 128 << 20  # a piece this much too large is cut even when less than twice the size asked for
_PAGE = 4096
_MOST_PLAYED = 1 << 38  # bytes: more than any device has, and every page of them has a mark here


@dataclass(frozen=True, kw_only=True)
class ArenaUse:
    """What an arena took: `reserved` bytes of regions, `touched` bytes of the pages in them that were written."""

    reserved: int
    touched: int


class _Arena:
    """Pieces are (size, region, start); the free ones stand in order of size, then of place."""

    def __init__(self) -> None:
        self.free: list[tuple[int, int, int]] = []
        self.used: dict[int, tuple[int, int, int]] = {}
        self.pages: list[np.ndarray[tuple[int], np.dtype[np.bool_]]] = []
        self.reserved = 0
        self._next_region = _FIRST_REGION

    def take(self, array: int, size: int) -> None:
        """Give an array its bytes: the smallest free piece that holds them, cut where much would be left over."""
        rounded = -(-max(size, 1) // _LEAST) * _LEAST
        at = bisect_left(self.free, (rounded, -1, -1))
        if at == len(self.free):
            self._extend(rounded)
            at = bisect_left(self.free, (rounded, -1, -1))
        length, region, start = self.free.pop(at)
        if length >= 2 * rounded or length - rounded >= _MOST_WASTE:
            insort(self.free, (length - rounded, region, start + rounded))
            length = rounded
        self.used[array] = (length, region, start)
        self.pages[region][start // _PAGE : -(-(start + size) // _PAGE)] = True

    def give(self, array: int) -> None:
        """Take an array's bytes back, joined with the free pieces beside them."""
        size, region, start = self.used.pop(array)
        for piece in [block for block in self.free if block[1] == region]:
            if piece[2] + piece[0] == start:
                self.free.remove(piece)
                size, start = size + piece[0], piece[2]
            elif piece[2] == start + size:
                self.free.remove(piece)
                size += piece[0]
        insort(self.free, (size, region, start))

    def _extend(self, least: int) -> None:
        grown = False
        while least > self._next_region:
            self._next_region *= 2
            grown = True
        size = self._next_region
        if not grown:
            self._next_region = min(2 * self._next_region, _LARGEST_DOUBLING)
        insort(self.free, (size, len(self.pages), 0))
        self.pages.append(np.zeros(-(-size // _PAGE), bool))
        self.reserved += size


def live_peak(events: Iterable[Event]) -> int:
    """Bytes of the arrays alive at the fullest moment."""
    live = peak = 0
    sizes: dict[int, int] = {}
    for array, size in events:
        live += size if size else -sizes.pop(array)
        if size:
            sizes[array] = size
        peak = max(peak, live)
    return peak


def play(events: Iterable[Event], runs: int = 2) -> ArenaUse:
    """Play the arrays of some runs in a row; from the second on an arena seldom grows any more.

    What takes more than 256 GiB is summed instead.
    """
    arena, sequence = _Arena(), list(events)
    if (total := live_peak(sequence)) > _MOST_PLAYED:
        return ArenaUse(reserved=total, touched=total)
    for _ in range(runs):
        for array, size in sequence:
            if size:
                arena.take(array, size)
            else:
                arena.give(array)
    return ArenaUse(reserved=arena.reserved, touched=sum(int(pages.sum()) for pages in arena.pages) * _PAGE)
