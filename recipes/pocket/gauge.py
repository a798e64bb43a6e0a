"""The gauge to watch while pocket trains: does the noun in the caption matter?

The wrong-noun gap is the rise of the denoising error when the caption's noun is swapped for another, with the same
scene and the same noise. It is zero for a model that draws only the background, and needs no scorer.
"""

from __future__ import annotations

import random
import re

import torch

from recipes.pocket.optim import mixed_precision
from recipes.pocket.pool import encode_scenes, tokenise
from recipes.pocket.schedule import squared_error
from recipes.pocket.world import Taste, World


@torch.no_grad()
def wrong_noun_gap(
    world: World, vae: torch.nn.Module, text_encoder: torch.nn.Module, unet: torch.nn.Module, tokenizer: object,
    *, timestep: int = 650, count: int = 64, seed: int = 77,
) -> float:  # fmt: skip
    """The relative rise of the squared error, 0.1 for ten percent, over `count` scenes of single objects."""
    rng = random.Random(seed)
    taste = Taste(size=(0.6, 0.88), recoloured=0.0)
    scenes = [world.sample(rng, taste) for _ in range(count)]
    wrong = [
        _renamed(scene.caption, scene.nouns[0], _another(rng, world, scene.nouns[0])) for scene in scenes
    ]
    with world.seeded(seed):
        batch = encode_scenes(world, vae, tokenizer, scenes)
        noise = torch.randn_like(batch.latents)
    steps = torch.full((count,), timestep, device=world.device)
    errors = []
    for input_ids in (batch.input_ids, tokenise(tokenizer, wrong).to(world.device)):
        with mixed_precision(world.device):
            hidden = text_encoder(input_ids).last_hidden_state
        errors.append(float(squared_error(unet, batch.latents, noise, steps, hidden).mean()))
    return errors[1] / errors[0] - 1


def _renamed(caption: str, noun: str, other: str) -> str:
    """The caption with another noun. Whole words only: there is a tree in every street."""
    return re.sub(rf"\b{noun}\b", other, caption)


def _another(rng: random.Random, world: World, noun: str) -> str:
    return rng.choice([other for other in world.nouns if other != noun])
