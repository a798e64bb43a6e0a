"""Words and their things: what the cross-attention looks at, drawn towards what the world knows.

A noun's attention should lie on its object, and take a fair share of it: in the first edition most of it went to the
tokens behind the sentence. The same maps are the training's loss and the gauge's reading.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from recipes.pocket.pool import Batch, encode, tokenise
from recipes.pocket.portraits import portraits_of, split_encodings
from recipes.pocket.wide_world import THINGS, WideScene, WideWorld

__all__ = [
    "Recording",
    "WideBatch",
    "area_under_curve",
    "attention_loss",
    "encode_things",
    "recorded_attention",
    "without_padding",
]

FAIR_SHARE = 0.25
"""The share of attention at its object's pixels that a noun is drawn up to; beyond it the loss is silent."""
RECORDED = ("down_blocks.1.", "up_blocks.1.", "up_blocks.2.")
"""Where attention is looked at: the two finer resolutions, the first layer of each block."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WideBatch(Batch):
    """A batch that knows whose every word and every pixel is."""

    things: torch.Tensor
    """Masks of what is seen of each thing, (batch, THINGS, h, w)."""
    owners: torch.Tensor
    """For each token (batch, 77): k + 1 in the noun of thing k, −k − 1 in its other words, 0 elsewhere."""
    portraits: torch.Tensor
    """The drawing of the first thing, (batch, 4, SIDE, SIDE)."""


@torch.no_grad()
def encode_things(
    world: WideWorld, vae: torch.nn.Module, tokenizer: object, scenes: Sequence[WideScene]
) -> WideBatch:
    """Compose, encode and tokenise scenes."""
    pictures, masks = world.compose(scenes)
    latents = encode(vae, pictures)
    things = F.adaptive_avg_pool2d(masks, latents.shape[-1])
    input_ids = tokenise(tokenizer, [scene.caption for scene in scenes])
    owners = torch.stack(
        [_owners(tokenizer, ids, scene) for ids, scene in zip(input_ids.tolist(), scenes, strict=True)]
    )
    return WideBatch(
        latents=latents,
        masks=F.adaptive_avg_pool2d(masks.amax(1, keepdim=True), latents.shape[-1]),
        input_ids=input_ids.to(latents.device),
        things=things,
        owners=owners.to(latents.device),
        portraits=portraits_of(world, scenes),
    )


def _owners(tokenizer: Any, ids: list[int], scene: WideScene) -> torch.Tensor:
    """Whose each token is, see `WideBatch.owners`. (77,)."""
    owners = torch.zeros(len(ids), dtype=torch.long)
    for number, thing in enumerate(scene.things, 1):
        phrase: list[int] = tokenizer(thing.phrase, add_special_tokens=False).input_ids
        name: list[int] = tokenizer(thing.name, add_special_tokens=False).input_ids
        starts = [i for i in range(len(ids)) if ids[i : i + len(phrase)] == phrase]
        if starts:
            stop = starts[0] + len(phrase)
            owners[starts[0] : stop] = -number
            owners[stop - len(name) : stop] = number
    return owners


def without_padding(input_ids: torch.Tensor, end: int) -> torch.Tensor:
    """Which tokens belong to the sentence: all up to its first end token. (batch, tokens) bool.

    As the cross-attention's mask this equals leaving the padding out: the text encoder looks back only.
    """
    ends = input_ids == end
    return (ends.cumsum(1) - ends.long()) == 0


class Recording(threading.local):
    """The attention that was seen, each thread's own."""

    def __init__(self) -> None:
        self.maps: list[torch.Tensor] = []

    def take(self) -> list[torch.Tensor]:
        """The maps of this thread's calls since the last time. (batch, positions, tokens)."""
        maps, self.maps = self.maps, []
        return maps


class _PlainProcessor:
    """Plain cross-attention to encodings that may say a look in the values alone (`portraits.joined_encodings`).

    Args:
        recording: notes the probabilities, the mean over heads; None notes nothing.
    """

    def __init__(self, recording: Recording | None) -> None:
        self.recording = recording

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None, temb: torch.Tensor | None = None, **_: Any,
    ) -> torch.Tensor:  # fmt: skip
        batch, tokens = encoder_hidden_states.shape[:2]
        for_keys, for_values = split_encodings(encoder_hidden_states, attn.to_k.in_features)
        mask = attn.prepare_attention_mask(attention_mask, tokens, batch)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(for_keys))
        value = attn.head_to_batch_dim(attn.to_v(for_values))
        probabilities = attn.get_attention_scores(query, key, mask)
        if self.recording is not None:
            self.recording.maps.append(probabilities.unflatten(0, (batch, -1)).mean(1).float())
        output = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        mixed: torch.Tensor = attn.to_out[1](attn.to_out[0](output))
        return mixed


