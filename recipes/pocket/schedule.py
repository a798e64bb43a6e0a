"""The noise schedule in training, Stable Diffusion's, and the error that a UNet makes under it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from recipes.pocket.architecture import SCHEDULER
from recipes.pocket.optim import mixed_precision


@cache
def alphas(device: torch.device) -> torch.Tensor:
    """The cumulative signal share ᾱ of every timestep. (1000,)."""
    start, end, count = (float(SCHEDULER[key]) for key in ("beta_start", "beta_end", "num_train_timesteps"))  # type: ignore[arg-type]
    betas = torch.linspace(start**0.5, end**0.5, int(count), dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(device)


def noised(latents: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """√ᾱ x + √(1−ᾱ) ε, with one ᾱ per row."""
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def velocity(latents: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """√ᾱ ε − √(1−ᾱ) x (Salimans and Ho, 2022): what a v-prediction model returns."""
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def squared_error(
    unet: Any,
    latents: torch.Tensor,
    noise: torch.Tensor,
    steps: torch.Tensor,
    hidden: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    """The squared error of the predicted velocity, of the latents' shape.

    Args:
        unet: predicts, in the device's mixed precision.
        latents: what is to be denoised, (batch, channels, h, w).
        noise: of the same shape.
        steps: one timestep a row, (batch,).
        hidden: the text's encodings, (batch, tokens, width).
        options: other arguments of the UNet.
    """
    alpha = alphas(latents.device)[steps]
    with mixed_precision(latents.device):
        output = unet(noised(latents, noise, alpha), steps, hidden, **options).sample.float()
    return (output - velocity(latents, noise, alpha)).square()
