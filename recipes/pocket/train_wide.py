"""Training of the second edition's UNet and text encoder: words that carry their things.

As the first edition's, and: in half of the samples the padding is left out of the cross-attention; words are drawn to
the masks of their things; in half of the samples the first thing's portrait says its look; there are pairs from the
start, and many from the first third on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch

from recipes.pocket.attention import (
    Recording,
    WideBatch,
    areas_between,
    attention_loss,
    encode_things,
    noun_shares,
    recorded_attention,
    without_padding,
)
from recipes.pocket.optim import Average, mixed_precision
from recipes.pocket.pool import Batch, Pool
from recipes.pocket.portraits import PortraitEncoder, joined_encodings, known_portraits
from recipes.pocket.schedule import alphas, noised, squared_error
from recipes.pocket.train_unet import Chance, Trainer, UnetConfig, weigh
from recipes.pocket.wide_world import WideTaste, WideWorld

__all__ = ["WideConfig", "WideTrainer", "attention_gauge", "portrait_gap", "wide_taste_at"]

KNOWABLE = 850
"""Timesteps from here on are so noisy that no place is known: they are left out of the attention's loss."""


@dataclass(frozen=True, kw_only=True)
class WideConfig(UnetConfig):
    """How the second edition is trained."""

    steps: int = 22_800
    pool: int = 12_000
    """Encoded scenes kept, 17 KB each: 200 MB, in the checkpoint as well."""
    save_every: int = 600
    unpadded: float = 0.5
    """Share of samples whose cross-attention sees no padding."""
    attention: float = 0.02
    """Weight of the attention's loss."""
    portrayed: float = 0.5
    """Share of samples whose first thing's portrait is seen."""
    known: int = 1_024
    """Drawings, more than `portraits.COMPONENTS`, among which the differences are found that a look can say."""


def wide_taste_at(progress: float) -> WideTaste:
    """The curriculum: large single objects first, pairs from the start and many from the first third on; in the last
    two fifths half of the scenes hold one object again, since shapes take longer than arrangements, and half of the
    pairs say who is left: at 9,600 steps without these, left and right were a coin's throw. Patterns that no
    word names become rare: otherwise a plain cat is drawn with patches. And most things are drawn as the favourite
    picture of their noun: what is as often seen from the side as from the front was drawn as something between."""
    if progress < 0.1:
        return WideTaste(size=(0.6, 0.88), spread=0.08, recoloured=0.35, pairs=0.1, empty_caption=0.1)
    if progress < 0.33:
        return WideTaste(size=(0.5, 0.88), recoloured=0.5, pairs=0.2, counts=0.05, empty_caption=0.1)
    if progress < 0.57:
        return WideTaste(
            spread=0.18, recoloured=0.55, pairs=0.38, triples=0.12, counts=0.12, empty_caption=0.1
        )  # fmt: skip
    return WideTaste(
        spread=0.18, recoloured=0.5, unpatterned=0.7, favoured=0.6, pairs=0.38, sides=0.5, triples=0.04,
        counts=0.08, empty_caption=0.1,
    )  # fmt: skip


