"""Training prompts: neutral templates around the concept's placeholder, as token ids."""

from __future__ import annotations

import difflib
from typing import Any

import torch

from perfusion.base import BaseModel
from perfusion.errors import TrainingError

__all__ = ["TEMPLATES", "check_superclass", "check_token", "input_ids", "word_ids"]

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


def input_ids(base: BaseModel, template: str, subject: list[int]) -> tuple[list[int], int]:
    """A template with the subject's ids in its gap, padded to the context length.

    Returns:
        The ids and the position of the subject's last token.
    """
    tokenizer: Any = base.tokenizer
    before, after = (word_ids(tokenizer, part) for part in template.split("{}"))
    ids = [tokenizer.bos_token_id, *before, *subject, *after, tokenizer.eos_token_id]
    if len(ids) > base.context_length:
        raise TrainingError(
            f"the prompt {template!r} has {len(ids)} tokens, the model reads {base.context_length}"
        )
    padding = [tokenizer.pad_token_id] * (base.context_length - len(ids))
    return ids + padding, len(before) + len(subject)


def check_superclass(base: BaseModel, superclass: str) -> list[int]:
    """The superclass's token ids. Raises `TrainingError` for a word that the base model cannot know."""
    tokenizer: Any = base.tokenizer
    if base.family == "pocket":
        from perfusion.pocket.vocabulary import NOUNS

        if superclass.lower() not in NOUNS:
            near = difflib.get_close_matches(superclass.lower(), NOUNS, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? It" if near else "it"
            raise TrainingError(
                f"the embedded model has never seen {superclass!r}; {hint} knows: {', '.join(NOUNS)}"
            )
    for word in superclass.split():
        pieces = word_ids(tokenizer, word)
        if len(pieces) > MAX_PIECES:
            raise TrainingError(
                f"the superclass {word!r} is not in the model's vocabulary (it breaks into {len(pieces)} pieces); "
                "use a common word for this kind of thing"
            )
    return word_ids(tokenizer, superclass)


def check_token(base: BaseModel, token: str) -> None:
    """Raise `TrainingError` for a placeholder that already means something to the tokenizer."""
    tokenizer: Any = base.tokenizer
    if token.lower() in {name.lower() for name in tokenizer.get_vocab()}:
        raise TrainingError(
            f'the token {token!r} is a word of the model already; choose another, such as "<my-thing>"'
        )


def as_tensor(rows: list[list[int]], device: torch.device) -> torch.Tensor:
    """Token ids as a tensor, (batch, tokens) int64."""
    return torch.tensor(rows, dtype=torch.int64, device=device)
