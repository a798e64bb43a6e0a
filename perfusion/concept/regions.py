"""Where in a picture each reading of its prompt is read: bands, boxes and masks as maps that share every place.

Maps are (regions, height, width) of the latents' size, at least 0, and sum to 1 at every place; docs/method.md has the
formula that they stand in. Boxes are shares of the picture's width and height, from its upper left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

__all__ = ["RAMP", "Box", "Region", "bands", "box_map", "shared"]

Array = NDArray[np.float32]
Box = tuple[float, float, float, float]
"""left, top, right, bottom, from 0 to 1."""

RAMP = 1 / 8
"""Over which share of the picture one region passes into the next: half of it on either side of the border."""


@dataclass(frozen=True, eq=False)
class Region:
    """Where a thing of the prompt is to be: within a box or under the light parts of a mask, or wherever bands put it.

    Raises:
        RequestError: a word that is none, a box and a mask, or a box that is empty or leaves the picture.
    """

    word: str  # a concept's token, or words of the prompt
    box: Box | None = None
    mask: Image | Path | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.word, str) or not self.word.strip():
            raise RequestError(
                f"A region's word is {self.word!r}, expected a concept's token or words of the prompt."
            )
        if self.box is not None and self.mask is not None:
            raise RequestError(f"The region of {self.word} has a box and a mask, expected one of them.")
        if self.box is not None:
            object.__setattr__(self, "box", _checked_box(self.word, self.box))


def bands(count: int, height: int, width: int) -> Array:
    """Upright bands of equal width from left to right, (count, height, width), with ramps between them."""
    centres = (np.arange(width) + 0.5) / width
    borders = np.arange(1, count) / count
    # how much of a place lies to the right of each border: 0 before its ramp, 1 behind it
    passed = np.clip((centres[None, :] - borders[:, None]) / RAMP + 0.5, 0, 1)
    steps = np.concatenate([np.ones((1, width)), passed, np.zeros((1, width))])
    rows = np.minimum.accumulate(steps[:-1], axis=0) - np.minimum.accumulate(steps, axis=0)[1:]
    return np.broadcast_to(rows[:, None, :], (count, height, width)).astype(np.float32)


def box_map(box: Box, height: int, width: int) -> Array:
    """(height, width): 1 within a box, falling over its ramp to 0; no ramp where it ends with the picture."""
    left, top, right, bottom = box
    across, down = _span(left, right, width), _span(top, bottom, height)
    return (down[:, None] * across[None, :]).astype(np.float32)


def shared(maps: Sequence[Array], whole: float = 0.0) -> Array:
    """Maps of things made to sum to 1, the first the whole prompt's: (1 + len(maps), height, width).

    Overlaps are shared by the maps' weights. The whole prompt has what none of them covers, and `whole` of every place.
    """
    stacked = np.clip(np.stack(maps), 0, 1).astype(np.float64)
    total = stacked.sum(0)
    stacked = stacked / np.maximum(total, 1.0) * (1 - whole)
    return np.concatenate([1 - stacked.sum(0, keepdims=True), stacked]).clip(0, 1).astype(np.float32)


def _span(start: float, end: float, length: int) -> NDArray[np.float64]:
    """(length,) 1 between two ends, each with a ramp around it unless it is the picture's own border."""
    centres = (np.arange(length) + 0.5) / length
    rising = np.clip((centres - start) / RAMP + 0.5, 0, 1) if start > 0 else np.ones(length)
    falling = np.clip((end - centres) / RAMP + 0.5, 0, 1) if end < 1 else np.ones(length)
    return np.minimum(rising, falling)


def _checked_box(word: str, box: Any) -> Box:
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError):
        left = top = right = bottom = float("nan")
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise RequestError(
            f"The box of {word} is {box!r}, expected left, top, right, bottom as shares of the picture from 0 to 1, "
            "such as (0, 0, 0.5, 1) for its left half."
        )
    return (left, top, right, bottom)
