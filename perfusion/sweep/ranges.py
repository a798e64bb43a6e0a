"""The settings of a sweep: ranges as people write them, and all their combinations."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from perfusion.concept.settings import DEFAULT_LOCK, SETTINGS, ConceptSettings, check_lock
from perfusion.numerals import decimal

__all__ = ["BIASES", "FIELDS", "Setting", "all_settings", "parse_values", "varied"]

BIASES = tuple(round(bias, 2) for bias in np.arange(0.4, 1.01, 0.1))
"""What is tried when nothing is said: from much of the concept to little of it (docs/method.md, section 4)."""

_MOST_VALUES = 100


@dataclass(frozen=True, kw_only=True)
class Setting(ConceptSettings):
    """One way to use the concepts: their settings, and where keys come from."""

    lock: str = DEFAULT_LOCK

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lock(self.lock)

    def label(self, names: Collection[str] = (*SETTINGS, "lock")) -> str:
        """The values of some fields for people: "bias 0.6, global"."""
        numbers = [f"{name} {getattr(self, name):g}" for name in SETTINGS if name in names]
        return ", ".join([*numbers, *([self.lock] if "lock" in names else [])])


FIELDS = tuple(field.name for field in fields(Setting))
"""Of a setting, in the order that people read them in."""


def all_settings(**ranges: Sequence[Any]) -> tuple[Setting, ...]:
    """Every combination once, the first field running fastest: `all_settings(bias=(0.4, 0.6), lock=LOCKS)`.

    A field that is left out has its default, which is not a concept's own: a strength of 1.

    Raises:
        RequestError: a number out of its range, or an unknown lock.
        TypeError: a field that a setting has not.
    """
    names = sorted(ranges, key=(*FIELDS, *ranges).index, reverse=True)
    combinations = itertools.product(*(ranges[name] for name in names))
    settings = (Setting(**dict(zip(names, values, strict=True))) for values in combinations)
    return tuple(dict.fromkeys(settings))


def varied(settings: Sequence[Setting]) -> tuple[str, ...]:
    """The fields in which some settings differ; the first where they do not."""
    names = tuple(name for name in FIELDS if len({getattr(setting, name) for setting in settings}) > 1)
    return names or FIELDS[:1]


def parse_values(text: str) -> tuple[float, ...]:
    """Numbers as a command line says them: "0.6", "0.4,0.6,0.9", or "0.4:0.9:6" for six from 0.4 to 0.9.

    Decimal commas are read in a range and between semicolons: "0,4:0,9:6", "0,4;0,9".

    Raises:
        ValueError: none of the three, or commas of which nobody knows what they part.
    """
    first, *rest = text.split(":")
    if not rest:
        if ";" not in text and re.search(r"(^|,)\s*0\s*,\s*(?![01]\s*(,|$))\d+\s*(,|$)", text):
            raise ValueError(
                f"{text!r} has commas that may part values or decimals; write decimals with a point, such as 0.4,0.9"
            )
        return tuple(_number(part) for part in text.split(";" if ";" in text else ","))
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
        value = decimal(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no number, expected values such as 0.6 or a range such as 0.4:0.9:6")
    return value
