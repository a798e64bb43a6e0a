"""Encoded scenes kept for reuse: composing and encoding a scene costs as much as half a training step.

The pool grows by fresh scenes at every step and forgets the oldest when it is full; batches are drawn from all of it.
With `fresh` equal to the batch and `capacity` too, every scene is new, as a fast GPU affords.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import torch
import torch.nn.functional as F

from recipes.pocket.optim import mixed_precision
from recipes.pocket.world import Scene, World


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Tensors that have a row for each sample."""

    def __getitem__(self, rows: slice) -> Self:
        """Some of the rows."""
        return replace(self, **{name: part[rows] for name, part in vars(self).items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch(Rows):
    """Latents (batch, channels, h, w), already scaled; soft object masks (batch, 1, h, w); token ids (batch, 77)."""

    latents: torch.Tensor
    masks: torch.Tensor
    input_ids: torch.Tensor


@torch.no_grad()
def encode_scenes(world: World, vae: torch.nn.Module, tokenizer: object, scenes: Sequence[Scene]) -> Batch:
    """Compose, encode and tokenise scenes."""
    pictures, masks = world.render(scenes)
    latents = encode(vae, pictures)
    return Batch(
        latents=latents,
        masks=F.adaptive_avg_pool2d(masks, latents.shape[-1]),
        input_ids=tokenise(tokenizer, [scene.caption for scene in scenes]).to(latents.device),
    )


@torch.no_grad()
def encode(vae: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """The scaled latents of pictures in [0, 1]."""
    with mixed_precision(pictures.device):
        latents = vae.encode(pictures * 2 - 1).latent_dist.mode()  # type: ignore[operator]
    scaled: torch.Tensor = latents.float() * vae.config.scaling_factor  # type: ignore[union-attr]
    return scaled


AnyBatch = TypeVar("AnyBatch", bound=Batch)


def tokenise(tokenizer: object, captions: list[str]) -> torch.Tensor:
    """Token ids padded to the context length. (batch, 77) int64."""
    return tokenizer(  # type: ignore[operator]
        captions, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


class Pool(Generic[AnyBatch]):
    """A ring of encoded scenes on the world's device, kept in half the bytes. `kind` is the class of its batches."""

    def __init__(self, capacity: int, kind: type[AnyBatch]) -> None:
        self.capacity, self.kind, self.count, self.next = capacity, kind, 0, 0
        self.tensors: dict[str, torch.Tensor] = {}

    def add(self, batch: AnyBatch) -> None:
        """Store a batch, overwriting the oldest scenes once the ring is full."""
        parts = {name: _narrow(part) for name, part in vars(batch).items()}
        if not self.tensors:
            self.tensors = {
                name: part.new_zeros(self.capacity, *part.shape[1:]) for name, part in parts.items()
            }
        where = (
            torch.arange(self.next, self.next + len(batch.latents), device=batch.latents.device)
            % self.capacity
        )
        for name, part in parts.items():
            self.tensors[name][where] = part
        self.next = int(where[-1] + 1) % self.capacity
        self.count = min(self.capacity, self.count + len(where))

    def draw(self, rng: random.Random, size: int) -> AnyBatch:
        """A random batch, with replacement."""
        index = torch.tensor(
            [rng.randrange(self.count) for _ in range(size)], device=self.tensors["latents"].device
        )
        parts = {name: part[index] for name, part in self.tensors.items()}
        return self.kind(
            **{
                name: part.float() if part.is_floating_point() else part.long()
                for name, part in parts.items()
            }
        )


def _narrow(part: torch.Tensor) -> torch.Tensor:
    return part.half() if part.is_floating_point() else part.short()