class WideTrainer(Trainer):
    """`Trainer` for a `WideWorld`."""

    config: WideConfig
    world: WideWorld

    def __init__(self, pipeline: Any, world: WideWorld, config: WideConfig) -> None:
        super().__init__(pipeline, world, config)
        self.recording = Recording()
        self.portrait_encoder = PortraitEncoder(
            self.text_encoder.config.hidden_size, known_portraits(world, config.known)
        )
        self.portrait_encoder.to(world.device)
        self.networks["portrait"] = self.portrait_encoder
        self.averages["portrait"] = Average(self.portrait_encoder, config.average)
        self.optimisers.append(
            torch.optim.AdamW(
                self.portrait_encoder.parameters(), lr=config.adam_lr, betas=(0.9, 0.99), weight_decay=0.01
            )
        )

    def new_pool(self) -> Pool[WideBatch]:
        return Pool(self.config.pool, WideBatch)

    def fresh(self, count: int, progress: float) -> WideBatch:
        scenes = [self.world.sample(self.rng, wide_taste_at(progress)) for _ in range(count)]
        return encode_things(self.world, self.vae, self.tokenizer, scenes)

    def chance(self, batch: Batch) -> Chance:
        chance = super().chance(batch)
        draws = torch.rand(2, len(batch.latents), 1, device=batch.latents.device)
        return replace(
            chance, padded=draws[0] >= self.config.unpadded, portrayed=draws[1] < self.config.portrayed
        )

    def learn(self, batch: WideBatch, progress: float) -> float:
        with recorded_attention(self.unet) as self.recording:
            return super().learn(batch, progress)

    def loss(self, batch: WideBatch, chance: Chance, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised, denoising and a share of the attention's; and the plain error, to be shown."""
        device, steps = batch.latents.device, chance.steps
        with mixed_precision(device):
            hidden = self.text_encoder(batch.input_ids).last_hidden_state
            looks = self.portrait_encoder(batch.portraits) * chance.portrayed
        hidden = joined_encodings(hidden, batch.owners, looks)
        mask = without_padding(batch.input_ids, self.tokenizer.eos_token_id) | chance.padded
        error = squared_error(
            self.unet, batch.latents, chance.noise, steps, hidden, encoder_attention_mask=mask
        )
        alpha = alphas(device)[steps]
        denoising = weigh(error, batch, alpha, object_weight=4 - 2 * progress)
        attention = attention_loss(self.recording.take(), batch, steps < KNOWABLE)
        return denoising + self.config.attention * attention, error.detach().mean()

    def gauges(self) -> str:
        readings = attention_gauge(self.world, self.vae, self.text_encoder, self.unet, self.tokenizer)
        shown = ", ".join(f"{t}: {100 * share:.0f}% {area:.2f}" for t, (share, area) in readings.items())
        gap = portrait_gap(self)
        return f"{super().gauges()}, portrait gap {100 * gap:+.1f}%, attention {shown}"


@torch.no_grad()
def portrait_gap(trainer: WideTrainer, *, timestep: int = 850, count: int = 64, seed: int = 79) -> float:
    """The relative rise of the squared error inside single things when their portraits are left out, 0.1 for ten
    percent; about zero for an encoder that says nothing."""
    rng, world = random.Random(seed), trainer.world
    with world.seeded(seed):
        scenes = [world.sample(rng, WideTaste(size=(0.6, 0.88), recoloured=0.5)) for _ in range(count)]
        batch = encode_things(world, trainer.vae, trainer.tokenizer, scenes)
        noise = torch.randn_like(batch.latents)
    steps = torch.full((count,), timestep, device=world.device)
    errors = []
    for seen in (1.0, 0.0):
        with mixed_precision(world.device), recorded_attention(trainer.unet):
            looks = trainer.portrait_encoder(batch.portraits) * seen
            hidden = trainer.text_encoder(batch.input_ids).last_hidden_state
            hidden = joined_encodings(hidden, batch.owners, looks)
            error = squared_error(trainer.unet, batch.latents, noise, steps, hidden)
        errors.append(float((error * batch.masks).sum() / batch.masks.sum()))
    return errors[1] / errors[0] - 1


@torch.no_grad()
def attention_gauge(
    world: WideWorld, vae: torch.nn.Module, text_encoder: torch.nn.Module, unet: torch.nn.Module, tokenizer: object, *,
    timesteps: tuple[int, ...] = (250, 500, 750), count: int = 24, seed: int = 78,
) -> dict[int, tuple[float, float]]:  # fmt: skip
    """Timestep → the share of attention on a thing that its own noun takes, and how well the nouns' attention tells two
    things apart (area under the curve, 0.5 for not at all), in scenes of two things."""
    rng = random.Random(seed)
    taste = WideTaste(pairs=1.0, recoloured=0.0, sized=0.0)
    with world.seeded(seed):
        batch = encode_things(world, vae, tokenizer, [world.sample(rng, taste) for _ in range(count)])
        noise = torch.randn_like(batch.latents)
    readings = {}
    for timestep in timesteps:
        steps = torch.full((count,), timestep, device=world.device)
        with mixed_precision(world.device), recorded_attention(unet) as recording:
            hidden = text_encoder(batch.input_ids).last_hidden_state
            unet(noised(batch.latents, noise, alphas(world.device)[steps]), steps, hidden)
            maps = recording.take()
        readings[timestep] = (noun_shares(maps, batch), areas_between(maps, batch))
    return readings