@contextmanager
def recorded_attention(unet: Any) -> Iterator[Recording]:
    """Within, the UNet also takes what `joined_encodings` returns, and its cross-attention is noted."""
    before, recording = dict(unet.attn_processors), Recording()
    chosen = {
        name: _PlainProcessor(
            recording if name.startswith(RECORDED) and "transformer_blocks.0." in name else None
        )
        for name in before
        if "attn2" in name
    }
    unet.set_attn_processor(before | chosen)
    try:
        yield recording
    finally:
        unet.set_attn_processor(before)


def attention_loss(maps: Sequence[torch.Tensor], batch: WideBatch, counted: torch.Tensor) -> torch.Tensor:
    """How far words look beside their things: half of −log of the share of a thing's words' attention that lies on it,
    and what a noun lacks of its fair share there. The mean over things and layers.

    Args:
        maps: from `recorded_attention`.
        batch: what was drawn.
        counted: which rows count, (batch,) bool; at the noisiest timesteps nobody can know where a thing stands.
    """
    total = batch.latents.new_zeros(())
    for probabilities in maps:
        on_thing, everywhere, share, present = _read(probabilities, batch)
        present = present & counted[:, None]
        beside = -torch.log(on_thing / everywhere.clamp(min=1e-6) + 1e-3)
        lacking = (FAIR_SHARE - share).clamp(min=0) / FAIR_SHARE
        total = total + ((0.5 * beside + lacking) * present).sum() / present.sum().clamp(min=1)
    return total / max(1, len(maps))


def _read(
    probabilities: torch.Tensor, batch: WideBatch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each thing (batch, THINGS): its words' attention on it and everywhere, its noun's share of the attention on
    it, and whether it is there at all."""
    side = round(probabilities.shape[1] ** 0.5)
    masks = F.adaptive_avg_pool2d(batch.things, side).flatten(2)
    numbers = torch.arange(1, THINGS + 1, device=probabilities.device)
    nouns = (batch.owners[:, None] == numbers[:, None]).float()
    words = (batch.owners[:, None].abs() == numbers[:, None]).float()
    of_words = torch.einsum("bqt,bkt->bkq", probabilities, words)
    of_nouns = torch.einsum("bqt,bkt->bkq", probabilities, nouns)
    area = masks.sum(2)
    present = (area > 0.5) & (nouns.sum(2) > 0)
    share = (of_nouns * masks).sum(2) / area.clamp(min=1e-6)
    return (of_words * masks).sum(2), of_words.sum(2), share, present


def noun_shares(maps: Sequence[torch.Tensor], batch: WideBatch) -> float:
    """The mean share of the attention on a thing that its noun takes."""
    parts = [_read(probabilities, batch)[2:] for probabilities in maps]
    shares = torch.cat([share[present] for share, present in parts])
    return float(shares.mean())


def areas_between(maps: Sequence[torch.Tensor], batch: WideBatch) -> float:
    """How well each noun's attention tells its thing from the other one: the mean area under the curve."""
    areas = []
    for probabilities in maps:
        side = round(probabilities.shape[1] ** 0.5)
        masks = F.adaptive_avg_pool2d(batch.things, side).flatten(2) > 0.5
        for row, pixels in enumerate(masks):
            for own, other in ((0, 1), (1, 0)):
                if pixels[own].any() and pixels[other].any():
                    scores = probabilities[row, :, batch.owners[row] == own + 1].sum(-1)
                    areas.append(area_under_curve(scores[pixels[own]], scores[pixels[other]]))
    return sum(areas) / max(1, len(areas))


def area_under_curve(positives: torch.Tensor, negatives: torch.Tensor) -> float:
    """The chance that a positive score lies above a negative one, ties counting half."""
    gaps = positives[:, None] - negatives[None]
    return float(((gaps > 0).float() + 0.5 * (gaps == 0).float()).mean())
