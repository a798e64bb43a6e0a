"""Fields of a request's object, each of its kind or refused by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from perfusion.serving.answers import StatusError

__all__ = ["flag_of", "number_of", "text_of", "whole_of"]


def text_of(fields: Mapping[str, Any], name: str, default: str = "") -> str:
    """A text; what is absent or null is the default."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise _refusal(name, value, "a text")
    return value


def whole_of(fields: Mapping[str, Any], name: str, default: int | None = None) -> int | None:
    """A whole number; in a form it arrives as text."""
    value = number_of(fields, name, default)
    if value is None or value == int(value):
        return None if value is None else int(value)
    raise _refusal(name, value, "a whole number")


def number_of(fields: Mapping[str, Any], name: str, default: float | None = None) -> float | None:
    """A finite number; in a form it arrives as text."""
    value = fields.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _refusal(name, value, "a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refusal(name, value, "a number")
    return value


def flag_of(fields: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """True or false, also as 0 and 1; in a form it arrives as text."""
    value = fields.get(name)
    if value is None:
        return default
    flag = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if flag is None:
        raise _refusal(name, value, "true or false")
    return flag


def _refusal(name: str, value: object, expected: str) -> StatusError:
    return StatusError(400, f"The field {name} is {str(value)[:60]!r}, expected {expected}.", field=name)
