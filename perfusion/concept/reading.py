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
from perfusion.concept.emphasis import Floats, factors, over_columns, weighted
from perfusion.concept.words import Ids, TokenizedPrompt, Word, aligned, superclass_positions

__all__ = ["Encoding", "PromptText", "ReadPrompt", "joined", "read_parts", "read_prompt", "weights_of"]

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


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadPrompt:
    """A prompt, or a part of one, at the strengths of its active concepts. Nothing in `encoding` is weighted."""

    encoding: Encoding
    keys: Array | None  # (tokens, text_dim) for keys under the global lock, weighted; None: local
    factor: Floats | None  # (tokens, encoders) that weights multiply each token by; None: it has none

    def weighted(self, widths: Sequence[int]) -> Encoding:
        """The encoding with its weights; what is pooled has none."""
        if self.factor is None:
            return self.encoding
        hidden = np.asarray(self.encoding.hidden * over_columns(self.factor, widths), np.float32)
        return Encoding(hidden=hidden, pooled=self.encoding.pooled)


def read_prompt(text: PromptText, bank: ConceptBank, active: Collection[str], lock: str) -> ReadPrompt:
    """A prompt at the strengths of its active concepts, and under the global lock what its keys read.

    The keys' encodings are the prompt's with the superclasses in it, each token's counterpart in its place, whatever
    the strengths.

    Raises:
        RequestError: the prompt, with its concepts or with their superclasses, is longer than the text encoders read.
    """
    readings = bank.readings(active)
    shares = [reading.weight for reading in readings]
    whole = text.tokenize(bank.words(active))
    prompts = [text.tokenize(bank.words(reading.active)) for reading in readings]
    # by the first text encoder for all: their tokens stand side by side, and they are of one text as a rule
    places = [aligned(whole[0], prompt[0]) for prompt in prompts]
    encodings = [text.encode(prompt) for prompt in prompts]
    hidden = [encoding.hidden[at] for encoding, at in zip(encodings, places, strict=True)]
    pooled = [encoding.pooled for encoding in encodings if encoding.pooled is not None]
    encoding = Encoding(hidden=blended(hidden, shares), pooled=blended(pooled, shares) if pooled else None)
    weights = [weights_of(prompt) for prompt in prompts]
    factor = None
    if any(each is not None for each in weights):
        # as its encoding, a word's weight fades from one reading's to the other's
        ones = np.ones((len(encoding.hidden), len(text.widths)))
        in_places = [(ones if each is None else each)[at] for each, at in zip(weights, places, strict=True)]
        blend = np.sum([share * each for share, each in zip(shares, in_places, strict=True)], axis=0)
        factor = factors(encoding.hidden, blend, text.widths)
    if lock == "local":
        return ReadPrompt(encoding=encoding, keys=None, factor=factor)
    counterparts = [[superclass_positions(tokens) for tokens in prompt] for prompt in prompts]
    superclasses = text.tokenize(bank.words(()))
    plain = weighted(text.encode(superclasses).hidden, weights_of(superclasses), text.widths)
    keys = [
        _gathered(plain, positions, text.widths)[at]
        for positions, at in zip(counterparts, places, strict=True)
    ]
    return ReadPrompt(encoding=encoding, keys=blended(keys, shares), factor=factor)


def weights_of(prompt: Sequence[TokenizedPrompt]) -> Floats | None:
    """(tokens, encoders): the weights of a prompt's tokens by text encoder; None where all are 1."""
    if all(tokens.weights is None for tokens in prompt):
        return None
    ones = np.ones(len(prompt[0].input_ids))
    return np.stack([ones if tokens.weights is None else tokens.weights for tokens in prompt], axis=1)


def read_parts(
    texts: Sequence[PromptText], bank: ConceptBank, active: Collection[str], lock: str
) -> ReadPrompt:
    """The parts of a long prompt, read one after another; see `read_prompt`."""
    parts = [read_prompt(text, bank, active, lock) for text in texts]
    keys = [part.keys for part in parts if part.keys is not None]
    return ReadPrompt(
        encoding=joined([part.encoding for part in parts]),
        keys=np.concatenate(keys) if keys else None,
        factor=_factors_joined(parts),
    )


def _factors_joined(parts: Sequence[ReadPrompt]) -> Floats | None:
    known = next((part.factor for part in parts if part.factor is not None), None)
    if known is None:
        return None
    return np.concatenate([np.ones_like(known) if part.factor is None else part.factor for part in parts])


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
