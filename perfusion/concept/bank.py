"""The concepts in use: each checked against the base model once, then ready as plain arrays.

Shared by the runtime, whose base is a bundle, and by `perfusion.diffusers`, whose base is a pipeline.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from perfusion.concept.blending import Reading, readings
from perfusion.concept.concept_file import Concept
from perfusion.concept.edit import locked_keys
from perfusion.concept.settings import SETTINGS, ConceptSettings, SettingChanges
from perfusion.concept.words import Word
from perfusion.embedded import EDITIONS, is_embedded
from perfusion.errors import ConceptError, RequestError

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["BaseTraits", "Changes", "ConceptBank", "EditRows"]

Array = NDArray[np.float32]

Changes = Mapping[str, Mapping[str, float] | SettingChanges | ConceptSettings]
"""By a concept's token: settings to be used in the place of the bank's, or some of them by name."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseTraits:
    """What a concept is held against."""

    noun: str  # what messages call it: "bundle", "pipeline"
    family: str
    fingerprint: str
    text_dim: int
    hidden_sizes: tuple[int, ...]  # one a text encoder
    key_width: int  # Σ d_K
    value_width: int  # Σ d_V
    key_projections: (
        Callable[[], NDArray[Any]] | None
    )  # gives (Σ d_K, text_dim); None where they are not kept
    loras: tuple[str, ...] = ()  # added to its weights, by the names of their files
    family_is_certain: bool = True  # not where it was told from sizes: then an equal fingerprint settles it


@dataclass(frozen=True, kw_only=True, eq=False)
class EditRows:
    """The rows of some concepts under one another, J in all: what the edit and the UNet read."""

    slots: tuple[tuple[str, int], ...]  # (J,) the token and the row each of them is
    direction: Array  # (J, text_dim)
    dual: Array  # (J, text_dim)
    energy: Array  # (J,)
    bias: NDArray[np.float64]  # (J,)
    temperature: NDArray[np.float64]  # (J,)
    strength: NDArray[np.float64]  # (J,)
    keys: Array  # (J, Σ d_K)
    values: Array  # (J, Σ d_V)

    def none(self) -> EditRows:
        """No rows, of the same widths."""
        return EditRows(**{name: column[:0] for name, column in vars(self).items()})


