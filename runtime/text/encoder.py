"""Texts to encodings through a bundle's text encoders, each text once as long as its encodings are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.concept.blending import blended
from perfusion.concept.concept_file import Concept
from perfusion.runtime.cache import Cache
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.concepts import Bank
from perfusion.runtime.text.tokenizer import PromptTokenizer, TokenizedPrompt, Word

__all__ = ["Encoding", "Text", "TextReader", "blend", "joined"]

Array = NDArray[np.float32]
Ids = NDArray[np.int64]

_MOST_BYTES = 32 << 20  # 140 texts of Stable Diffusion 1.5, 50 of XL


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """What the UNet reads of a text: `hidden` (tokens, text_dim), and `pooled` (width,) where it reads that too."""

    hidden: Array
    pooled: Array | None = None

    @property
    def nbytes(self) -> int:
        """What keeping it takes."""
        return self.hidden.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    def zeros(self) -> Encoding:
        """As much of nothing."""
        pooled = None if self.pooled is None else np.zeros_like(self.pooled)
        return Encoding(hidden=np.zeros_like(self.hidden), pooled=pooled)


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A text tokenized for every text encoder; they split it alike and differ in their padding."""

    prompts: tuple[TokenizedPrompt, ...]  # one an encoder

    @property
    def tokens(self) -> TokenizedPrompt:
        """As the first encoder has it."""
        return self.prompts[0]


class TextReader:
    """A bundle's tokenizers and text encoders. Each text is encoded alone: none depends on what else is asked for."""

    def __init__(self, bundle: Bundle, graphs: Graphs) -> None:
        """Raises BundleError when a tokenizer cannot be read."""
        self._encoders = bundle.text_encoders
        self._tokenizers = [PromptTokenizer(one.tokenizer or bundle.tokenizer, one) for one in self._encoders]
        self._graphs = graphs
        self._kept: Cache[Encoding] = Cache(_MOST_BYTES, lambda one: one.nbytes)

    @property
    def tokenizer(self) -> PromptTokenizer:
        """The first text encoder's."""
        return self._tokenizers[0]

    def tokenize(self, text: str, words: Mapping[str, Word]) -> Text:
        """Raises RequestError for what is not a text, or longer than the encoders read."""
        return Text(prompts=tuple(one.tokenize(text, words) for one in self._tokenizers))

    def encode(self, text: Text, bank: Bank) -> Encoding:
        """Encodings of a text, in which placeholders read the learned words of the bank's concepts."""
        return self._encode([one.input_ids for one in text.prompts], text.tokens.concepts, bank)

    def encode_superclass(self, text: Text, bank: Bank) -> Encoding:
        """Encodings of a text with each superclass in its concept's place.

        Raises:
            RequestError: it is longer than the encoders read.
        """
        pairs = zip(self._tokenizers, text.prompts, strict=True)
        return self._encode([tokenizer.superclass_version(one)[0] for tokenizer, one in pairs], (), bank)

    def forget(self) -> None:
        """Give the memory of what is kept back."""
        self._kept.clear()

    def forget_concept(self, concept: Concept) -> None:
        """Give the memory back of what was read with a concept."""
        self._kept.drop(lambda key: concept in key[1])

    def _encode(self, ids: list[Ids], tokens: Sequence[str], bank: Bank) -> Encoding:
        concepts: tuple[Concept, ...] = bank.identity(tokens)
        key = (tuple(one.tobytes() for one in ids), concepts)
        return self._kept.get(key, lambda: self._run(ids, tokens, bank))

    def _run(self, ids: list[Ids], tokens: Sequence[str], bank: Bank) -> Encoding:
        self._graphs.stage("encode")
        hidden: list[Array] = []
        pooled: Array | None = None
        for index, (encoder, one) in enumerate(zip(self._encoders, ids, strict=True)):
            outputs = self._graphs.run(
                encoder.name, input_ids=one[None], concept_embeddings=bank.embeddings(tokens, index)
            )
            found = outputs[encoder.output]
            hidden.append(found.reshape(found.shape[1:]))
            if encoder.pooled_output is not None:
                pooled = outputs[encoder.pooled_output].reshape(-1)
        return Encoding(
            hidden=hidden[0] if len(hidden) == 1 else np.concatenate(hidden, axis=-1), pooled=pooled
        )


def blend(parts: Sequence[Encoding], weights: Sequence[float]) -> Encoding:
    """The weighted mean of encodings of one shape."""
    pooled = [one.pooled for one in parts if one.pooled is not None]
    return Encoding(
        hidden=blended([one.hidden for one in parts], weights),
        pooled=blended(pooled, weights) if pooled else None,
    )


def joined(parts: Sequence[Encoding]) -> Encoding:
    """The parts of a long prompt one after another; what is pooled is the first's."""
    if len(parts) == 1:
        return parts[0]
    return Encoding(hidden=np.concatenate([one.hidden for one in parts]), pooled=parts[0].pooled)
