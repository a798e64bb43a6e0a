"""What was asked for, checked and spelled out: one prompt, one seed a picture."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from perfusion.edit import GATES
from perfusion.errors import RequestError

if TYPE_CHECKING:
    from perfusion.runtime.bundle import Bundle

__all__ = ["LOCKS", "Options", "Request", "make_request"]

LOCKS = ("local", "global")

_MAX_SEED = 2**32 - 1
_MAX_SIDE = 2**14  # pixels; also about what WebP and a graph's 32-bit sizes take
_MAX_GUIDANCE = 1000  # 30 is much already; far above, float32 ends


class Options(TypedDict, total=False):
    """What a request may say besides its prompt and seed."""

    negative_prompt: str | list[str] | tuple[str, ...]  # what to move away from; may not name a concept
    width: int  # pixels; the bundle's own by default
    height: int
    num_inference_steps: int
    guidance_scale: float  # 1 halves the work: no unconditional row
    scheduler: str  # "ddim" (default) or "euler"
    lock: str  # "local" or "global"; by default what the concepts' files say
    gates: str  # "raw" (default), or "gram": a word opens its own gate and no like concept's


@dataclass(frozen=True, kw_only=True)
class Request:
    """A batch of pictures; the tuples have one entry a picture."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompts: tuple[str, ...]
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    lock: str | None
    gates: str

    @property
    def guided(self) -> bool:
        """Whether an unconditional row is computed beside each picture's own."""
        return self.guidance_scale != 1


def make_request(
    bundle: Bundle,
    prompt: str | list[str] | tuple[str, ...],
    seed: int | list[int] | tuple[int, ...],
    *,
    negative_prompt: str | list[str] | tuple[str, ...] = "",
    width: int | None = None,
    height: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str = "ddim",
    lock: str | None = None,
    gates: str = "raw",
) -> Request:
    """Fill in the bundle's defaults and give every picture its prompt and seed.

    A single prompt serves every seed and a single seed every prompt.

    Raises:
        RequestError: anything that cannot be served.
    """
    prompts, seeds = _paired(prompt, seed)
    negative = (
        list(negative_prompt)
        if isinstance(negative_prompt, list | tuple)
        else [negative_prompt] * len(prompts)
    )
    if len(negative) != len(prompts):
        raise RequestError(
            f"There are {len(negative)} negative prompts for {len(prompts)} pictures; give one, or one each."
        )
    if lock is not None and lock not in LOCKS:
        raise RequestError(f"The lock is {lock!r}, expected one of {', '.join(LOCKS)}.")
    if gates not in GATES:
        raise RequestError(f"The gates are {gates!r}, expected one of {', '.join(GATES)}.")
    return Request(
        prompts=tuple(prompts),
        seeds=tuple(_seed(one) for one in seeds),
        negative_prompts=tuple(negative),
        width=_size("width", width, bundle.defaults.width, bundle.size_step),
        height=_size("height", height, bundle.defaults.height, bundle.size_step),
        num_inference_steps=_steps(num_inference_steps, bundle.defaults.num_inference_steps),
        guidance_scale=_guidance(guidance_scale, bundle.defaults.guidance_scale),
        scheduler=scheduler,
        lock=lock,
        gates=gates,
    )


def _paired(prompt: Any, seed: Any) -> tuple[list[Any], list[Any]]:
    """As many prompts as seeds."""
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    seeds = list(seed) if isinstance(seed, list | tuple) else [seed]
    if not prompts or not seeds:
        raise RequestError("There is no prompt or no seed; give at least one of each.")
    if len(prompts) == 1:
        prompts *= len(seeds)
    if len(seeds) == 1:
        seeds *= len(prompts)
    if len(prompts) != len(seeds):
        raise RequestError(
            f"There are {len(seeds)} seeds for {len(prompts)} prompts; give one seed, or one each."
        )
    return prompts, seeds


def _seed(seed: Any) -> int:
    value = _whole(seed)
    if value is None or not 0 <= value <= _MAX_SEED:
        raise RequestError(f"The seed is {seed!r}, expected a whole number from 0 to {_MAX_SEED}.")
    return value


def _size(name: str, size: Any, default: int, step: int) -> int:
    value = default if size is None else _whole(size)
    if value is None or value < step or value % step:
        raise RequestError(
            f"The {name} is {size!r}, expected a multiple of {step} pixels{_nearest(value, step)}."
        )
    if value > _MAX_SIDE:
        raise RequestError(f"The {name} is {value}, expected at most {_MAX_SIDE} pixels.")
    return value


def _nearest(value: int | None, step: int) -> str:
    return "" if value is None else f", such as {max(step, (value + step // 2) // step * step)}"


def _steps(steps: Any, default: int) -> int:
    value = default if steps is None else _whole(steps)
    if value is None:
        raise RequestError(f"The number of steps is {steps!r}, expected a whole number.")
    return value


def _guidance(scale: Any, default: float) -> float:
    try:
        value = default if scale is None else float(scale)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= _MAX_GUIDANCE:  # nor NaN
        shown = default if scale is None else scale
        raise RequestError(
            f"The guidance scale is {shown!r}, expected a number from 0 to {_MAX_GUIDANCE}; 1 is no guidance."
        )
    return value


def _whole(value: Any) -> int | None:
    """A whole number of any kind (numpy's too), None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