_GATE_SETTINGS = tuple(name for name in SETTINGS if name in EditRows.__dataclass_fields__)
"""The settings that the formula of the edit reads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    concept: Concept
    keys: Array  # (rows, Σ d_K)
    settings: ConceptSettings


class ConceptBank:
    """Concepts by their token."""

    def __init__(self, base: BaseTraits) -> None:
        self._base = base
        self._loaded: dict[str, _Loaded] = {}
        self._projections: NDArray[Any] | None = None

    @property
    def concepts(self) -> Mapping[str, Concept]:
        """The loaded concepts by their token, in the order they came."""
        loaded = dict(self._loaded)  # in one go: another thread may load a concept meanwhile
        return MappingProxyType({token: entry.concept for token, entry in loaded.items()})

    def load(self, concept: Concept, **settings: Unpack[SettingChanges]) -> None:
        """Make a concept's token a word. Settings that are left out are the file's own.

        Raises:
            ConceptError: its token is taken, or it is not for this base model.
            RequestError: a setting out of its range.
        """
        if concept.token in self._loaded:
            raise ConceptError(
                f"A concept named {concept.token} is loaded already. Unload it first, or load this one under "
                "another token."
            )
        _check_fits(concept, self._base)
        changed = concept.settings.merged(settings)
        self._loaded[concept.token] = _Loaded(concept=concept, keys=self._keys(concept), settings=changed)

    def change(self, token: str, **settings: Unpack[SettingChanges]) -> ConceptSettings:
        """Change what is given and keep the rest; returns the settings now in force.

        Raises:
            RequestError: no such concept is loaded, or a setting is out of its range.
        """
        loaded = self._get(token)
        changed = loaded.settings.merged(settings)
        self._loaded[token] = _Loaded(concept=loaded.concept, keys=loaded.keys, settings=changed)
        return changed

    def unload(self, token: str) -> None:
        """Raises RequestError when no such concept is loaded."""
        self._get(token)
        del self._loaded[token]

    def embeddings(self, tokens: Sequence[str], encoder: int = 0) -> Array:
        """(rows, hidden) the learned words of some concepts, in their order, for one of the text encoders."""
        empty = np.empty((0, self._base.hidden_sizes[encoder]), np.float32)
        return _stacked([self._get(token).concept.embeddings[encoder] for token in tokens], empty)

    def active(self, tokens: Iterable[str]) -> tuple[str, ...]:
        """Those of some concepts whose strength is not 0: the others are the base model's plain text."""
        return tuple(token for token in tokens if self._get(token).settings.strength > 0)

    def phases(self, tokens: Iterable[str]) -> tuple[tuple[float, Self], ...]:
        """How some concepts come in, one after another: every start, from 0 on, with the bank as it is from there."""
        starts = sorted({0.0, *(float(self._get(token).settings.start) for token in tokens)})
        return tuple((start, self.at(start)) for start in starts)

    def at(self, share: float) -> Self:
        """The bank at a share of the noise levels, from pure noise on: what starts later is off."""
        now = {token: entry.settings.at(share) for token, entry in self._loaded.items()}
        changes = {
            token: settings for token, settings in now.items() if settings != self._get(token).settings
        }
        return self.adjusted(changes) if changes else self

    def adjusted(self, changes: Changes | None = None) -> Self:
        """The bank as it is now, with other settings for one picture; what happens to this one does not reach it.

        Raises:
            RequestError: no such concept is loaded, or a setting is unknown or out of its range.
        """
        other = copy.copy(self)
        other._loaded = dict(self._loaded)
        for token, change in (changes or {}).items():
            if isinstance(change, ConceptSettings):
                change = {name: getattr(change, name) for name in SETTINGS}
            if not isinstance(change, Mapping) or not set(change) <= set(SETTINGS):
                raise RequestError(
                    f"The settings of {token} are {change!r}, expected some of {', '.join(SETTINGS)} by name."
                )
            # by this very class's method: one that waits for other threads has no need to, nobody else knows `other`
            ConceptBank.change(other, token, **cast(SettingChanges, change))
        return other

    def readings(self, tokens: Iterable[str]) -> tuple[Reading, ...]:
        """The ways to read a prompt with some concepts at their strengths now; see `perfusion.concept.blending`."""
        return readings({token: self._get(token).settings.strength for token in tokens})

    def words(self, active: Container[str] | None = None) -> dict[str, Word]:
        """All concepts as words of a prompt; those not `active`, unless given those of strength 0, are their
        superclass."""
        return {
            token: Word(
                rows=entry.concept.rows,
                superclass=entry.concept.superclass,
                active=entry.settings.strength > 0 if active is None else token in active,
            )
            for token, entry in self._loaded.items()
        }

    def common_lock(self, tokens: Sequence[str]) -> str:
        """The lock that the files of some concepts of one prompt ask for.

        Raises:
            RequestError: they ask for different ones.
        """
        locks = {token: self._get(token).concept.lock for token in tokens}
        if len(set(locks.values())) > 1:
            choices = ", ".join(f"{token} {lock}" for token, lock in locks.items())
            raise RequestError(
                f"The concepts of one prompt ask for different locks ({choices}). Choose one for all."
            )
        return locks[tokens[0]]

    def rows(self, tokens: Sequence[str]) -> EditRows:
        """The rows of some concepts, in their order; J = 0 when there are none."""
        loaded = [self._get(token) for token in tokens]
        concepts = [entry.concept for entry in loaded]
        text, base = np.empty((0, self._base.text_dim), np.float32), self._base
        keys, values = (np.empty((0, width), np.float32) for width in (base.key_width, base.value_width))
        return EditRows(
            slots=tuple((concept.token, row) for concept in concepts for row in range(concept.rows)),
            direction=_stacked([concept.direction for concept in concepts], text),
            dual=_stacked([concept.dual for concept in concepts], text),
            energy=_stacked([concept.energy for concept in concepts], text[:, 0]),
            keys=_stacked([entry.keys for entry in loaded], keys),
            values=_stacked([concept.target_values for concept in concepts], values),
            **self._gate_settings(tokens),
        )

    def _gate_settings(self, tokens: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """(J,) each: the settings that the formula reads, for every row of some concepts."""
        loaded = [self._get(token) for token in tokens]
        settings = [entry.settings for entry in loaded for _ in range(entry.concept.rows)]
        return {
            name: np.array([getattr(row, name) for row in settings], np.float64) for name in _GATE_SETTINGS
        }

    def _get(self, token: str) -> _Loaded:
        if token not in self._loaded:
            loaded = ", ".join(self._loaded) or "none"
            raise RequestError(f"No concept named {token!r} is loaded. Loaded: {loaded}.")
        return self._loaded[token]

    def _keys(self, concept: Concept) -> Array:
        """The locked keys: the file's when they were made from this very base, else W_K ē_super anew."""
        base = self._base
        same = concept.base_fingerprint == base.fingerprint
        if same and concept.target_keys is not None:
            return concept.target_keys
        if base.key_projections is not None:
            if not same:
                _log.warning(
                    "%s; its keys are derived anew from this %s", _other_checkpoint(concept, base), base.noun
                )
            return locked_keys(self._key_projections(base.key_projections), concept.superclass_encoding)
        if concept.target_keys is None:
            raise ConceptError(
                f"{concept.token} comes without target keys, and this {base.noun} has no key projections to "
                f"make them. Export the {base.noun} again, or save the concept with its keys."
            )
        _log.warning(
            "%s; this %s cannot derive its keys anew, so the file's are used",
            _other_checkpoint(concept, base),
            base.noun,
        )
        return concept.target_keys

    def _key_projections(self, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """(Σ d_K, text_dim), read with the first concept that needs it."""
        if self._projections is None:
            self._projections = read()
        return self._projections


def _remedy(concept: Concept, base: BaseTraits) -> str:
    """What to do with a concept of another family."""
    if not (is_embedded(concept.base) and is_embedded(base.family)):
        return f"Use a {base.noun} of {concept.base}, or train the concept on this one's base model."
    editions = "These are two editions of the embedded model, and a concept works with its own."
    if base.family != EDITIONS[-1]:
        if base.noun == "bundle":
            return f"{editions} Export the bundle anew: perfusion-export --output DIR"
        return (
            f"{editions} Open the embedded model that this package brings, or use a concept of {base.family}."
        )
    return (
        f"{editions} Train it anew: perfusion-train --images DIR --superclass "
        f'"{concept.superclass}" --token "{concept.token}" --steps 100 --output FILE'
    )


def _check_fits(concept: Concept, base: BaseTraits) -> None:
    """Refuse a concept of another family, or whose arrays are not as long as this base model's."""
    same = not base.family_is_certain and concept.base_fingerprint == base.fingerprint
    if concept.base != base.family and not same:
        raise ConceptError(
            f"{concept.token} was trained for {concept.base}, this {base.noun} is {base.family}. "
            f"{_remedy(concept, base)}"
        )
    if len(concept.embeddings) != len(base.hidden_sizes):
        raise ConceptError(
            f"{concept.token} has {len(concept.embeddings)} word embeddings, this {base.noun} takes "
            f"{len(base.hidden_sizes)}."
        )
    keys = concept.target_keys
    lengths = {
        "direction": (concept.direction.shape[1], base.text_dim),
        "target_values": (concept.target_values.shape[1], base.value_width),
        "target_keys": (base.key_width if keys is None else keys.shape[1], base.key_width),
    }
    for index, (words, hidden) in enumerate(zip(concept.embeddings, base.hidden_sizes, strict=True)):
        lengths["embeddings" if len(base.hidden_sizes) == 1 else f"embeddings.{index}"] = (
            words.shape[1],
            hidden,
        )
    for name, (found, expected) in lengths.items():
        if found != expected:
            raise ConceptError(
                f"{concept.token} has {name} of {found} numbers a row, this {base.noun} takes {expected}. "
                f"Train it on this {base.noun}'s base model."
            )


def _other_checkpoint(concept: Concept, base: BaseTraits) -> str:
    other = f"{concept.token} was trained on another {concept.base} checkpoint than this {base.noun}'s"
    return f"{other}, to which {' and '.join(base.loras)} was added" if base.loras else other


def _stacked(parts: Sequence[Array], empty: Array) -> Array:
    """Rows under one another; a single part as it is, without a copy."""
    if not parts:
        return empty
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
