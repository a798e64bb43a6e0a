"""The base model's own pictures of a superclass, for methods that train against forgetting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.evaluation.models import base_model, drawing_runtime
from benchmarks.evaluation.plan import Plan
from benchmarks.evaluation.units import Context, Unit
from perfusion.files import writing
from perfusion.pocket.vocabulary import article

__all__ = ["prior_latents", "prior_units"]

FIRST_SEED = 50_000


def prior_units(nouns: set[str], plan: Plan) -> list[Unit]:
    """One for each noun."""
    return [
        Unit(path=_path(noun), cost=0.45 * plan.prior_pictures, call=draw_prior, arguments=(noun,))
        for noun in sorted(nouns)
    ]


@torch.no_grad()
def draw_prior(context: Context, noun: str) -> None:
    """Draw the pictures and encode them as training pictures are encoded."""
    seeds = list(range(FIRST_SEED, FIRST_SEED + context.plan.prior_pictures))
    steps = context.plan.num_inference_steps
    pictures = drawing_runtime().generate(
        [f"a photo of {article(noun)}"] * len(seeds), seed=seeds, num_inference_steps=steps
    )
    pixels = torch.from_numpy(np.stack([np.asarray(one, np.float32) for one in pictures]) / 127.5 - 1)
    vae: Any = base_model().vae
    latents = [vae.encode(part).latent_dist.mode() for part in pixels.permute(0, 3, 1, 2).split(8)]
    with writing(context.work / _path(noun)) as file:
        np.savez(file, latents=torch.cat(latents).numpy() * vae.config.scaling_factor)


def prior_latents(plan: Plan, work: Path, noun: str) -> Tensor:
    """(n, channels, h, w), scaled; drawn first if they are not there."""
    path = work / _path(noun)
    if not path.exists():
        draw_prior(Context(plan=plan, work=work), noun)
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["latents"])


def _path(noun: str) -> Path:
    return Path("prior") / f"{noun.replace(' ', '-')}.npz"
