"""The bank of a bundle: which concepts are let in, and where their locked keys come from.

Nothing is compiled and no graph changes when a concept comes or goes; loading one costs reading its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.concept.bank import BaseTraits, Changes, ConceptBank, EditRows
from perfusion.concept.card import MAX_CARD_BYTES
from perfusion.concept.concept_file import Concept
from perfusion.concept.embedding_file import Embedding
from perfusion.concept.learned_words import NO_WORDS, LearnedWords
from perfusion.concept.settings import ConceptSettings, SettingChanges
from perfusion.errors import BundleError, ConceptError
from perfusion.hub import local_concept
from perfusion.runtime.cache import Cache

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Bank", "open_concept", "open_embedding"]

_MOST_STACKED = 4 << 20  # bytes of several concepts' rows put together


class Bank(ConceptBank):
    """Concepts by their token, each checked against a bundle. For several threads at once."""

    def __init__(self, bundle: Bundle) -> None:
        has_keys = bundle.key_projections is not None
        self._stacked: Cache[EditRows] = Cache(
            _MOST_STACKED, lambda rows: rows.keys.nbytes + rows.values.nbytes
        )
        self._changing = Lock()  # two threads that change one concept: neither's change is lost
        self._context_length = bundle.text_encoder.context_length
        self.learned: LearnedWords = NO_WORDS
        """The embeddings, which prompts name as they name concepts."""
        super().__init__(
            BaseTraits(
                noun="bundle",
                family=bundle.base,
                fingerprint=bundle.base_fingerprint,
                loras=bundle.loras,
                text_dim=bundle.text_dim,
                hidden_sizes=tuple(encoder.hidden_size for encoder in bundle.text_encoders),
                key_width=bundle.unet.key_width,
                value_width=bundle.unet.value_width,
                key_projections=(lambda: _read_projections(bundle)) if has_keys else None,
            )
        )

    def load(self, concept: Concept, **settings: Unpack[SettingChanges]) -> None:
        """As `ConceptBank.load`, one thread after another."""
        with self._changing:
            super().load(concept, **settings)

    def change(self, token: str, **settings: Unpack[SettingChanges]) -> ConceptSettings:
        """As `ConceptBank.change`, one thread after another."""
        with self._changing:
            return super().change(token, **settings)

    def adjusted(self, changes: Changes | None = None) -> Bank:
        """As `ConceptBank.adjusted`; the two banks keep no thread of each other's waiting."""
        other = super().adjusted(changes)
        other._changing = Lock()
        return other

    def unload(self, token: str) -> None:
        """Raises RequestError when no such concept is loaded."""
        with self._changing:
            super().unload(token)
        self._stacked.clear()

    def load_embedding(self, embedding: Embedding) -> None:
        """Make an embedding's word a word of prompts.

        Raises:
            ConceptError: it was made for another base model, takes more tokens than a prompt has, or its word is taken.
        """
        _check_embedding(embedding, self._base, self._context_length - 2)
        with self._changing:
            if embedding.word in self.learned or embedding.word in self._loaded:
                raise ConceptError(
                    f"The word {embedding.word} is taken. Unload what has it, or load the embedding under another word."
                )
            self.learned = self.learned.adding(embedding)

    def unload_embedding(self, word: str) -> None:
        """Raises RequestError when no such embedding is loaded."""
        with self._changing:
            self.learned = self.learned.without(word)

    def identity(self, tokens: Sequence[str]) -> tuple[Concept, ...]:
        """What encodings and targets of some concepts depend on: the very concepts, whatever their settings."""
        return tuple(self._get(token).concept for token in tokens)

    def rows(self, tokens: Sequence[str]) -> EditRows:
        """The rows of some concepts, in their order; only the settings are new arrays in each call."""
        rows = self._stacked.get(self.identity(tokens), lambda: super(Bank, self).rows(tokens))
        # half the time of `replace`, between two pictures
        return EditRows(**(vars(rows) | self._gate_settings(tokens)))


def _check_embedding(embedding: Embedding, base: BaseTraits, limit: int) -> None:
    """Refuse an embedding of other text encoders, or one that no prompt has room for."""
    if embedding.widths != base.hidden_sizes:
        raise ConceptError(
            f"The embedding {embedding.word} was made for {_readers(embedding.widths)}, and the text encoders of this "
            f"{base.family} {base.noun} read {_and(base.hidden_sizes)} numbers a token. Get it for this base model."
        )
    if embedding.rows > limit:
        raise ConceptError(
            f"The embedding {embedding.word} has {embedding.rows} vectors, and a text encoder reads {limit} tokens "
            "at a time. Use one with fewer."
        )


def _readers(widths: tuple[int, ...]) -> str:
    """Whose embeddings have vectors of some widths."""
    families = {
        (768,): "Stable Diffusion 1",
        (1024,): "Stable Diffusion 2",
        (768, 1280): "Stable Diffusion XL",
    }
    family = families.get(widths, "another base model")
    return f"{family} (vectors of {_and(widths)} numbers)"


def _and(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def open_concept(source: str | Path | bytes | BinaryIO | Concept, bundle: Bundle) -> Concept:
    """A concept from its file, the name of a bundle's sample, the bytes of a file, or a file opened for reading.

    Raises:
        ConceptError: it cannot be read or is no valid concept.
    """
    if isinstance(source, Concept):
        return source
    if isinstance(source, str | Path):
        return Concept.load(bundle.find_concept(local_concept(source)))
    return Concept.from_bytes(_bytes_of(source, "concept"))


def open_embedding(source: str | Path | bytes | BinaryIO | Embedding, word: str | None) -> Embedding:
    """An embedding from its file, the bytes of a file, or a file opened for reading; see `Embedding.load`.

    Raises:
        ConceptError: it cannot be read, holds no embedding, or has no word.
    """
    if isinstance(source, Embedding):
        return source if word is None else replace(source, word=word)
    if isinstance(source, str | Path):
        return Embedding.load(source, word)
    if word is None:
        raise ConceptError("The bytes of an embedding have no name. Give the word that it is to be.")
    return Embedding.from_bytes(_bytes_of(source, "embedding"), word)


def _bytes_of(source: Any, noun: str) -> bytes:
    try:
        data = source.read(MAX_CARD_BYTES + 1) if hasattr(source, "read") else source
    except UnicodeDecodeError:  # opened as text
        data = ""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ConceptError(
            f"The {noun} is {type(source).__name__} that gives {type(data).__name__}, expected a path, bytes or a "
            'file opened with "rb".'
        )
    return bytes(data)


def _read_projections(bundle: Bundle) -> NDArray[Any]:
    """(Σ d_K, text_dim) float16"""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    assert bundle.key_projections is not None
    expected = (bundle.unet.key_width, bundle.text_dim)
    try:
        tensors = load_file(bundle.key_projections)
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{bundle.key_projections} cannot be read: {error}. Export the bundle again."
        ) from error
    projections = tensors.get("key_projections")
    if projections is None or projections.shape != expected:
        raise BundleError(
            f"{bundle.key_projections} holds {None if projections is None else projections.shape}, expected a tensor "
            f"'key_projections' of {expected}. Export the bundle again."
        )
    return projections
