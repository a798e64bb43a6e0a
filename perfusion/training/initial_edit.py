"""The edit before the first step: everything in it is the superclass's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from perfusion.base.attention import key_projections, value_projections
from perfusion.base.base_model import BaseModel, token_embedding
from perfusion.errors import TrainingError
from perfusion.training.config import TrainingConfig
from perfusion.training.covariance import cached_second_moment, inverse, load_captions
from perfusion.training.rank_one import RankOneEdit
from perfusion.training.templates import TEMPLATES, Prompt, as_tensors, input_ids

__all__ = [
    "concept_prompt",
    "initial_edit",
    "initial_embeddings",
    "suited_to",
    "placeholder_encodings",
    "superclass_encoding",
]


def suited_to(base: BaseModel, config: TrainingConfig) -> TrainingConfig:
    """The config with what it leaves to the base model filled in: what is learned of the values, and how fast.

    Raises:
        TrainingError: the values are learned in another way than the base model's, at a rate that nobody gave.
    """
    values = base.values if config.values == "auto" else config.values
    if config.lr_values is None and values != base.values:
        raise TrainingError(
            f"The option values is {values!r}, and the rate of this base model, {base.lr_values:g}, is for "
            f"{base.values!r}; give lr_values too."
        )
    return replace(config, values=values, lr_values=config.lr_values or base.lr_values)


@torch.no_grad()
def superclass_encoding(base: BaseModel, subject: Sequence[Sequence[int]]) -> Tensor:
    """ē_super: the encoding of the superclass's last token, the mean over all templates. (text_dim,).

    Args:
        subject: the superclass's token ids for each text encoder, see `check_superclass`.
    """
    prompts = [input_ids(base, template, subject) for template in TEMPLATES]
    device = next(base.text_encoder.parameters()).device
    encodings = base.encode(as_tensors(prompts, device), pooled=False).hidden
    return torch.stack(
        [encoding[prompt.last] for encoding, prompt in zip(encodings, prompts, strict=True)]
    ).mean(0)


@torch.no_grad()
def initial_edit(
    base: BaseModel, subject: Sequence[Sequence[int]], config: TrainingConfig, say: Callable[[str], None]
) -> tuple[RankOneEdit, Tensor]:
    """The edit before the first step: the word, the direction and the targets are the superclass's.

    Args:
        config: what it leaves to the base model is that model's, see `suited_to`.
        subject: the superclass's token ids for each text encoder, see `check_superclass`.

    Returns:
        The edit and ē_super, (rows, text_dim).
    """
    embeddings = initial_embeddings(base, subject, config)
    together = suited_to(base, config).values == "encoding"
    encoding = superclass_encoding(base, subject).float()
    super_encoding = encoding.repeat(config.rows, 1)
    direction = encoding[None] if config.rows == 1 else placeholder_encodings(base, embeddings)
    captions = load_captions(base, config.captions)
    moment = cached_second_moment(base, captions, say, count_padding=config.count_padding)
    to_values = value_projections(base.unet).float()
    edit = RankOneEdit(
        embeddings=embeddings,
        direction=direction,
        target_keys=super_encoding @ key_projections(base.unet).float().T,
        target_values=super_encoding @ to_values.T,
        value_projections=to_values if together else None,
        inverse_moment=inverse(moment),
        bias=config.bias,
        temperature=config.temperature,
        decay=config.direction_decay,
        gradient=config.direction_gradient,
    )
    return edit, super_encoding


def initial_embeddings(
    base: BaseModel, subject: Sequence[Sequence[int]], config: TrainingConfig
) -> list[Tensor]:
    """v* before the first step: the superclass's words, (rows, hidden) float32 of each text encoder."""
    generator = torch.Generator().manual_seed(config.seed)
    embeddings = []
    for text_encoder, ids in zip(base.text_encoders, subject, strict=True):
        table = token_embedding(text_encoder).weight
        # one placeholder stands for the superclass's last word; more stand for its last words, the first one repeated
        words = [ids[max(0, len(ids) - config.rows + row)] for row in range(config.rows)]
        embedding = table[torch.tensor(words, device=table.device)].float().clone()
        if config.rows > len(ids):
            extra = config.rows - len(ids)
            noise = torch.randn(extra, table.shape[1], generator=generator)
            embedding[:extra] += 0.5 * table.float().std() * noise.to(table.device)
        embeddings.append(embedding)
    return embeddings


def concept_prompt(base: BaseModel, template: str, rows: int) -> Prompt:
    """A template with the concept's placeholders, at the same place for every text encoder."""
    return input_ids(base, template, [[size + row for row in range(rows)] for size in base.vocab_sizes])


@torch.no_grad()
def placeholder_encodings(base: BaseModel, embeddings: Sequence[Tensor]) -> Tensor:
    """The mean encoding of each placeholder token over all templates. (rows, text_dim)."""
    rows = len(embeddings[0])
    prompts = [concept_prompt(base, template, rows) for template in TEMPLATES]
    ids = as_tensors(prompts, embeddings[0].device)
    encodings = base.encode(ids, embeddings, pooled=False).hidden.float()
    return torch.stack(
        [e[prompt.last - rows + 1 : prompt.last + 1] for e, prompt in zip(encodings, prompts, strict=True)]
    ).mean(0)
