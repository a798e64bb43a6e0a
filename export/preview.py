"""What colours latents have before they are decoded: for a preview while a picture is being drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["fit_latent_rgb"]

_PICTURES, _SIDE = 12, 16
"""Pictures to fit to, and the side of their latents."""


@torch.no_grad()
def fit_latent_rgb(vae: Any) -> dict[str, list[object]]:
    """The linear map from latents to colours that is nearest to decoding, by least squares.

    Latents as they stand in the denoising loop, multiplied by the scaling factor; colours are the decoded picture's, in
    [-1, 1], averaged over the pixels of each latent. Fitted to latents of drawn patches and gradients, with some noise,
    so that it knows those that pictures have.

    Args:
        vae: diffusers' AutoencoderKL, in float32.

    Returns:
        ``weight`` (latent_channels, 3) and ``bias`` (3,), as bundle.json holds them.
    """
    config = vae.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    generator = torch.Generator().manual_seed(0)
    pictures = _draw(_PICTURES, _SIDE * factor, int(config.in_channels), generator)
    features, colours = [], []
    for picture in pictures:  # one at a time: the decoder's activations are large
        latents = vae.encode(picture[None]).latent_dist.mode()
        latents = latents + 0.1 * latents.std() * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode(latents, return_dict=False)[0].clamp(-1, 1)
        features.append(_as_rows(latents * config.scaling_factor))
        colours.append(_as_rows(F.avg_pool2d(decoded, factor)))
    rows = np.concatenate(features)
    design = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.concatenate(colours), rcond=None)
    rounded = [[float(f"{value:.3g}") for value in row] for row in solution]
    return {"weight": [*rounded[:-1]], "bias": [*rounded[-1]]}


def _as_rows(planes: Tensor) -> np.ndarray:
    """(1, channels, height, width) -> (height · width, channels) in float64"""
    return np.asarray(planes[0].flatten(1).T.double().numpy())


def _draw(count: int, side: int, channels: int, generator: torch.Generator) -> Tensor:
    """Pictures of smooth colour with rectangles on it, (count, channels, side, side) in [-1, 1]."""
    coarse = torch.rand(count, channels, 3, 3, generator=generator) * 2 - 1
    pictures = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    for picture in pictures:
        for _ in range(6):
            top, left = (int(torch.randint(0, side * 3 // 4, (), generator=generator)) for _ in range(2))
            height, width = (
                int(torch.randint(side // 8, side // 2, (), generator=generator)) for _ in range(2)
            )
            colour = torch.rand(channels, 1, 1, generator=generator) * 2 - 1
            picture[:, top : top + height, left : left + width] = colour
    return pictures
