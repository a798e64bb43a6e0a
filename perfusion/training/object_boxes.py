"""Where the object is in pictures that are not square and have no mask, so that their windows do not miss it.

The whole picture is laid on a square that its rims fill, the base model's attention (or the segmenter) says where the
superclass is, and the middle nine tenths of that, along each side, are the object's box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil, floor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from perfusion.base.base_model import BaseModel
from perfusion.training.config import TrainingConfig
from perfusion.training.masks import HIGH, LOW, soft_threshold
from perfusion.training.placement import Placement
from perfusion.training.samples import as_masks, encode_windows, object_maps
from perfusion.training.training_pictures import Box, Picture

__all__ = ["locate_objects", "object_masks"]

SQUARE = 1.1
"""Up to this ratio of its sides a picture's middle shows nearly all of it, and nobody needs to look."""
OUTER = 0.05
"""The share of the object that lies outside its box at each end: scattered positions would stretch it over all."""

Array = npt.NDArray[Any]


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
    for at, values, mask in zip(rows, maps, as_masks(maps, config), strict=True):
        size = pictures[at].image.size
        light = _narrowed(_inner(mask[0], size) > 0.5, _inner(values[0], size), size)
        located[at] = replace(pictures[at], box=_box(light.numpy(), size))
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
    whole = as_masks(_whole_maps(base, pictures, subject, config, placement), config)
    for picture, values in zip(pictures, whole, strict=True):
        inner = _inner(values[0], picture.image.size).numpy()
        if not LOW <= float((inner > 0.5).mean()) <= HIGH:
            masks.append(Image.new("L", picture.image.size, 255))
            continue
        levels = Image.fromarray(np.round(inner * 255).astype(np.uint8))
        masks.append(levels.resize(picture.image.size, Image.Resampling.BILINEAR))
    return masks


def _whole_maps(
    base: BaseModel, pictures: Sequence[Picture], subject: Sequence[Sequence[int]], config: TrainingConfig,
    placement: Placement,
) -> Tensor:  # fmt: skip
    """`object_maps` (n, 1, side, side) of whole pictures, each on a square, on the CPU."""
    squares = np.stack([_on_square(picture.image, base.resolution) for picture in pictures])
    pixels = torch.from_numpy(squares.transpose(0, 3, 1, 2) * 2 - 1)
    latents = encode_windows(base, pixels, config, placement)
    return object_maps(base, latents, pixels, subject, config, placement).float().cpu()


def _is_long(picture: Picture) -> bool:
    width, height = picture.image.size
    return picture.mask is None and max(width, height) > SQUARE * min(width, height)


def _on_square(image: Image.Image, size: int) -> Array:
    """All of a picture in the middle of a square, (size, size, 3) in [0, 1].

    The picture's rims go on over the rest: beside bars of one colour a whole desert is as much of a cake as the cake on
    it, and what parts object from background would part the picture from its bars.
    """
    whole = ImageOps.contain(image, (size, size), Image.Resampling.LANCZOS)
    spare = [(size - length) / 2 for length in (whole.height, whole.width)]
    rims = [*((floor(length), ceil(length)) for length in spare), (0, 0)]
    return np.pad(np.asarray(whole, np.float32) / np.float32(255), rims, mode="edge")


def _narrowed(light: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a picture is light, parted again and again by its values for as long as it is longer than any window: a
    desert beside a cake may be more like it than the sky is, and the cake is more like it still.

    Args:
        light: (h, w), of the picture itself; so are its values, of any scale.
    """
    while light.any() and _length(light.numpy(), size) > min(size):
        lighter = light.clone()
        lighter[light] = soft_threshold(values[light][None, None, None]).flatten() > 0.5
        if lighter.float().mean() < LOW or torch.equal(lighter, light):
            break
        light = lighter
    return light


def _box(light: Array, size: tuple[int, int]) -> Box | None:
    """Where a picture is light (h, w), in its pixels; no longer than its shorter side, since it is a guess. None where
    it shows nothing."""
    if not LOW <= float(light.mean()) <= HIGH:
        return None
    ends = []
    for begin, end in _spans(light, size):
        over = max(0.0, end - begin - min(size)) / 2
        ends.append((round(begin + over), round(end - over)))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _length(light: Array, size: tuple[int, int]) -> float:
    return max(end - begin for begin, end in _spans(light, size))


def _spans(light: Array, size: tuple[int, int]) -> Iterator[tuple[float, float]]:
    """Where most of the light is, across and down, in pixels of the picture."""
    for axis, length in enumerate(size):
        share = np.cumsum(light.sum(axis)) / light.sum()
        first, last = (int(np.searchsorted(share, level)) for level in (OUTER, 1 - OUTER))
        scale = length / light.shape[1 - axis]
        yield first * scale, (last + 1) * scale


def _inner(values: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of values (side, side) over the square that the picture itself covers."""
    side, longest = len(values), max(size)
    across, down = (round((longest - length) / 2 / longest * side) for length in size)
    return values[down : side - down, across : side - across]
