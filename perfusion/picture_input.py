"""Pictures and masks that come from outside: how a file becomes an RGB picture, and a mask becomes light and dark.

Training, drawing, sweeps and cards all read through here, so that what one of them takes the others take too. Needs
Pillow and numpy.
"""

from __future__ import annotations

import functools
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps

from perfusion.errors import PictureError

__all__ = [
    "GROUND", "HEIF_SUFFIXES", "MAX_PIXELS", "alpha_of", "as_rgb", "knows_heif", "mask_fault", "mask_of",
    "open_picture", "picture_kind",
]  # fmt: skip

MAX_PIXELS = 120_000_000
"""What phones take has up to 108 million. Decoded that is 0.5 GB; a file of a few kilobytes can claim any number."""

GROUND = (127, 127, 127)
"""What lies under transparency: mid grey, nearly 0 to a VAE."""

_OPAQUE = ("1", "L", "RGB")
_TRANSPARENT = ("LA", "PA", "RGBA", "RGBa")
_CONVERTED = ("RGBX", "CMYK", "YCbCr", "HSV")
_ORIENTATION = 0x0112  # the EXIF tag of how a camera was held
_PROGRAMS = ("EPS",)  # Pillow hands them to an interpreter

HEIF_SUFFIXES = (".heic", ".heif")
"""What phones write, read by the package pillow-heif where it is installed."""

_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's decoders raise for damaged files."""


def open_picture(source: Image.Image | str | Path) -> Image.Image:
    """A picture, or one read from its file: decoded, upright as its camera was held, in 8 bits a channel.

    Returns:
        An image of mode 1, L or RGB; RGBA where some of it may be transparent. The image itself that was given where
        nothing had to be changed.

    Raises:
        PictureError: there is no such file, it is no picture, has more than `MAX_PIXELS` pixels (which is found
            before it is decoded) or none, or is of a mode whose colours are not known.
    """
    if isinstance(source, Image.Image):
        return _in_8_bits(_upright(source, "The picture"), source.format)
    if not isinstance(source, str | Path):
        raise PictureError(f"The picture is {type(source).__name__}, expected a PIL image or a file's path.")
    if Path(source).suffix.lower() in HEIF_SUFFIXES and not knows_heif():
        raise PictureError(
            f'{source} is HEIF, which is read with the package pillow-heif. pip install "perfusion-edge[heif]", or '
            "convert it to JPEG."
        )
    try:
        if not stat.S_ISREG(Path(source).stat().st_mode):  # a folder, or a pipe that would never end
            raise PictureError(f"{source} is not a file, expected a picture.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            opened = Image.open(source)
    except _UNREADABLE as error:
        raise _unreadable(source, error) from error
    with opened:
        return _in_8_bits(_upright(opened, str(source)), opened.format)


@functools.cache
def knows_heif() -> bool:
    """Whether HEIF can be read; Pillow is taught it with the first question."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def picture_kind(path: Path) -> str | None:
    """The format of a file as its first bytes say, "JPEG", whatever its name; None for one that is no picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.format
    except _UNREADABLE:
        return None


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened picture as anybody sees it, RGB: what is transparent shows `GROUND`, whatever colours hide there."""
    alpha = alpha_of(image)
    if alpha is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    ground = Image.new("RGB", image.size, GROUND)
    ground.paste(image.convert("RGB"), mask=alpha)
    return ground


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque an opened picture is, L: 0 … 255; None where all of it is opaque."""
    if image.mode != "RGBA":
        return None
    alpha = image.getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def mask_of(image: Image.Image) -> Image.Image:
    """An opened picture as a mask, L: 255 where it is light, 0 where it is dark, and 0 where it is transparent: on a
    layer that was painted with a white brush the strokes count, and no colour that hides under the rest."""
    light, alpha = image if image.mode == "L" else image.convert("L"), alpha_of(image)
    return light if alpha is None else ImageChops.multiply(light, alpha)


def mask_fault(mask: Image.Image) -> str | None:
    """What keeps a mask, L, from telling one place from another, as the end of "The mask …"; None where it does."""
    levels = np.flatnonzero(mask.histogram())
    lowest, highest = int(levels[0]), int(levels[-1])
    if highest == 1:
        return "holds 0 and 1 where 0 and 255 are expected"
    if highest < 128:
        return "is dark everywhere"
    if lowest >= 128:
        return "is light everywhere"
    return None


def _upright(image: Image.Image, name: str) -> Image.Image:
    """An image of a lawful size, decoded and turned as its EXIF data say."""
    width, height = image.size
    if 0 in image.size:
        raise PictureError(f"{name} has {width} × {height} pixels, expected some.")
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{name} has {width} × {height} pixels, more than the {MAX_PIXELS // 1_000_000} million that are read. "
            "Scale it down."
        )
    if image.format in _PROGRAMS:
        raise PictureError(f"{name} is {image.format}, a program that draws. Save it as a PNG first.")
    try:
        image.load()  # one that was opened is decoded only now
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except _UNREADABLE:  # damaged notes about a picture are no fault of the picture
        return image


def _unreadable(name: object, error: Exception) -> PictureError:
    reason = (getattr(error, "strerror", None) or str(error)).lower().rstrip(".")
    return PictureError(f"{name} cannot be read as a picture: {reason}.")


def _in_8_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    """The same picture in one of four modes: 1, L, RGB, RGBA."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and file_format == "PNG"):  # Pillow 10 calls 16 bits I
        return _of_16_bits(image)
    if mode in _OPAQUE and "transparency" not in image.info:
        return image
    if mode in _OPAQUE or mode in _TRANSPARENT or mode == "P":
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if mode in _CONVERTED:
        return image.convert("RGB")
    raise PictureError(
        f"The picture is of mode {mode}, whose colours are not known. Convert it to RGB first."
    )


def _of_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8; where one level of it is declared transparent, with that."""
    levels = np.asarray(image)
    grey = Image.fromarray((levels >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    picture = grey.convert("RGBA")
    picture.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return picture
