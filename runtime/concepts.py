"""The bank of a bundle: which concepts are let in, and where their locked keys come from.

Nothing is compiled and no graph changes when a concept comes or goes; loading one costs reading its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.concept.bank import BaseTraits, Changes, ConceptBank, EditRows
from perfusion.concept.card import MAX_CARD_BYTES
from perfusion.concept.concept_file import Concept
from perfusion.concept.settings import ConceptSettings, SettingChanges
from perfusion.errors import BundleError, ConceptError
from perfusion.hub import local_concept
from perfusion.runtime.cache import Cache

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Bank", "open_concept"]

_MOST_STACKED = 4 << 20  # bytes of several concepts' rows put together


class Bank(ConceptBank):
    """Concepts by their token, each checked against a bundle. For several threads at once."""

    def __init__(self, bundle: Bundle) -> None:
        has_keys = bundle.key_projections is not None
        self._stacked: Cache[EditRows] = Cache(
            _MOST_STACKED, lambda rows: rows.keys.nbytes + rows.values.nbytes
        )
        self._changing = Lock()  # two threads that change one concept: neither's change is lost
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

    def identity(self, tokens: Sequence[str]) -> tuple[Concept, ...]:
        """What encodings and targets of some concepts depend on: the very concepts, whatever their settings."""
        return tuple(self._get(token).concept for token in tokens)

    def rows(self, tokens: Sequence[str]) -> EditRows:
        """The rows of some concepts, in their order; only the settings are new arrays in each call."""
        rows = self._stacked.get(self.identity(tokens), lambda: super(Bank, self).rows(tokens))
        # half the time of `replace`, between two pictures
        return EditRows(**(vars(rows) | self._gate_settings(tokens)))


def open_concept(source: str | Path | bytes | BinaryIO | Concept, bundle: Bundle) -> Concept:
    """A concept from its file, the name of a bundle's sample, the bytes of a file, or a file opened for reading.

    Raises:
        ConceptError: it cannot be read or is no valid concept.
    """
    if isinstance(source, Concept):
        return source
    if isinstance(source, str | Path):
        return Concept.load(bundle.find_concept(local_concept(source)))
    try:
        data = source.read(MAX_CARD_BYTES + 1) if hasattr(source, "read") else source
    except UnicodeDecodeError:  # opened as text
        data = ""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ConceptError(
            f"The concept is {type(source).__name__} that gives {type(data).__name__}, expected a path, bytes or a "
            'file opened with "rb".'
        )
    return Concept.from_bytes(bytes(data))


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
