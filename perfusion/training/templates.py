"""Training prompts: neutral templates around the concept's placeholder, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from perfusion.base.base_model import BaseModel
from perfusion.embedded import is_embedded
from perfusion.errors import TrainingError
from perfusion.pocket.vocabulary import noun_fault
from perfusion.training.config import check_visible

__all__ = ["TEMPLATES", "Prompt", "as_tensors", "check_superclass", "check_token", "input_ids", "word_ids"]

TEMPLATES = (
    "a photo of a {}",
    "a photo of the {}",
    "a picture of a {}",
    "a picture of the {}",
    "a good photo of a {}",
    "a good photo of the {}",
    "a close up photo of a {}",
    "a cropped photo of the {}",
    "a photo of one {}",
    "a nice picture of the {}",
    "the {}",
    "a {}",
    "my {}",
)
"""Sentences that name nothing but the subject, so that only the subject is learned."""

MAX_PIECES = 4
"""A word that breaks into more pieces than this is not one the model has learned."""


def word_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without start, end or padding."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


class Prompt(NamedTuple):
    """One prompt for a base model: the token ids for each of its text encoders, and where the subject is."""

    ids: tuple[list[int], ...]
    last: int
    """Position of the subject's last token, the same for all encoders."""


def input_ids(base: BaseModel, template: str, subject: Sequence[Sequence[int]]) -> Prompt:
    """A template with the subject's ids in its gap, padded to the context length as each tokenizer does.

    Args:
        subject: the ids for each text encoder; as many for one as for the other, so that its place is the same in
            both prompts. The tokenizers of a base model split the template's own words alike.
    """
    padded = []
    for tokenizer, inside in zip(base.tokenizers, subject, strict=True):
        ids, last = _around(tokenizer, template, inside)
        if len(ids) > base.context_length:
            raise TrainingError(
                f"The prompt {template!r} has {len(ids)} tokens, the model reads {base.context_length}."
            )
        # SDXL's second tokenizer pads with "!", the first with the end token
        padded.append(ids + [tokenizer.pad_token_id] * (base.context_length - len(ids)))
    return Prompt(ids=tuple(padded), last=last)


def _around(tokenizer: Any, template: str, subject: Sequence[int]) -> tuple[list[int], int]:
    """Start, template and subject, end; and the position of the subject's last token."""
    before, after = (word_ids(tokenizer, part) for part in template.split("{}"))
    ids = [tokenizer.bos_token_id, *before, *subject, *after, tokenizer.eos_token_id]
    return ids, len(before) + len(subject)


def check_superclass(base: BaseModel, superclass: str) -> tuple[list[int], ...]:
    """The superclass's token ids for each text encoder. Raises `TrainingError` for a word that the base cannot know."""
    check_visible("superclass", superclass)
    tokenizer: Any = base.tokenizer
    if is_embedded(base.family) and (fault := noun_fault(superclass)):
        raise TrainingError(fault)
    for word in superclass.split():
        pieces = word_ids(tokenizer, word)
        if len(pieces) > MAX_PIECES:
            raise TrainingError(
                f"The superclass {word!r} is not in the model's vocabulary (it breaks into {len(pieces)} pieces); "
                "use a common word for this kind of thing."
            )
    return tuple(word_ids(tokenizer, superclass) for tokenizer in base.tokenizers)


def check_token(base: BaseModel, token: str) -> None:
    """Raise `TrainingError` for a placeholder that already means something to the tokenizer."""
    check_visible("token", token)
    tokenizer: Any = base.tokenizer
    if token.lower() in {name.lower() for name in tokenizer.get_vocab()}:
        raise TrainingError(
            f'The token {token!r} is a word of the model already; choose another, such as "<my-thing>".'
        )


def as_tensors(prompts: Sequence[Prompt], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The token ids of prompts for each text encoder, (batch, tokens) int64."""
    encoders = range(len(prompts[0].ids))
    return tuple(
        torch.tensor([prompt.ids[encoder] for prompt in prompts], dtype=torch.int64, device=device)
        for encoder in encoders
    )
