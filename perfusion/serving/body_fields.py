"""Fields of a JSON object, each of its kind or refused by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from perfusion.errors import RequestError

__all__ = ["number_of", "text_of", "whole_of"]


def text_of(fields: Mapping[str, Any], name: str, default: str = "") -> str:
    """A text; what is absent or null is the default."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise RequestError(f"The field {name} is {str(value)[:60]!r}, expected a text.")
    return value


def whole_of(fields: Mapping[str, Any], name: str, default: int | None = None) -> int | None:
    """A whole number."""
    value = number_of(fields, name, default)
    if value is None or value == int(value):
        return None if value is None else int(value)
    raise RequestError(f"The field {name} is {value!r}, expected a whole number.")


def number_of(fields: Mapping[str, Any], name: str, default: float | None = None) -> float | None:
    """A finite number."""
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"The field {name} is {str(value)[:60]!r}, expected a number.")
    return value
