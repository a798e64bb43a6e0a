"""The object of a picture on plain grey, so that likeness is not measured by the beach behind it.

Where the object is, the base model says: its attention to the noun, the product's own masks. `report` tells how
well they agree with the true masks of composed pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from benchmarks.evaluation.models import base_model
from perfusion.training.masks import attention_maps, soft_threshold
from perfusion.training.objective import Noising
from perfusion.training.templates import as_tensors, input_ids, word_ids

__all__ = ["cut", "encoded", "object_masks", "overlap"]

Mask = NDArray[np.float32]

GREY, MARGIN = 140, 0.1
"""The grey of pocket's grey backgrounds, which its scorer knows; what is left around the object, of its longer side."""
LOW, HIGH = 0.02, 0.95
"""A mask that covers less or more of the picture is not believed: all of the picture counts, as in training."""


@torch.no_grad()
def encoded(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Latents (n, channels, h, w), scaled, of pictures (n, height, width, 3)."""
    vae: Any = base_model().vae
    pixels = torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.split(8)])
    return latents * float(vae.config.scaling_factor)


@torch.no_grad()
def object_masks(pictures: NDArray[np.uint8], noun: str) -> Mask:
    """Where the noun is, (n, height, width) in [0, 1]; ones where nothing was found."""
    base = base_model()
    subject = word_ids(base.tokenizer, noun)
    prompt = input_ids(base, "a photo of a {}", [subject])
    maps = attention_maps(
        base.unet, encoded(pictures), base.encode(as_tensors([prompt], torch.device("cpu"))).hidden.float(),
        subject=range(prompt.last - len(subject) + 1, prompt.last + 1), words=range(1, prompt.last + 2),
        alphas=Noising.of(base).scheduler.alphas_cumprod,
    )  # fmt: skip
    masks = soft_threshold(maps)
    full = F.interpolate(masks, pictures.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    cover = (full > 0.5).float().flatten(1).mean(1)
    full[(cover < LOW) | (cover > HIGH)] = 1.0
    return full.numpy()


def cut(picture: NDArray[np.uint8], mask: Mask) -> Image.Image:
    """The square around the object, everything else of it grey."""
    rows, columns = (np.flatnonzero((mask > 0.5).any(axis)) for axis in (1, 0))
    if not len(rows):
        return Image.fromarray(picture)
    side = round((1 + 2 * MARGIN) * max(np.ptp(rows), np.ptp(columns))) + 1
    top, left = (round((part[0] + part[-1] - side) / 2) for part in (rows, columns))
    weight = mask[..., None]
    grey = Image.fromarray(np.rint(picture * weight + GREY * (1 - weight)).astype(np.uint8))
    square = Image.new("RGB", (side, side), (GREY,) * 3)
    square.paste(grey, (-left, -top))
    return square


def overlap(found: Mask, true: Mask) -> float:
    """Intersection over union of two masks at 0.5."""
    a, b = found > 0.5, true > 0.5
    return float((a & b).sum() / max(1, (a | b).sum()))


def as_array(pictures: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """(n, height, width, 3)."""
    return np.stack([np.asarray(picture.convert("RGB"), np.uint8) for picture in pictures])
