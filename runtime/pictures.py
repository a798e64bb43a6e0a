"""Arrays to pictures, and pictures to arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

__all__ = ["as_mask", "as_pictures", "as_sample", "grid", "open_picture"]

Array = NDArray[np.float32]

_MODES = ("1", "L", "LA", "RGB", "RGBA", "RGBX", "RGBa", "PA", "CMYK", "YCbCr", "HSV")
"""Pillow's modes that have 8 bits a channel and are turned into RGB and grey by it."""

_ORIENTATION = 0x0112  # the EXIF tag of how a camera was held


def as_pictures(sample: Array) -> list[Image]:
    """(batch, 3, height, width) in [-1, 1], as a VAE decodes it, to RGB pictures; what lies outside is
    clipped.
    """
    from PIL import Image

    levels = np.rint((sample / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    return [Image.fromarray(one) for one in np.ascontiguousarray(levels.transpose(0, 2, 3, 1))]


def as_sample(picture: Image, width: int, height: int) -> Array:
    """A picture, resized, as a VAE encodes it: (1, 3, height, width) in [-1, 1]."""
    resized = picture.resize((width, height), _lanczos()).convert("RGB")
    levels = np.asarray(resized, np.float32).transpose(2, 0, 1)[None]
    return levels / np.float32(255) * 2 - 1


def as_mask(picture: Image, width: int, height: int, downscale: int) -> Array:
    """Where to draw, (1, 1, height / downscale, width / downscale): 1 where the picture is light, else 0."""
    resized = picture.resize((width, height), _lanczos()).convert("L")
    light = np.asarray(resized) >= 128
    return light[::downscale, ::downscale].astype(np.float32)[None, None]


def open_picture(source: Image | str | Path) -> Image:
    """A picture, or one read from its file, upright as its camera was held; one with few colours in the colours it
    stands for.

    Raises:
        RequestError: there is no such file, it is no picture, or it is too large to be one.
    """
    from PIL import Image, ImageOps

    name = source if isinstance(source, str | Path) else "The picture"
    if not isinstance(source, str | Path | Image.Image):
        raise RequestError(f"The picture is {type(source).__name__}, expected a PIL image or a file's path.")
    try:
        if isinstance(source, Image.Image):
            source.load()  # one that was opened is read only now
            turned = source.getexif().get(_ORIENTATION, 1) != 1
            picture = ImageOps.exif_transpose(source) if turned else source
        else:
            with Image.open(source) as opened:
                picture = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise RequestError(f"{name} cannot be read as a picture: {reason}.") from error
    if 0 in picture.size:
        raise RequestError(f"{name} has {picture.width} × {picture.height} pixels, expected some.")
    if picture.mode == "P":
        return picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode not in _MODES:
        raise RequestError(
            f"The picture is of mode {picture.mode}, whose colours are not known. Convert it to RGB first."
        )
    return picture


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
