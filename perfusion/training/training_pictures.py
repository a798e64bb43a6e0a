"""The training pictures, opened and checked, each with its mask."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from perfusion.errors import PictureError, TrainingError
from perfusion.picture_input import (
    alpha_of,
    as_rgb,
    mask_fault,
    mask_of,
    open_picture,
)
from perfusion.training.masks import HIGH, LOW
from perfusion.training.picture_folder import SUFFIXES

__all__ = ["Box", "Picture", "load_picture"]

logger = logging.getLogger(__name__)

MIN_SIDE = 16
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A training picture, RGB, and where its object is: an 8-bit mask of the same size, or None for everywhere."""

    path: Path
    image: Image.Image
    mask: Image.Image | None
    box: Box | None = None
    """Where the object was found in a picture without a mask; None: nobody looked, or nothing was found."""


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
