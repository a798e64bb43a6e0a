"""The training pictures: found, checked, and prepared in a few variants with their masks."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from perfusion.errors import TrainingError

__all__ = ["Picture", "find_pictures", "load_picture", "prepare"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 64_000_000
MIN_SIDE = 16

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A training picture, RGB, and where its object is: an 8-bit mask of the same size, or None for everywhere."""

    path: Path
    image: Image.Image
    mask: Image.Image | None


def find_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name. Raises `TrainingError` when there is no folder or no picture."""
    if not folder.is_dir():
        there = "a file" if folder.exists() else "no such folder"
        raise TrainingError(f"{folder}: {there}; --images expects a folder with pictures of one object")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise TrainingError(f"{folder}: no pictures in it; expected files ending in {', '.join(SUFFIXES)}")
    return found


def open_image(path: Path) -> Image.Image:
    """A picture, upright and decoded; a huge one is refused by its header, before it fills memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            opened = Image.open(path)
        with opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise TrainingError(
                    f"{path}: {width} × {height} pixels, more than the {MAX_PIXELS // 1_000_000} million that are "
                    "read; scale it down"
                )
            opened.load()
            upright = ImageOps.exif_transpose(opened)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise TrainingError(f"{path}: not a readable picture ({error}); remove or replace it") from error
    if min(upright.size) < MIN_SIDE:
        raise TrainingError(f"{path}: {width} × {height} pixels, expected at least {MIN_SIDE} on each side")
    if upright.mode.startswith(("I", "F")):  # Pillow would cut everything above 255 to white
        raise TrainingError(f"{path}: grey in more than 8 bits ({upright.mode}); convert it to 8 bits")
    return upright


def load_picture(path: Path, masks: str | Path) -> Picture:
    """Open a picture and its mask, as `TrainingConfig.masks` says."""
    image = open_image(path)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    lowest, highest = alpha.getextrema() if alpha is not None else (0, 255)
    if highest == 0:
        raise TrainingError(f"{path}: is transparent everywhere; remove it, or flatten it onto a background")
    if lowest == 255:
        alpha = None  # an alpha channel that masks nothing
    mask = None
    if masks == "alpha":
        if alpha is None:
            raise TrainingError(
                f"{path}: has no transparent part to take its mask from; use --masks none, or a folder"
            )
        mask = alpha
    elif masks == "auto":
        mask = alpha
    elif masks != "none":
        mask = load_mask(path, Path(masks), image.size)
    if alpha is not None:  # transparency drawn on grey, not on whatever colours hide below it
        ground = Image.new("RGB", image.size, (127, 127, 127))
        ground.paste(image.convert("RGB"), mask=alpha)
        image = ground
    return Picture(path=path, image=image.convert("RGB"), mask=mask)


def load_mask(path: Path, folder: Path, size: tuple[int, int]) -> Image.Image:
    """The mask in `folder` that has the picture's name, with any suffix; white is the object."""
    if not folder.is_dir():
        there = "a file" if folder.exists() else "no such folder"
        raise TrainingError(
            f"{folder}: {there}; --masks expects auto, alpha, clipseg, none or a folder of masks"
        )
    matches = [
        other
        for other in sorted(folder.glob("*"))
        if other.stem == path.stem and other.suffix.lower() in SUFFIXES
    ]
    if not matches:
        raise TrainingError(f"{folder}: no mask for {path.name}; expected a picture named {path.stem}.png")
    mask = open_image(matches[0]).convert("L")
    if mask.size != size:
        raise TrainingError(
            f"{matches[0]}: {mask.width} × {mask.height} pixels, its picture has {size[0]} × {size[1]}; make them equal"
        )
    return mask


def prepare(
    pictures: Sequence[Picture], resolution: int, variants: int, flip: bool, seed: int
) -> tuple[Array, Array]:
    """Square variants of every picture: the whole of it, then slightly smaller windows of it, half of them mirrored.

    Returns:
        Pictures (pictures · variants, 3, resolution, resolution) in [−1, 1] and masks (…, 1, resolution, resolution)
        in [0, 1], all ones where a picture has no mask.
    """
    rng = random.Random(seed)
    images, masks = [], []
    for picture in pictures:
        side = min(picture.image.size)
        for variant in range(variants):
            window = side if variant == 0 else round(side * rng.uniform(0.9, 1.0))
            left, top = (picture.image.width - window) / 2, (picture.image.height - window) / 2
            if variant:
                left, top = (rng.uniform(0, size - window) for size in picture.image.size)
            box = (left, top, left + window, top + window)
            mirrored = flip and variant % 2 == 1
            images.append(_crop(picture.image, box, resolution, mirrored) * 2 - 1)
            mask = picture.mask or Image.new("L", picture.image.size, 255)
            masks.append(_crop(mask, box, resolution, mirrored))
    return np.stack(images, dtype=np.float32), np.stack(masks, dtype=np.float32)


def _crop(image: Image.Image, box: tuple[float, float, float, float], size: int, mirrored: bool) -> Array:
    """A window of the picture, resampled. (channels, size, size) in [0, 1]."""
    window = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    array: Array = np.asarray(ImageOps.mirror(window) if mirrored else window, np.float32) / np.float32(255)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
