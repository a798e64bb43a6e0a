"""One prompt with concepts, read: its encodings at the strengths of its concepts, and what its keys read of it.

Shared by the runtime, whose text encoders are a bundle's graphs, and by `perfusion.diffusers`, whose are a pipeline's:
each says how it tokenizes and encodes a prompt, and everything about concepts is here.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from perfusion.concept.bank import ConceptBank
from perfusion.concept.blending import blended
from perfusion.concept.words import Ids, TokenizedPrompt, Word, aligned, superclass_positions

__all__ = ["Encoding", "PromptText", "joined", "read_prompt"]

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """What the UNet reads of a text: `hidden` (tokens, text_dim), and `pooled` (width,) where it reads that too."""

    hidden: Array
    pooled: Array | None = None

    @property
    def nbytes(self) -> int:
        """What keeping it takes."""
        return self.hidden.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    def zeros(self) -> "Encoding":
        """As much of nothing."""
        pooled = None if self.pooled is None else np.zeros_like(self.pooled)
        return Encoding(hidden=np.zeros_like(self.hidden), pooled=pooled)


class PromptText(Protocol):
    """One prompt, and the text encoders that read it; each may be given a wording of its own."""

    @property
    def widths(self) -> Sequence[int]:
        """How many of an encoding's numbers are each text encoder's; they add up to text_dim."""

    def tokenize(self, words: Mapping[str, Word]) -> tuple[TokenizedPrompt, ...]:
        """The prompt with some concepts as words, as each text encoder has it."""

    def encode(self, prompt: tuple[TokenizedPrompt, ...]) -> Encoding:
        """What the text encoders say of it so tokenized."""


def read_prompt(
    text: PromptText, bank: ConceptBank, active: Collection[str], lock: str
) -> tuple[Encoding, Array | None]:
    """A prompt at the strengths of its active concepts; under the global lock also (tokens, text_dim) for its keys.

    The keys' encodings are the prompt's with the superclasses in it, each token's counterpart in its place, whatever
    the strengths.

    Raises:
        RequestError: the prompt, with its concepts or with their superclasses, is longer than the text encoders read.
    """
    readings = bank.readings(active)
    weights = [reading.weight for reading in readings]
    whole = text.tokenize(bank.words(active))
    prompts = [text.tokenize(bank.words(reading.active)) for reading in readings]
    # by the first text encoder for all: their tokens stand side by side, and they are of one text as a rule
    places = [aligned(whole[0], prompt[0]) for prompt in prompts]
    encodings = [text.encode(prompt) for prompt in prompts]
    hidden = [encoding.hidden[at] for encoding, at in zip(encodings, places, strict=True)]
    pooled = [encoding.pooled for encoding in encodings if encoding.pooled is not None]
    encoding = Encoding(hidden=blended(hidden, weights), pooled=blended(pooled, weights) if pooled else None)
    if lock == "local":
        return encoding, None
    counterparts = [[superclass_positions(tokens) for tokens in prompt] for prompt in prompts]
    plain = text.encode(text.tokenize(bank.words(()))).hidden
    keys = [
        _gathered(plain, positions, text.widths)[at]
        for positions, at in zip(counterparts, places, strict=True)
    ]
    return encoding, blended(keys, weights)


def joined(encodings: Sequence[Encoding]) -> Encoding:
    """The parts of a long prompt one after another; what is pooled is the first's."""
    if len(encodings) == 1:
        return encodings[0]
    hidden = np.concatenate([encoding.hidden for encoding in encodings])
    return Encoding(hidden=hidden, pooled=encodings[0].pooled)


def _gathered(hidden: Array, positions: Sequence[Ids], widths: Sequence[int]) -> Array:
    """(tokens, text_dim): the encodings at each text encoder's own positions."""
    columns = np.split(hidden, np.cumsum(widths)[:-1], axis=1)
    return np.concatenate([column[at] for column, at in zip(columns, positions, strict=True)], axis=1)
