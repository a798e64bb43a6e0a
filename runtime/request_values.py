"""The numbers and lists of a request, checked: each is returned as it is used, or refused in a sentence."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from perfusion.errors import RequestError

__all__ = [
    "count_of",
    "guidance_of",
    "is_list",
    "is_number",
    "per_prompt",
    "seed_of",
    "share_of",
    "size_of",
    "steps_of",
    "whole_number",
]

_MAX_SEED = 2**32 - 1
_MAX_SIDE = 2**14  # pixels; also about what WebP and a graph's 32-bit sizes take
_MAX_GUIDANCE = 1000  # 30 is much already; far above, float32 ends


def is_number(value: Any) -> bool:
    """A finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole_number(value: Any) -> int | None:
    """A whole number of any kind (numpy's too), None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def is_list(value: Any) -> bool:
    """A list or a tuple; a text is a single value."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def per_prompt(name: str, value: Any, prompts: int) -> list[Any]:
    """One value a prompt, from one or from a list.

    Raises:
        RequestError: a list of another length.
    """
    values = list(value) if is_list(value) else [value] * prompts
    if len(values) != prompts:
        raise RequestError(f"There are {len(values)} {name} for {prompts} prompts; give one, or one each.")
    return values


def count_of(count: Any) -> int:
    """How many pictures of each prompt.

    Raises:
        RequestError: no whole number from 1 on.
    """
    value = whole_number(count)
    if value is None or value < 1:
        raise RequestError(f"The count is {count!r}, expected a whole number from 1 on.")
    return value


def share_of(name: str, value: Any) -> float:
    """A number from 0 to 1; `name` is what the sentence calls it.

    Raises:
        RequestError: anything else.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise RequestError(f"The {name} is {value!r}, expected a number from 0 to 1.")
    return number


def seed_of(seed: Any) -> int:
    """A seed of 32 bits.

    Raises:
        RequestError: anything else.
    """
    value = whole_number(seed)
    if value is None or not 0 <= value <= _MAX_SEED:
        raise RequestError(f"The seed is {seed!r}, expected a whole number from 0 to {_MAX_SEED}.")
    return value


def size_of(name: str, size: Any, default: int, step: int) -> int:
    """A side in pixels: a multiple of `step`.

    Raises:
        RequestError: anything else.
    """
    value = default if size is None else whole_number(size)
    if value is None or value < step or value % step:
        raise RequestError(
            f"The {name} is {size!r}, expected a multiple of {step} pixels{_nearest(value, step)}."
        )
    if value > _MAX_SIDE:
        raise RequestError(f"The {name} is {value}, expected at most {_MAX_SIDE} pixels.")
    return value


def _nearest(value: int | None, step: int) -> str:
    return "" if value is None else f", such as {max(step, (value + step // 2) // step * step)}"


def steps_of(steps: Any, default: int) -> int:
    """The number of steps; the scheduler knows its bounds.

    Raises:
        RequestError: no whole number.
    """
    value = default if steps is None else whole_number(steps)
    if value is None:
        raise RequestError(f"The number of steps is {steps!r}, expected a whole number.")
    return value


def guidance_of(scale: Any, default: float) -> float:
    """A guidance scale; 1 or less is no guidance.

    Raises:
        RequestError: no number, or one that is far out.
    """
    try:
        value = default if scale is None else float(scale)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= _MAX_GUIDANCE:  # nor NaN
        shown = default if scale is None else scale
        raise RequestError(
            f"The guidance scale is {shown!r}, expected a number from 0 to {_MAX_GUIDANCE}; 1 or less is no "
            "guidance."
        )
    return value
