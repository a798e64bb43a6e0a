"""Looks that no word says: so that one cat can be told from another, and a concept finds its own.

A caption says "a cat"; which of a thousand cats it is, the model must guess, and it never learns that the values of a
noun could say so. Here a small network looks at the drawing of a scene's first thing and adds what it sees to the
values of the thing's noun, in all cross-attention layers; keys stay those of the plain noun. That is where Perfusion
puts a concept (Tewel et al., 2023, key-locking), so the values that it learns lead to things the model can draw. The
small network is left behind when training ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from recipes.pocket.wide_world import WideScene, WideWorld

__all__ = ["SIDE", "PortraitEncoder", "locked", "portraits_of", "unlocked"]

SIDE = 32
"""Width and height of a portrait, in pixels."""


class PortraitEncoder(torch.nn.Module):
    """What a drawing looks like, in as many numbers as a token has.

    Args:
        text_dim: those of a token.
    """

    def __init__(self, text_dim: int) -> None:
        super().__init__()
        widths = (4, 48, 96, 192)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.norms = torch.nn.ModuleList(torch.nn.GroupNorm(8, width) for width in widths[1:])
        self.inner = torch.nn.Linear(widths[-1] * (SIDE // 8) ** 2, 2 * text_dim)
        self.outer = torch.nn.Linear(2 * text_dim, text_dim)
        torch.nn.init.zeros_(self.outer.weight)  # at first it says nothing
        torch.nn.init.zeros_(self.outer.bias)

    def forward(self, portraits: torch.Tensor) -> torch.Tensor:
        """Premultiplied drawings (batch, 4, SIDE, SIDE) in [0, 1] → (batch, text_dim)."""
        hidden = portraits
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = F.silu(norm(convolution(hidden)))
        looks: torch.Tensor = self.outer(F.silu(self.inner(hidden.flatten(1))))
        return looks


@torch.no_grad()
def portraits_of(world: WideWorld, scenes: Sequence[WideScene]) -> torch.Tensor:
    """Portraits of the scenes' first things, mirrored by chance. (batch, 4, SIDE, SIDE), premultiplied."""
    portraits = F.adaptive_avg_pool2d(world.portraits(scenes), SIDE)
    mirrored = torch.rand(len(scenes), 1, 1, 1, device=portraits.device) < 0.5
    return torch.where(mirrored, portraits.flip(3), portraits)


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
