"""Arrays to pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["as_pictures", "grid"]


def as_pictures(sample: NDArray[np.float32]) -> list[Image]:
    """(batch, 3, height, width) in [-1, 1], as a VAE decodes it, to RGB pictures; what lies outside is
    clipped.
    """
    from PIL import Image

    levels = np.rint((sample / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    return [Image.fromarray(one) for one in np.ascontiguousarray(levels.transpose(0, 2, 3, 1))]


def grid(pictures: list[Image]) -> Image:
    """Pictures of one size in rows and columns, as square as their number allows."""
    from PIL import Image

    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet
