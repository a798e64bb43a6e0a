"""The square windows of the training pictures: what the base model is shown of them, with the masks."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from perfusion.picture_input import GROUND
from perfusion.training.training_pictures import Box, Picture

__all__ = ["prepare"]

Array = npt.NDArray[np.float32]


def prepare(
    pictures: Sequence[Picture], resolution: int, variants: int, flip: bool, seed: int
) -> tuple[Array, Array]:
    """Square variants of every picture: the whole of it, then slightly smaller windows of it, half of them mirrored.

    Of a picture that is not square the whole is its middle, or where its object is: windows keep the box of the object
    in view. A window that reaches over the picture's edge, for an object longer than the shorter side, shows `GROUND`
    there, which is no part of the object.

    Returns:
        Pictures (pictures · variants, 3, resolution, resolution) in [−1, 1] and masks (…, 1, resolution, resolution)
        in [0, 1], all ones where a picture has no mask.
    """
    rng = random.Random(seed)
    images, masks = [], []
    for picture in pictures:
        object_box = picture.box or _mask_box(picture.mask)
        side = min(picture.image.size)
        if object_box is not None:
            longest = max(object_box[2] - object_box[0], object_box[3] - object_box[1])
            side = max(side, min(longest, max(picture.image.size)))
        for variant in range(variants):
            window = side if variant == 0 else round(side * rng.uniform(0.9, 1.0))
            ranges = [
                _starts(size, window, ends)
                for size, ends in zip(picture.image.size, _ends(object_box), strict=True)
            ]
            left, top = (rng.uniform(*span) if variant else middle for span, middle in ranges)
            box = (left, top, left + window, top + window)
            mirrored = flip and variant % 2 == 1
            images.append(_crop(picture.image, box, resolution, mirrored, GROUND) * 2 - 1)
            mask = picture.mask or Image.new("L", picture.image.size, 255)
            masks.append(_crop(mask, box, resolution, mirrored, 0))
    return np.stack(images, dtype=np.float32), np.stack(masks, dtype=np.float32)


def _mask_box(mask: Image.Image | None) -> Box | None:
    """Where a mask is light."""
    return None if mask is None else mask.point([255 * (level > 127) for level in range(256)]).getbbox()


def _ends(box: Box | None) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """A box as its ends along both sides."""
    return (None, None) if box is None else ((box[0], box[2]), (box[1], box[3]))


def _starts(size: int, window: int, ends: tuple[int, int] | None) -> tuple[tuple[float, float], float]:
    """Where a window may begin along one side, and where the one of the whole picture does."""
    low, high = min(0.0, float(size - window)), max(0.0, float(size - window))
    centre = (size - window) / 2
    if size < window:  # it reaches over both edges
        return (centre, centre), centre
    if ends is None:
        return (low, high), centre
    first, last = max(low, ends[1] - window), min(high, ends[0])
    if first > last:  # the object is longer than the window: as much of it as there is room for
        first, last = min(max(low, ends[0]), high), max(low, min(ends[1] - window, high))
        first, last = min(first, last), max(first, last)
    return (first, last), centre if first <= centre <= last else (first + last) / 2


def _crop(
    image: Image.Image, box: tuple[float, float, float, float], size: int, mirrored: bool, ground: object
) -> Array:
    """A window of the picture, resampled. (channels, size, size) in [0, 1]."""
    over = int(np.ceil(max(0.0, -box[0], -box[1], box[2] - image.width, box[3] - image.height)))
    if over:
        canvas = Image.new(image.mode, (image.width + 2 * over, image.height + 2 * over), ground)  # type: ignore[arg-type]
        canvas.paste(image, (over, over))
        image, box = canvas, (box[0] + over, box[1] + over, box[2] + over, box[3] + over)
    window = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    array: Array = np.asarray(ImageOps.mirror(window) if mirrored else window, np.float32) / np.float32(255)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
