"""Arrays to pictures, and pictures to arrays; files become pictures in perfusion/picture_input.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

__all__ = ["as_levels", "as_mask", "as_pictures", "as_sample", "grid"]

Array = NDArray[np.float32]


def as_pictures(sample: Array) -> list[Image]:
    """(batch, 3, height, width) in [-1, 1], as a VAE decodes it, to RGB pictures; what lies outside is
    clipped.
    """
    from PIL import Image

    levels = np.rint((sample / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    return [Image.fromarray(picture) for picture in np.ascontiguousarray(levels.transpose(0, 2, 3, 1))]


def as_sample(picture: Image, width: int, height: int) -> Array:
    """An RGB picture, resized, as a VAE encodes it: (1, 3, height, width) in [-1, 1]."""
    return as_levels(picture, width, height) * 2 - 1


def as_levels(picture: Image, width: int, height: int) -> Array:
    """An RGB picture, resized, as a ControlNet reads it: (1, 3, height, width) in [0, 1]."""
    resized = picture.resize((width, height), _lanczos())
    levels = np.asarray(resized, np.float32).transpose(2, 0, 1)[None]
    return levels / np.float32(255)


def as_mask(mask: Image, width: int, height: int, downscale: int) -> Array:
    """Where to draw, (1, 1, height / downscale, width / downscale): 1 where the mask, L, is light, else 0."""
    resized = mask.resize((width, height), _lanczos())
    light = np.asarray(resized) >= 128
    return light[::downscale, ::downscale].astype(np.float32)[None, None]


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


def _lanczos() -> Resampling:
    from PIL import Image

    return Image.Resampling.LANCZOS
