"""The loaded concepts: each checked against the base model once, then ready as plain arrays.

Nothing is compiled and no graph changes when a concept comes or goes; loading one costs reading its file.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from perfusion.concept import Concept
from perfusion.edit import locked_keys
from perfusion.errors import BundleError, ConceptError, RequestError
from perfusion.runtime.bundle import Bundle

__all__ = ["Bank", "EditRows", "Settings"]

Array = NDArray[np.float32]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a loaded concept is used; they may change with every picture.

    Raises:
        RequestError: a number out of its range.
    """

    bias: float  # β: how much of a word's encoding must be the concept before it shows; .4 to 1
    temperature: float  # τ: how sharp that border is
    strength: float = 1.0  # from 0, the base model, to 1

    def __post_init__(self) -> None:
        for name, least, most in (("bias", -math.inf, math.inf), ("temperature", 0.0, math.inf)):
            value = getattr(self, name)
            if not (_is_number(value) and least < value < most):
                above = " above 0" if least == 0 else ""
                raise RequestError(f"The {name} is {value!r}, expected a finite number{above}.")
        if not (_is_number(self.strength) and 0 <= self.strength <= 1):
            raise RequestError(f"The strength is {self.strength!r}, expected 0 (the base model) to 1.")


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    concept: Concept
    keys: Array  # (rows, Σ d_K)
    settings: Settings


class Bank:
    """Concepts by their token."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._loaded: dict[str, _Loaded] = {}
        self._projections: NDArray[np.float16] | None = None

    @property
    def concepts(self) -> Mapping[str, Concept]:
        """The loaded concepts by their token, in the order they came."""
        return MappingProxyType({token: one.concept for token, one in self._loaded.items()})

    def load(
        self,
        concept: Concept,
        *,
        bias: float | None = None,
        temperature: float | None = None,
        strength: float | None = None,
    ) -> None:
        """Make a concept's token a word. Settings that are left out are the file's own, and strength 1.

        Raises:
            ConceptError: its token is taken, or it is not for this base model.
            RequestError: a setting out of its range.
        """
        if concept.token in self._loaded:
            raise ConceptError(
                f"A concept named {concept.token} is loaded already. Unload it first, or load this one under "
                "another token."
            )
        _check_fits(concept, self._bundle)
        defaults = Settings(bias=concept.bias, temperature=concept.temperature)
        settings = _changed(defaults, bias, temperature, strength)
        self._loaded[concept.token] = _Loaded(concept=concept, keys=self._keys(concept), settings=settings)

    def change(
        self,
        token: str,
        *,
        bias: float | None = None,
        temperature: float | None = None,
        strength: float | None = None,
    ) -> Settings:
        """Change what is given and keep the rest; returns the settings now in force.

        Raises:
            RequestError: no such concept is loaded, or a setting is out of its range.
        """
        loaded = self._get(token)
        settings = _changed(loaded.settings, bias, temperature, strength)
        self._loaded[token] = replace(loaded, settings=settings)
        return settings

    def unload(self, token: str) -> None:
        """Raises RequestError when no such concept is loaded."""
        self._get(token)
        del self._loaded[token]

    def embeddings(self, tokens: Sequence[str]) -> Array:
        """(rows, hidden) the learned words of some concepts, in their order."""
        empty = np.empty((0, self._bundle.text_encoder.hidden_size), np.float32)
        return _stacked([self._get(token).concept.embeddings[0] for token in tokens], empty)

    def active(self, tokens: Iterable[str]) -> tuple[str, ...]:
        """Those of some concepts whose strength is not 0: the others are the base model's plain text."""
        return tuple(token for token in tokens if self._get(token).settings.strength > 0)

    def rows(self, tokens: Sequence[str]) -> EditRows:
        """The rows of some concepts, in their order; J = 0 when there are none."""
        chosen = [self._get(token) for token in tokens]
        text, unet = np.empty((0, self._bundle.text_dim), np.float32), self._bundle.unet
        settings = [one.settings for one in chosen for _ in range(one.concept.rows)]
        return EditRows(
            slots=tuple((one.concept.token, row) for one in chosen for row in range(one.concept.rows)),
            direction=_stacked([one.concept.direction for one in chosen], text),
            dual=_stacked([one.concept.dual for one in chosen], text),
            energy=_stacked([one.concept.energy for one in chosen], text[:, 0]),
            bias=np.array([one.bias for one in settings], np.float64),
            temperature=np.array([one.temperature for one in settings], np.float64),
            strength=np.array([one.strength for one in settings], np.float64),
            keys=_stacked([one.keys for one in chosen], np.empty((0, unet.key_width), np.float32)),
            values=_stacked(
                [one.concept.target_values for one in chosen], np.empty((0, unet.value_width), np.float32)
            ),
        )

    def _get(self, token: str) -> _Loaded:
        if token not in self._loaded:
            loaded = ", ".join(self._loaded) or "none"
            raise RequestError(f"No concept named {token!r} is loaded. Loaded: {loaded}.")
        return self._loaded[token]

    def _keys(self, concept: Concept) -> Array:
        """The locked keys: the file's when they were made from this very base, else W_K ē_super anew."""
        same = concept.base_fingerprint == self._bundle.base_fingerprint
        if same and concept.target_keys is not None:
            return concept.target_keys
        if self._bundle.key_projections is not None:
            if not same:
                _log.warning("%s; its keys are derived anew from this bundle", _other_checkpoint(concept))
            return locked_keys(self._key_projections(), concept.superclass_encoding)
        if concept.target_keys is None:
            raise ConceptError(
                f"{concept.token} comes without target keys, and this bundle has no key projections to make "
                "them. Export the bundle again, or save the concept with its keys."
            )
        _log.warning(
            "%s; this bundle cannot derive its keys anew, so the file's are used", _other_checkpoint(concept)
        )
        return concept.target_keys

    def _key_projections(self) -> NDArray[np.float16]:
        """(Σ d_K, text_dim), read with the first concept that needs it."""
        if self._projections is None:
            self._projections = _read_projections(self._bundle)
        return self._projections


