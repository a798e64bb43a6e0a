"""The training pictures: found, checked, and prepared in a few variants with their masks."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageOps

from perfusion.errors import PictureError, TrainingError
from perfusion.picture_input import alpha_of, as_rgb, mask_fault, mask_of, open_picture
from perfusion.training.masks import HIGH, LOW

__all__ = ["Picture", "find_pictures", "load_picture", "prepare"]

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff")
PHOTO_SUFFIXES = (
    ".heic", ".heif", ".avif", ".jxl", ".svg", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
)  # fmt: skip
"""Pictures that are not read and that Pillow may not know by name."""
MIN_SIDE = 16
NAMED = 6
"""More files than this are not listed one by one."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A training picture, RGB, and where its object is: an 8-bit mask of the same size, or None for everywhere."""

    path: Path
    image: Image.Image
    mask: Image.Image | None


def find_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name. Hidden files are passed over; pictures of other kinds are named.

    Raises:
        TrainingError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        there = "is a file" if folder.exists() else "is not there"
        raise TrainingError(f"{folder} {there}, expected a folder with pictures of one object (--images).")
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    pictures = [path for path in visible if path.suffix.lower() in SUFFIXES]
    others = [path.name for path in visible if path.suffix.lower() in _other_suffixes()]
    if not pictures:
        there = f"there are {_names(others)}, " if others else ""
        raise TrainingError(
            f"{folder} has no pictures to learn from: {there}expected files ending in {', '.join(SUFFIXES)}."
        )
    if others:
        logger.warning(
            "%s: %s %s not used; pictures to learn from end in %s, so convert them",
            folder, _names(others), "is" if len(others) == 1 else "are", ", ".join(SUFFIXES),
        )  # fmt: skip
    return pictures


def _other_suffixes() -> set[str]:
    """What else ends a picture's name."""
    return (set(Image.registered_extensions()) | set(PHOTO_SUFFIXES)) - set(SUFFIXES)


def _names(names: Sequence[str]) -> str:
    """ "2.gif, 5.heic", or the first of many and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def load_picture(path: Path, masks: str | Path) -> Picture:
    """Open a picture and its mask, as `TrainingConfig.masks` says.

    Transparency is drawn on grey, and what is transparent is no part of the object, whatever a mask says of it.

    Raises:
        TrainingError: the picture or its mask cannot be read, or there is no mask where one was asked for.
    """
    opened = _opened(path)
    alpha = alpha_of(opened)
    if alpha is not None and alpha.getextrema() == (0, 0):
        raise TrainingError(f"{path} is transparent everywhere. Remove it, or flatten it onto a background.")
    mask = None
    if masks in ("alpha", "auto", "clipseg"):
        mask = _cut_out(alpha)
        if masks == "alpha" and mask is None:
            raise TrainingError(
                f"{path} has no transparent part to take its mask from, expected {1 - HIGH:.0%} of it or more. Use "
                "--masks none, or a folder."
            )
    elif masks != "none":
        mask = load_mask(path, Path(masks), opened.size)
        if mask is not None and alpha is not None:
            mask = ImageChops.multiply(mask, alpha)
    return Picture(path=path, image=as_rgb(opened), mask=mask)


def load_mask(path: Path, folder: Path, size: tuple[int, int]) -> Image.Image | None:
    """The mask in `folder` that has the picture's name, with any suffix: white is the object, on a transparent layer
    the strokes are. None, with a warning, for one that covers nearly nothing or nearly everything.

    Raises:
        TrainingError: there is no such mask, or it cannot be read.
    """
    if not folder.is_dir():
        there = "is a file" if folder.exists() else "is not there"
        raise TrainingError(
            f"{folder} {there}; --masks expects auto, alpha, clipseg, none or a folder of masks."
        )
    matches = [
        other
        for other in sorted(folder.iterdir())
        if other.stem == path.stem and other.suffix.lower() in SUFFIXES
    ]
    if not matches:
        raise TrainingError(
            f"{folder} has no mask for {path.name}, expected a picture named {path.stem}.png."
        )
    mask = mask_of(_opened(matches[0]))
    if mask.size != size:
        raise TrainingError(
            f"{matches[0]} has {mask.width} × {mask.height} pixels and its picture {size[0]} × {size[1]}. Make them "
            "equal."
        )
    if mask.getextrema()[1] == 1:
        raise TrainingError(f"{matches[0]} {mask_fault(mask)}. Multiply it by 255.")
    return _believed(mask, matches[0])


def _opened(path: Path) -> Image.Image:
    try:
        image = open_picture(path)
    except PictureError as error:
        raise TrainingError(f"{path.name}: {error} Remove or replace it.") from error
    if min(image.size) < MIN_SIDE:
        raise TrainingError(
            f"{path} has {image.width} × {image.height} pixels, expected at least {MIN_SIDE} on each side."
        )
    return image


def _cut_out(alpha: Image.Image | None) -> Image.Image | None:
    """Alpha as a mask; None where it cuts out no object, such as one erased pixel or a shadow's rim."""
    return alpha if alpha is not None and LOW <= _cover(alpha) <= HIGH else None


def _believed(mask: Image.Image, path: Path) -> Image.Image | None:
    """The mask, with a word about one that looks inverted; None, with a word, for one that tells nothing."""
    cover = _cover(mask)
    if not LOW <= cover <= HIGH:
        logger.warning(
            "%s: the mask covers %.0f%% of the picture, expected %.0f%% to %.0f%%; all of the picture counts instead",
            path, 100 * cover, 100 * LOW, 100 * HIGH,
        )  # fmt: skip
        return None
    if cover > 0.5 and _rim(mask) > HIGH:
        logger.warning(
            "%s: the mask is light all around and covers %.0f%% of the picture; white is the object, so invert it if "
            "the object is the dark part", path, 100 * cover,
        )  # fmt: skip
    return mask


def _cover(mask: Image.Image) -> float:
    """The share of a mask that is light."""
    return float(np.mean(np.asarray(mask) > 127))


def _rim(mask: Image.Image) -> float:
    """The share of a mask's outermost pixels that is light."""
    levels = np.asarray(mask)
    return float(np.mean(np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]]) > 127))


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
