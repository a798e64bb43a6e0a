"""Where the object is in pictures that are not square and have no mask, so that their windows do not miss it.

The whole picture is laid on a square, the base model's attention (or the segmenter) says where the superclass is, and
the middle nine tenths of that, along each side, are the object's box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from perfusion.base.base_model import BaseModel
from perfusion.picture_input import GROUND
from perfusion.training.config import TrainingConfig
from perfusion.training.masks import HIGH, LOW
from perfusion.training.placement import Placement
from perfusion.training.samples import encode_windows, object_maps
from perfusion.training.training_pictures import Box, Picture

__all__ = ["locate_objects", "object_masks"]

SQUARE = 1.1
"""Up to this ratio of its sides a picture's middle shows nearly all of it, and nobody needs to look."""
OUTER = 0.05
"""The share of the object that lies outside its box at each end: scattered positions would stretch it over all."""

Array = npt.NDArray[np.float32]


def locate_objects(
    base: BaseModel, pictures: Sequence[Picture], subject: Sequence[Sequence[int]], config: TrainingConfig,
    placement: Placement, say: Callable[[str], None],
) -> list[Picture]:  # fmt: skip
    """The pictures, and a `Picture.box` in those that are long or high and have no mask.

    Args:
        subject: the superclass's token ids for each text encoder.
        say: told of which pictures the middle is taken because nothing was found.
    """
    rows = [at for at, picture in enumerate(pictures) if _is_long(picture)]
    located = list(pictures)
    if not rows or config.masks not in ("auto", "clipseg"):
        return located
    maps = _whole_maps(base, [pictures[at] for at in rows], subject, config, placement)
    for at, values in zip(rows, maps, strict=True):
        box = _box(values, pictures[at].image.size)
        located[at] = replace(pictures[at], box=box)
    missed = [pictures[at].path.name for at in rows if located[at].box is None]
    if missed:
        say(f"no {config.superclass} was found in {', '.join(missed)}; the middle is learned from")
    return located


def object_masks(
    base: BaseModel, pictures: Sequence[Picture], subject: Sequence[Sequence[int]], config: TrainingConfig,
    placement: Placement,
) -> list[Image.Image]:  # fmt: skip
    """Where the object is in each picture, whatever masks came with them: 8-bit grey of the picture's size, white
    all over where what was found cannot be believed.

    Args:
        subject: the superclass's token ids for each text encoder.
    """
    masks = []
    for picture, values in zip(
        pictures, _whole_maps(base, pictures, subject, config, placement), strict=True
    ):
        inner = _inner(values, picture.image.size)
        if not LOW <= float((inner > 0.5).mean()) <= HIGH:
            masks.append(Image.new("L", picture.image.size, 255))
            continue
        levels = Image.fromarray(np.round(inner * 255).astype(np.uint8))
        masks.append(levels.resize(picture.image.size, Image.Resampling.BILINEAR))
    return masks


def _whole_maps(
    base: BaseModel, pictures: Sequence[Picture], subject: Sequence[Sequence[int]], config: TrainingConfig,
    placement: Placement,
) -> Array:  # fmt: skip
    """Soft masks (n, side, side) of whole pictures, each on a square."""
    squares = np.stack([_on_square(picture.image, base.resolution) for picture in pictures])
    pixels = torch.from_numpy(squares.transpose(0, 3, 1, 2) * 2 - 1)
    latents = encode_windows(base, pixels, config, placement)
    maps: Array = object_maps(base, latents, pixels, subject, config, placement).cpu().numpy()[:, 0]
    return maps


def _is_long(picture: Picture) -> bool:
    width, height = picture.image.size
    return picture.mask is None and max(width, height) > SQUARE * min(width, height)


def _on_square(image: Image.Image, size: int) -> Array:
    """All of a picture in the middle of a grey square. (size, size, 3) in [0, 1]."""
    whole = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color=GROUND)
    return np.asarray(whole, np.float32) / np.float32(255)


def _box(mask: Array, size: tuple[int, int]) -> Box | None:
    """Where a mask (side, side) over the square is light, in pixels of the picture; no longer than the picture's
    shorter side, since it is a guess. None where it shows nothing."""
    width, height = size
    inner = _inner(mask, size) > 0.5
    cover = float(inner.mean())
    if not LOW <= cover <= HIGH:
        return None
    ends = []
    for axis, length in ((0, width), (1, height)):
        share = np.cumsum(inner.sum(axis)) / inner.sum()
        first, last = (int(np.searchsorted(share, level)) for level in (OUTER, 1 - OUTER))
        scale = length / inner.shape[1 - axis]
        begin, end = first * scale, (last + 1) * scale
        over = max(0.0, end - begin - min(size)) / 2
        ends.append((round(begin + over), round(end - over)))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _inner(mask: Array, size: tuple[int, int]) -> Array:
    """The part of a mask (side, side) over the square that the picture itself covers."""
    side, longest = len(mask), max(size)
    across, down = (round((longest - length) / 2 / longest * side) for length in size)
    return mask[down : side - down, across : side - across]
