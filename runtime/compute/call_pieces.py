"""A call's rows in pieces of few lengths: what a library compiles for each length is then compiled a few times only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["call_pieces", "joined", "piece_shapes", "piece_slices"]

Feeds = Mapping[str, NDArray[Any]]

_SHARED = ("concept_keys", "concept_values", "concept_embeddings")  # by all rows of a call


def piece_slices(rows: int, most: int) -> list[slice]:
    """Slices over all rows whose lengths are powers of two up to `most`, the longest first."""
    slices, start = list[slice](), 0
    while start < rows:
        length = min(most, 1 << ((rows - start).bit_length() - 1))
        slices.append(slice(start, start + length))
        start += length
    return slices


def call_pieces(feeds: Feeds, rows: int, most: int) -> Iterator[Feeds]:
    """The feeds of each piece; what is not one for each row goes with every piece."""
    for part in piece_slices(rows, most):
        yield {
            name: array if name in _SHARED or len(array) != rows else array[part]
            for name, array in feeds.items()
        }


def piece_shapes(
    shapes: Mapping[str, tuple[int, ...]], rows: int, most: int
) -> list[dict[str, tuple[int, ...]]]:
    """The shapes that the pieces of a call have, each once."""
    lengths = {part.stop - part.start for part in piece_slices(rows, most)}
    return [
        {
            name: shape if name in _SHARED or shape[0] != rows else (length, *shape[1:])
            for name, shape in shapes.items()
        }
        for length in sorted(lengths, reverse=True)
    ]


def joined(answers: list[dict[str, NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
    """The answers to the pieces of a call as one."""
    if len(answers) == 1:
        return answers[0]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
