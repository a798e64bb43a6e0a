"""The settings of a sweep: ranges as people write them, and all their combinations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from perfusion.concept.bank import Settings
from perfusion.errors import RequestError

__all__ = ["BIASES", "FIELDS", "LOCKS", "Setting", "all_settings", "parse_values"]

LOCKS = ("local", "global")
BIASES = tuple(round(bias, 2) for bias in np.arange(0.4, 1.01, 0.1))
"""What is tried when nothing is said: from much of the concept to little of it (docs/method.md, section 4)."""

FIELDS = ("bias", "temperature", "strength", "start", "lock")
"""Of a setting, in the order that people read them in."""

_MOST_VALUES = 100


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to use the concepts: their settings in force, and where keys come from."""

    bias: float
    temperature: float
    strength: float = 1.0
    start: float = 0.0
    lock: str = "local"

    def __post_init__(self) -> None:
        self.of_concept()  # refuses numbers out of their range
        if self.lock not in LOCKS:
            raise RequestError(f"The lock is {self.lock!r}, expected one of {', '.join(LOCKS)}.")

    def of_concept(self) -> Settings:
        """Without the lock, as a runtime takes it for each concept."""
        return Settings(
            bias=self.bias, temperature=self.temperature, strength=self.strength, start=self.start
        )

    def label(self, fields: Collection[str] = FIELDS) -> str:
        """The values of some fields for people: "bias 0.6, global"."""
        parts = [f"{name} {getattr(self, name):g}" for name in FIELDS if name != "lock" and name in fields]
        return ", ".join([*parts, *([self.lock] if "lock" in fields else [])])


def all_settings(
    *,
    biases: Sequence[float],
    temperatures: Sequence[float],
    strengths: Sequence[float] = (1.0,),
    starts: Sequence[float] = (0.0,),
    locks: Sequence[str] = ("local",),
) -> tuple[Setting, ...]:
    """Every combination once, the bias running fastest.

    Raises:
        RequestError: a number out of its range, or an unknown lock.
    """
    combined = itertools.product(locks, starts, strengths, temperatures, biases)
    made = (
        Setting(bias=bias, temperature=temperature, strength=strength, start=start, lock=lock)
        for lock, start, strength, temperature, bias in combined
    )
    return tuple(dict.fromkeys(made))


def varied(settings: Sequence[Setting]) -> tuple[str, ...]:
    """The fields in which some settings differ; the bias where they do not."""
    found = tuple(name for name in FIELDS if len({getattr(one, name) for one in settings}) > 1)
    return found or ("bias",)


def parse_values(text: str) -> tuple[float, ...]:
    """Numbers as a command line says them: "0.6", "0.4,0.6,0.9", or "0.4:0.9:6" for six from 0.4 to 0.9.

    Raises:
        ValueError: none of the three.
    """
    first, *rest = text.split(":")
    if not rest:
        return tuple(_number(part) for part in text.split(","))
    if len(rest) != 2:
        raise ValueError(f"{text!r} is no range, expected FIRST:LAST:COUNT such as 0.4:0.9:6")
    try:
        count = int(rest[1])
    except ValueError:
        count = 0
    if not 2 <= count <= _MOST_VALUES:
        raise ValueError(
            f"{text!r} asks for {rest[1]!r} values, expected a whole number from 2 to {_MOST_VALUES}"
        )
    return tuple(round(float(value), 6) for value in np.linspace(_number(first), _number(rest[0]), count))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no number, expected values such as 0.6 or a range such as 0.4:0.9:6")
    return value
