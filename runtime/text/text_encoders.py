"""Texts to encodings through a bundle's text encoders, each text once as long as its encodings are kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.concept.concept_file import Concept
from perfusion.concept.learned_words import LearnedWords
from perfusion.concept.reading import Encoding
from perfusion.concept.weighted_text import WeightedText
from perfusion.runtime.cache import Cache
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.concepts import Bank
from perfusion.runtime.text.tokenizer import PromptTokenizer, TokenizedPrompt, Word

__all__ = ["TextEncoders", "TokenizedTexts"]

Array = NDArray[np.float32]
TokenizedTexts = tuple[TokenizedPrompt, ...]
"""A text tokenized for every text encoder."""

_MOST_BYTES = 32 << 20  # 140 texts of Stable Diffusion 1.5, 50 of XL


class TextEncoders:
    """A bundle's tokenizers and text encoders. Each text is encoded alone: none depends on what else is asked for."""

    def __init__(self, bundle: Bundle, graphs: Graphs) -> None:
        """Raises BundleError when a tokenizer cannot be read."""
        self._encoders = bundle.text_encoders
        self._tokenizers = [
            PromptTokenizer(encoder.tokenizer or bundle.tokenizer, encoder) for encoder in self._encoders
        ]
        self._graphs = graphs
        self._encodings: Cache[Encoding] = Cache(_MOST_BYTES, lambda encoding: encoding.nbytes)

    @property
    def tokenizer(self) -> PromptTokenizer:
        """The first text encoder's."""
        return self._tokenizers[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """How many of an encoding's numbers each text encoder gives."""
        return tuple(encoder.hidden_size for encoder in self._encoders)

    def tokenize(
        self, text: str | WeightedText, words: Mapping[str, Word], learned: LearnedWords
    ) -> TokenizedTexts:
        """A text as each text encoder has it: they split it alike and differ in their padding.

        Raises:
            RequestError: it is no text, or longer than the encoders read.
        """
        return tuple(tokenizer.tokenize(text, words, learned) for tokenizer in self._tokenizers)

    def encode(self, texts: TokenizedTexts, bank: Bank) -> Encoding:
        """Encodings of a text, in which placeholders read the learned words of the bank's concepts and embeddings."""
        concepts = bank.identity(texts[0].concepts)
        key = (tuple(text.input_ids.tobytes() for text in texts), concepts)
        return self._encodings.get(key, lambda: self._run(texts, bank))

    def forget(self) -> None:
        """Give the memory of what is kept back."""
        self._encodings.clear()

    def forget_concept(self, concept: Concept) -> None:
        """Give the memory back of what was read with a concept."""
        self._encodings.drop(lambda key: concept in key[1])

    def _run(self, texts: TokenizedTexts, bank: Bank) -> Encoding:
        self._graphs.stage("encode")
        hidden: list[Array] = []
        pooled: Array | None = None
        for index, (encoder, text) in enumerate(zip(self._encoders, texts, strict=True)):
            rows = bank.embeddings(text.concepts, index)
            input_ids, vectors = bank.learned.placed(text.input_ids, encoder.vocab_size + len(rows), index)
            outputs = self._graphs.run(
                encoder.name,
                input_ids=input_ids[None],
                concept_embeddings=rows if vectors is None else np.concatenate([rows, vectors]),
            )
            states = outputs[encoder.output]
            hidden.append(states.reshape(states.shape[1:]))
            if encoder.pooled_output is not None:
                pooled = outputs[encoder.pooled_output].reshape(-1)
        return Encoding(
            hidden=hidden[0] if len(hidden) == 1 else np.concatenate(hidden, axis=-1), pooled=pooled
        )
