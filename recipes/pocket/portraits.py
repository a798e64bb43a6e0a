"""Looks that no word says: so that one cat can be told from another, and a concept finds its own.

A caption says "a cat"; which of a thousand cats it is, the model must guess, and it never learns that the values of a
noun could say so. Here an encoder looks at the drawing of a scene's first thing and adds what it sees to the values of
the thing's noun, in all cross-attention layers; keys stay those of the plain noun. That is where Perfusion puts a
concept (Tewel et al., 2023, key-locking), so the values that it learns lead to things the model can draw. The encoder
is left behind when training ends.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from recipes.pocket.wide_world import WideScene, WideTaste, WideWorld

__all__ = ["COMPONENTS", "SIDE", "PortraitEncoder", "known_portraits", "locked", "portraits_of", "unlocked"]

SIDE = 32
"""Width and height of a portrait, in pixels."""
COMPONENTS = 64
"""Differences between drawings that a look can say."""
LOUDNESS = 0.3
"""Deviation of each of a look's numbers before training; those of a token have one of about 1."""


class PortraitEncoder(torch.nn.Module):
    """What a drawing looks like, in as many numbers as a token has: its main differences from the mean drawing.

    The differences (principal components, each scaled to a deviation of one) are fixed; what a token says of them is
    learned. An encoder that had to find them as well, from nothing, said nothing after 300 steps.

    Args:
        text_dim: the numbers of a token.
        known: drawings to find the differences in, more than COMPONENTS, (count, 4, SIDE, SIDE).
    """

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(self, text_dim: int, known: torch.Tensor) -> None:
        super().__init__()
        flat = known.flatten(1)
        mean = flat.mean(0)
        variances, turned = torch.linalg.eigh((flat - mean) @ (flat - mean).T / len(flat))  # smallest first
        # a row of the transposed product is a component times its deviation and √count
        scaled = (
            turned[:, -COMPONENTS:].T @ (flat - mean) / (variances[-COMPONENTS:, None] * len(flat) ** 0.5)
        )
        self.register_buffer("mean", mean)
        self.register_buffer("components", scaled)
        self.outer = torch.nn.Linear(COMPONENTS, text_dim)
        torch.nn.init.normal_(self.outer.weight, std=LOUDNESS / COMPONENTS**0.5)
        torch.nn.init.zeros_(self.outer.bias)

    def forward(self, portraits: torch.Tensor) -> torch.Tensor:
        """Premultiplied drawings (batch, 4, SIDE, SIDE) in [0, 1] → (batch, text_dim)."""
        looks: torch.Tensor = self.outer((portraits.flatten(1) - self.mean) @ self.components.T)
        return looks


def portraits_of(world: WideWorld, scenes: Sequence[WideScene]) -> torch.Tensor:
    """The drawing of each scene's first thing in its coats, small. (batch, 4, SIDE, SIDE), premultiplied."""
    return F.adaptive_avg_pool2d(world.portraits(scenes), SIDE)


def known_portraits(world: WideWorld, count: int = 1024, seed: int = 5) -> torch.Tensor:
    """Portraits of as many single things, the same at every call. (count, 4, SIDE, SIDE), on the CPU."""
    rng = random.Random(seed)
    taste = WideTaste(recoloured=0.5)
    with world.seeded(seed):
        parts = [
            portraits_of(world, [world.sample(rng, taste) for _ in range(64)]) for _ in range(count // 64)
        ]
    return torch.cat(parts).cpu()


def locked(hidden: torch.Tensor, owners: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
    """Encodings for keys, and beside them those for values, which say a look as well.

    Args:
        hidden: the text encoder's output, (batch, tokens, width).
        owners: whose each token is, (batch, tokens), see `WideBatch`.
        looks: of the first thing, (batch, width); zeros where nothing is said.

    Returns:
        (batch, tokens, 2 · width), for `unlocked`.
    """
    return torch.cat([hidden, hidden + (owners == 1)[..., None] * looks[:, None]], -1)


def unlocked(hidden: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What keys and what values are made of: the halves of what `locked` returned, or twice a plain encoding."""
    if hidden.shape[-1] == width:
        return hidden, hidden
    keys, values = hidden.chunk(2, -1)
    return keys, values