def _read_projections(bundle: Bundle) -> NDArray[np.float16]:
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
    found = tensors.get("key_projections")
    if found is None or found.shape != expected:
        raise BundleError(
            f"{bundle.key_projections} holds {None if found is None else found.shape}, expected a tensor "
            f"'key_projections' of {expected}. Export the bundle again."
        )
    return found


def _check_fits(concept: Concept, bundle: Bundle) -> None:
    """Refuse a concept of another family, or whose arrays are not as long as this base model's."""
    if concept.base != bundle.base:
        raise ConceptError(
            f"{concept.token} was trained for {concept.base}, this bundle is {bundle.base}. "
            f"Use a bundle of {concept.base}, or train the concept on this one's base model."
        )
    if len(concept.embeddings) != 1:
        raise ConceptError(
            f"{concept.token} has {len(concept.embeddings)} word embeddings, this bundle takes 1."
        )
    keys = concept.target_keys
    lengths = {
        "direction": (concept.direction.shape[1], bundle.text_dim),
        "embeddings": (concept.embeddings[0].shape[1], bundle.text_encoder.hidden_size),
        "target_values": (concept.target_values.shape[1], bundle.unet.value_width),
        "target_keys": (bundle.unet.key_width if keys is None else keys.shape[1], bundle.unet.key_width),
    }
    for name, (found, expected) in lengths.items():
        if found != expected:
            raise ConceptError(
                f"{concept.token} has {name} of {found} numbers a row, this bundle takes {expected}. "
                "Train it on this bundle's base model."
            )


def _other_checkpoint(concept: Concept) -> str:
    return f"{concept.token} was trained on another {concept.base} checkpoint than this bundle's"


def _changed(
    settings: Settings, bias: float | None, temperature: float | None, strength: float | None
) -> Settings:
    given = {"bias": bias, "temperature": temperature, "strength": strength}
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _stacked(parts: Sequence[Array], empty: Array) -> Array:
    """Rows under one another; a single part as it is, without a copy."""
    if not parts:
        return empty
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
