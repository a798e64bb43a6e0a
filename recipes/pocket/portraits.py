"""Looks that no word says.

A caption says "a cat", not which of a thousand cats; the model must guess, and never learns that the values of a noun
could say so. Here an encoder looks at the drawing of a scene's first thing and adds what it sees to the values of
the thing's noun, in all cross-attention layers; keys stay those of the plain noun. That is where Perfusion puts a
concept (Tewel et al., 2023, key-locking), so the values that it learns should lead to things the model can draw. The
encoder is left behind when training ends.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from recipes.pocket.wide_world import WideScene, WideTaste, WideWorld

__all__ = [
    "COMPONENTS",
    "SIDE",
    "PortraitEncoder",
    "joined_encodings",
    "known_portraits",
    "portraits_of",
    "split_encodings",
]

SIDE = 32
"""Width and height of a portrait, in pixels."""
COMPONENTS = 64
"""Differences between drawings that a look can say."""
INITIAL_STD = 0.3
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
        if len(known) <= COMPONENTS:
            raise ValueError(f"{len(known)} drawings, expected more than {COMPONENTS}.")
        flat = known.flatten(1)
        mean = flat.mean(0)
        eigenvalues, eigenvectors = torch.linalg.eigh(
            (flat - mean) @ (flat - mean).T / len(flat)
        )  # smallest first
        # a row of the transposed product is a component times its deviation and √count
        scaled = (
            eigenvectors[:, -COMPONENTS:].T
            @ (flat - mean)
            / (eigenvalues[-COMPONENTS:, None] * len(flat) ** 0.5)
        )
        self.register_buffer("mean", mean)
        self.register_buffer("components", scaled)
        self.projection = torch.nn.Linear(COMPONENTS, text_dim)
        torch.nn.init.normal_(self.projection.weight, std=INITIAL_STD / COMPONENTS**0.5)
        torch.nn.init.zeros_(self.projection.bias)

    def forward(self, portraits: torch.Tensor) -> torch.Tensor:
        """Premultiplied drawings (batch, 4, SIDE, SIDE) in [0, 1] → (batch, text_dim)."""
        looks: torch.Tensor = self.projection((portraits.flatten(1) - self.mean) @ self.components.T)
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
            portraits_of(world, [world.sample(rng, taste) for _ in range(min(64, count - start))])
            for start in range(0, count, 64)
        ]
    return torch.cat(parts).cpu()


def joined_encodings(hidden: torch.Tensor, owners: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
    """Encodings for keys, and beside them those for values, which say a look as well.

    Args:
        hidden: the text encoder's output, (batch, tokens, width).
        owners: whose each token is, (batch, tokens), see `WideBatch`.
        looks: of the first thing, (batch, width); zeros where nothing is said.

    Returns:
        (batch, tokens, 2 · width), for `split_encodings`.
    """
    return torch.cat([hidden, hidden + (owners == 1)[..., None] * looks[:, None]], -1)


def split_encodings(hidden: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What keys and values are made of: the halves of what `joined_encodings` returned, or twice a plain encoding."""
    if hidden.shape[-1] == width:
        return hidden, hidden
    keys, values = hidden.chunk(2, -1)
    return keys, values
