"""What was asked for, checked and spelled out: one prompt, one seed a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from perfusion.concept.bank import Changes
from perfusion.concept.layout import AUTO, Regions
from perfusion.concept.prompt_syntax import DEFAULT_SYNTAX, check_syntax
from perfusion.concept.regions import Region
from perfusion.concept.settings import DEFAULT_GATES, check_gates, check_lock
from perfusion.errors import RequestError
from perfusion.runtime.request_pictures import read_pictures, warn_of_masks
from perfusion.runtime.request_values import (
    count_of,
    guidance_of,
    is_list,
    is_number,
    per_prompt,
    seed_of,
    share_of,
    size_of,
    steps_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from perfusion.bundle.description import Bundle

__all__ = ["Options", "Request", "check_names", "check_order", "make_request"]

_MAX_PICTURES = 4096  # in one request; their latents lie in memory together
_OTHER_NAMES = {
    "steps": "num_inference_steps", "num_steps": "num_inference_steps", "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale", "guidance": "guidance_scale", "sampler": "scheduler", "sampler_name": "scheduler",
    "strength": "image_strength", "denoising_strength": "image_strength", "init_image": "image",
    "mask_image": "mask", "controlnet_conditioning_scale": "control_scale",
    "control": "control_image", "negative": "negative_prompt", "size": "width",
}  # fmt: skip
"""Of options, as commands and other programs say them."""


class Options(TypedDict, total=False):
    """What a request may say besides its prompt, seed and count; None is the default. Lists have one entry a prompt."""

    negative_prompt: str | list[str] | tuple[str, ...]  # what to move away from; may not name a concept
    width: int | None  # pixels; the bundle's own by default
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None  # 1 or less, as in diffusers, halves the work: no unconditional row
    guidance_rescale: float  # from 0 to 1: how much of the contrast that guidance adds is taken back
    scheduler: str | None  # one of `schedulers.SCHEDULERS`; the bundle's own by default
    image: Image | Path | str | Sequence[Image | Path | str] | None  # to be drawn over
    image_strength: float | None  # above 0, to 1: how far; .8 by default, 1 with a mask
    mask: Image | Path | str | Sequence[Image | Path | str] | None  # light where to draw, dark where to keep
    control_image: (
        Image | Path | str | Sequence[Image | Path | str] | None
    )  # what a ControlNet reads: edges, depths
    control_scale: float | None  # from 0 to 2: how much of it; 1 by default
    concept_settings: Changes | Sequence[Changes | None] | None  # for these pictures only
    lock: str | None  # "local" or "global"; by default what the concepts' files say
    regions: Regions | Sequence[Regions]  # "auto" (default), None, or a list of `Region`
    whole: float  # from 0 (default) to below 1: share of the picture that reads the whole prompt; .3 is much
    gates: str  # "similarity" (default), or "coordinates": a word opens its own gate and no like concept's
    prompt_syntax: str  # "weights" (default), or "plain": brackets, BREAK and <lora:…> are text


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A batch of pictures; the tuples have one entry a picture."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompts: tuple[str, ...]
    images: tuple[Image, ...]  # empty where nothing is drawn over
    masks: tuple[Image, ...]
    control_images: tuple[Image, ...]  # empty where nothing controls
    control_scale: float
    settings: tuple[Changes, ...]
    image_strength: float
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    guided: bool  # whether an unconditional row is computed beside each picture's own
    scheduler: str
    lock: str | None
    gates: str
    regions: tuple[Regions, ...]
    whole: float
    prompt_syntax: str

    @property
    def controlled(self) -> bool:
        """Whether a ControlNet runs before each call of the UNet."""
        return bool(self.control_images)


def make_request(
    bundle: Bundle,
    prompt: str | list[str] | tuple[str, ...],
    seed: int | list[int] | tuple[int, ...],
    count: int | None = None,
    *,
    negative_prompt: str | list[str] | tuple[str, ...] = "",
    width: int | None = None,
    height: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    scheduler: str | None = None,
    image: Any = None,
    image_strength: float | None = None,
    mask: Any = None,
    control_image: Any = None,
    control_scale: float | None = None,
    concept_settings: Any = None,
    lock: str | None = None,
    gates: str = DEFAULT_GATES,
    regions: Any = AUTO,
    whole: float = 0.0,
    prompt_syntax: str = DEFAULT_SYNTAX,
) -> Request:
    """Fill in the bundle's defaults and give every picture its prompt and seed.

    A single prompt serves every seed and a single seed every prompt; with `count` each becomes that many pictures,
    with seeds from its own on.

    Raises:
        RequestError: anything that cannot be served.
    """
    prompts, seeds = _paired(prompt, seed)
    times = 1 if count is None else count_of(count)
    if times * len(prompts) > _MAX_PICTURES:
        raise RequestError(
            f"That would be {times * len(prompts)} pictures, expected at most {_MAX_PICTURES} at once."
        )

    def spread(values: list[Any]) -> tuple[Any, ...]:
        return tuple(value for value in values for _ in range(times))

    if lock is not None:
        check_lock(lock)
    check_gates(gates)
    check_syntax(prompt_syntax)
    pictures = read_pictures(
        bundle,
        len(prompts),
        image=image,
        mask=mask,
        image_strength=image_strength,
        control_image=control_image,
        control_scale=control_scale,
    )
    scale = guidance_of(guidance_scale, bundle.defaults.guidance_scale)
    width = size_of("width", width, bundle.defaults.width, bundle.size_step)
    height = size_of("height", height, bundle.defaults.height, bundle.size_step)
    warn_of_masks(pictures.masks, width, height, bundle.decoder.downscale)
    return Request(
        prompts=spread(prompts),
        seeds=tuple(seed_of(first + more) for first in map(seed_of, seeds) for more in range(times)),
        negative_prompts=spread(per_prompt("negative prompts", negative_prompt, len(prompts))),
        images=spread(pictures.images),
        masks=spread(pictures.masks),
        control_images=spread(pictures.control_images),
        control_scale=pictures.control_scale,
        settings=spread(_settings(concept_settings, len(prompts))),
        image_strength=pictures.image_strength,
        width=width,
        height=height,
        num_inference_steps=steps_of(num_inference_steps, bundle.defaults.num_inference_steps),
        guidance_scale=scale,
        guidance_rescale=share_of("guidance rescale", guidance_rescale),
        guided=bundle.is_guided(scale),
        regions=spread(_regions(regions, len(prompts))),
        whole=share_of("whole", whole),
        scheduler=bundle.defaults.scheduler if scheduler is None else scheduler,
        lock=lock,
        gates=gates,
        prompt_syntax=prompt_syntax,
    )


def check_names(options: Mapping[str, object]) -> None:
    """Refuse options that there are none of, with the right name of what other programs call differently.

    Raises:
        TypeError: which, and what it may mean.
    """
    known = Options.__annotations__
    for name in options:
        if name not in known:
            from difflib import get_close_matches

            near = _OTHER_NAMES.get(name.lower()) or next(iter(get_close_matches(name, known, 1)), None)
            hint = f"Did you mean {near}?" if near else f"Expected one of {', '.join(known)}."
            raise TypeError(f"There is no option {name!r} of a drawing. {hint}")


def check_order(prompt: Any, seed: Any, priority: Any, deadline: Any) -> None:
    """Refuse what no job can be made of: a job is one picture.

    Raises:
        RequestError: several prompts or seeds, or a priority or deadline that is no number.
    """
    if is_list(prompt) or is_list(seed):
        raise RequestError("A job is one picture. Give one prompt and one seed, and submit a job for each.")
    if not is_number(priority):
        raise RequestError(f"The priority is {priority!r}, expected a number; the default is 0.")
    if deadline is not None and not (is_number(deadline) and deadline > 0):
        raise RequestError(f"The deadline is {deadline!r}, expected seconds above 0, or None.")


def _settings(given: Any, prompts: int) -> list[Changes]:
    changes = [{} if change is None else change for change in per_prompt("concept settings", given, prompts)]
    for change in changes:
        if not isinstance(change, Mapping):
            raise RequestError(
                f"The concept settings are {change!r}, expected settings by token, such as "
                "{'<cat>': {'bias': 0.5}}, or a list with such for each prompt."
            )
    return changes


def _regions(given: Any, prompts: int) -> list[Regions]:
    """What one prompt after another says of regions."""
    each = (
        per_prompt("regions", given, prompts)
        if is_list(given) and not _are_regions(given)
        else [given] * prompts
    )
    for regions in each:
        if not (regions is None or regions == AUTO or _are_regions(regions)):
            raise RequestError(
                f"The regions are {regions!r}, expected 'auto', None, a list of Region, or a list with one of "
                "these for each prompt."
            )
    return each


def _are_regions(value: Any) -> bool:
    return is_list(value) and all(isinstance(region, Region) for region in value)


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
