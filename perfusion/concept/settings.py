"""How a loaded concept is used: four numbers that may change with every picture, and two choices for a whole prompt.

Everything about a setting is here: its name, its default, its range. What only hands settings on takes them as
`**settings: Unpack[SettingChanges]` or as one `ConceptSettings`, and never names one. Standard library only, so that a
command can offer them before anything heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, TypedDict

from perfusion.errors import RequestError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "DEFAULT_GATES",
    "DEFAULT_LOCK",
    "FILE_SETTINGS",
    "GATES",
    "LOCKS",
    "OFF",
    "SETTINGS",
    "ConceptSettings",
    "SettingChanges",
    "check_gates",
    "check_lock",
]

LOCKS = (DEFAULT_LOCK := "local", "global")
"""Where keys come from: the concept's own locked ones, or the whole prompt with the superclass in its place."""

GATES = (DEFAULT_GATES := "similarity", "coordinates")
"""What a gate reads: the similarity as it is (the paper's), or the concept's coordinate beside the others."""

FILE_SETTINGS = ("bias", "temperature", "strength")
"""The settings that a concept file has defaults of its own for."""


class SettingChanges(TypedDict, total=False):
    """Some of a concept's settings by name; what is left out, or None, stays as it is."""

    bias: float | None
    temperature: float | None
    strength: float | None
    start: float | None


OFF: SettingChanges = {"strength": 0.0}
"""What draws a concept's superclass in its place, as the base model does."""


@dataclass(frozen=True, kw_only=True)
class ConceptSettings:
    """How a loaded concept is used; the defaults are for a concept of no file.

    Raises:
        RequestError: a number out of its range.
    """

    bias: float = 0.75  # β: how much of a word's encoding must be the concept before it shows; .4 to 1
    temperature: float = 0.15  # τ: how sharp that border is
    strength: float = 1.0  # from 0, the base model, to 1
    start: float = 0.0  # the share of the noise levels, from pure noise on, at which its superclass is drawn

    def __post_init__(self) -> None:
        if not _is_number(self.bias):
            raise RequestError(f"The bias is {self.bias!r}, expected a finite number.")
        if not (_is_number(self.temperature) and self.temperature > 0):
            raise RequestError(f"The temperature is {self.temperature!r}, expected a finite number above 0.")
        if not (_is_number(self.strength) and 0 <= self.strength <= 1):
            raise RequestError(f"The strength is {self.strength!r}, expected 0 (the base model) to 1.")
        if not (_is_number(self.start) and 0 <= self.start < 1):
            raise RequestError(f"The start is {self.start!r}, expected 0 (from the beginning) to below 1.")

    def merged(self, changes: Mapping[str, object]) -> Self:
        """These settings with some of them changed by name; None keeps one.

        Raises:
            RequestError: an unknown setting, or a number out of its range.
        """
        values: dict[str, Any] = dict(vars(self))  # `replace` takes three microseconds more
        for name, value in changes.items():
            if name not in values:
                raise RequestError(f"There is no setting {name!r}, expected {', '.join(values)}.")
            if value is not None:
                values[name] = value
        return type(self)(**values)

    def at(self, share: float) -> Self:
        """These settings at a share of the noise levels, from pure noise on: off before the start."""
        return self if self.start <= share else self.merged(OFF)


SETTINGS = tuple(field.name for field in fields(ConceptSettings))
"""Their names, in the order that people read them in."""


def check_lock(lock: object) -> None:
    """Raises RequestError for what is none of `LOCKS`."""
    if lock not in LOCKS:
        raise RequestError(f"The lock is {lock!r}, expected one of {', '.join(LOCKS)}.")


def check_gates(gates: object) -> None:
    """Raises RequestError for what is none of `GATES`."""
    if gates not in GATES:
        raise RequestError(f"The gates are {gates!r}, expected one of {', '.join(GATES)}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, Real)) and not isinstance(value, bool) and math.isfinite(value)
