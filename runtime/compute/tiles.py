"""Decoding large latents piece by piece, so that the decoder's memory does not grow with the picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_in_tiles"]

Array = NDArray[np.float32]

_OVERLAP = 4  # of a tile's side, one part in so many is shared with its neighbour


def decode_in_tiles(decode: Callable[[Array], Array], latents: Array, scale: int, tile: int | None) -> Array:
    """What `decode` makes of `latents`, (batch, 3, height · scale, width · scale), computed in square tiles.

    `latents` is (batch, channels, height, width), `tile` a side in latents (4 or more), None for all at once.
    Neighbours share a quarter of their side, and there each fades into the other in a straight line, which hides
    that a decoder normalises over what it sees and so makes each tile of slightly other brightness.
    """
    height, width = latents.shape[2:]
    if tile is None or (height <= tile and width <= tile):
        return decode(latents)
    rows, columns = _starts(height, tile), _starts(width, tile)
    picture = np.zeros((len(latents), 3, height * scale, width * scale), np.float32)
    total = np.zeros((height * scale, width * scale), np.float32)
    for top in rows:
        for left in columns:
            piece = latents[:, :, top : top + tile, left : left + tile]
            weight = np.outer(
                _ramp(top, min(tile, height), height, scale), _ramp(left, min(tile, width), width, scale)
            )
            place = np.s_[top * scale : (top + tile) * scale, left * scale : (left + tile) * scale]
            picture[(..., *place)] += decode(np.ascontiguousarray(piece)) * weight
            total[place] += weight
    return (picture / total).astype(np.float32)


def _starts(length: int, tile: int) -> list[int]:
    """Where the tiles begin along one side: evenly spread, each sharing a quarter or more with the next."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // (tile - tile // _OVERLAP)) + 1
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def _ramp(start: int, tile: int, length: int, scale: int) -> Array:
    """A tile's weight along one side: rising and falling over the shared part, but for the picture's own edges."""
    shared = tile // _OVERLAP * scale
    weight = np.ones(tile * scale, np.float32)
    rise = (np.arange(shared, dtype=np.float32) + 0.5) / max(shared, 1)
    if start > 0:
        weight[:shared] = rise
    if start + tile < length:
        weight[-shared:] = np.minimum(weight[-shared:], rise[::-1])
    return weight
