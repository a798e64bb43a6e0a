"""A scorer for pocket's pictures: a small contrastive image and text encoder in CLIP's form, with exact probes.

The world is synthetic, so everything about a scene is known; beside the contrastive loss the image tower learns
which nouns, where each stands, which place, which colour and how many, and to tell scenes from texture. Embeddings
compare pictures with pictures and with prompts; the probes answer what CLIP would guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfusion.judging.pocket_scorer import COLOUR_NAMES, NOUN_NAMES, PLACE_NAMES
from recipes.pocket.tokenizer import CONTEXT_LENGTH

__all__ = ["EMBEDDING", "MAX_COUNT", "Answers", "ImageTower", "Scorer", "ScorerSize", "build_scorer"]

EMBEDDING = 128
MAX_COUNT = 3
"""As many things as the first edition's scorer tells apart."""


@dataclass(frozen=True, kw_only=True)
class ScorerSize:
    """The widths of one scorer."""

    channels: tuple[int, ...] = (32, 64, 128, 192)
    """Of the image tower's stages, each at half the resolution of the one before."""
    blocks: int = 1
    """In each stage."""
    counts: int = MAX_COUNT
    """As many are told apart; the last stands for more as well."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What the scorer says of a batch of pictures; logits, except for the embeddings, which have length one."""

    embeddings: Tensor
    """(batch, 128)"""
    nouns: Tensor
    """(batch, nouns): each its own yes or no, since a scene may hold two."""
    place: Tensor
    """(batch, places and colours)"""
    colour: Tensor
    """(batch, 1 + colours), the first for an object that nobody painted."""
    count: Tensor
    """(batch, counts)"""
    scene: Tensor
    """(batch,): above zero for a scene, below for texture and noise."""
    where: Tensor
    """(batch, nouns): the middle of each noun's object, 0 the left end … 1 the right. Means nothing for a noun that
    is not there."""
    signs: Tensor
    """(batch, nouns, size / 32, size / 32): how much of each noun is seen at a place."""


class Block(nn.Module):
    """A residual block: depthwise 5 × 5, norm, and a two-layer mix of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.wide = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # a CPU's backward pass of depthwise convolutions is two to four times slower in bfloat16
        with torch.autocast(x.device.type, enabled=False):
            spread = self.space(x.float())
        mixed: Tensor = x + self.narrow(F.gelu(self.wide(self.norm(spread))))
        return mixed


class ImageTower(nn.Module):
    """Pictures (batch, 3, size, size) in [−1, 1] to maps (batch, channels, size / 32, …); half the resolution is looked
    at, for speed."""

    def __init__(self, size: ScorerSize) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, after in pairwise((3, *size.channels)):
            stages += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.GELU(),
                *(Block(after) for _ in range(size.blocks)),
            ]
        self.stages = nn.Sequential(*stages)

    def forward(self, pictures: Tensor) -> Tensor:
        # channels last: what convolutions of few channels are quickest in
        half = F.avg_pool2d(pictures, 2).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.stages(half)
        return maps


class Scorer(nn.Module):
    """Both towers and the probes."""

    def __init__(self, text_encoder: Any, size: ScorerSize) -> None:
        super().__init__()
        features = 2 * size.channels[-1]
        self.size = size
        self.tower = ImageTower(size)
        self.hidden = nn.Linear(features, features)
        self.embed = nn.Linear(features, EMBEDDING)
        self.nouns = nn.Linear(features, len(NOUN_NAMES))
        self.place = nn.Linear(features, len(PLACE_NAMES))
        self.colour = nn.Linear(features, len(COLOUR_NAMES))
        self.count = nn.Linear(features, size.counts)
        self.scene = nn.Linear(features, 1)
        self.signs = nn.Conv2d(size.channels[-1], len(NOUN_NAMES), 1)
        self.text = text_encoder
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def answer(self, pictures: Tensor) -> Answers:
        """What is in pictures (batch, 3, size, size) in [−1, 1]."""
        maps = self.tower(pictures)
        features = F.gelu(self.hidden(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)))
        signs = self.signs(maps).float()
        return Answers(
            embeddings=F.normalize(self.embed(features).float(), dim=-1),
            nouns=self.nouns(features).float() + signs.amax((2, 3)),
            place=self.place(features).float(),
            colour=self.colour(features).float(),
            count=self.count(features).float(),
            scene=self.scene(features).float()[:, 0],
            where=_middles(signs),
            signs=signs,
        )

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """Prompts (batch, 77) as embeddings (batch, 128) of length one."""
        return F.normalize(self.text(input_ids).text_embeds.float(), dim=-1)


def _middles(signs: Tensor) -> Tensor:
    """Where the signs of each noun lie in the mean, across. (batch, nouns, height, width) → (batch, nouns)."""
    columns = signs.flatten(2).softmax(-1).unflatten(2, signs.shape[2:]).sum(2)
    places = (torch.arange(signs.shape[3], device=signs.device) + 0.5) / signs.shape[3]
    return (columns * places).sum(-1)


def build_scorer(tokenizer: Any, size: ScorerSize = ScorerSize(), seed: int = 0) -> Scorer:
    """A scorer with random weights for the tokenizer's vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=EMBEDDING, intermediate_size=4 * EMBEDDING,
                num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=CONTEXT_LENGTH,
                projection_dim=EMBEDDING, bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        return Scorer(text, size)
