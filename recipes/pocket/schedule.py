"""The noise schedule in training: Stable Diffusion's, in three functions."""

from __future__ import annotations

from functools import cache

import torch

from recipes.pocket.architecture import SCHEDULER


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
