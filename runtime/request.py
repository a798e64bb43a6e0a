"""What was asked for, checked and spelled out: one prompt, one seed a picture."""

from __future__ import annotations

import logging
import math
import operator
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
from perfusion.runtime.pictures import as_mask

if TYPE_CHECKING:
    from PIL.Image import Image

    from perfusion.bundle.description import Bundle

__all__ = ["Options", "Request", "check_names", "check_order", "make_request"]

_log = logging.getLogger(__name__)

_MAX_SEED = 2**32 - 1
_MAX_SIDE = 2**14  # pixels; also about what WebP and a graph's 32-bit sizes take
_MAX_CONTROL = 2  # as in other programs; 1 is what a ControlNet was trained with
_MAX_GUIDANCE = 1000  # 30 is much already; far above, float32 ends
_MAX_PICTURES = 4096  # in one request; their latents lie in memory together
_OTHER_NAMES = {
    "steps": "num_inference_steps", "num_steps": "num_inference_steps", "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale", "guidance": "guidance_scale", "sampler": "scheduler", "sampler_name": "scheduler",
    "strength": "image_strength", "denoising_strength": "image_strength", "init_image": "image",
    "mask_image": "mask", "controlnet_conditioning_scale": "control_scale",
    "control": "control_image", "negative": "negative_prompt", "size": "width",
}  # fmt: skip
"""Of options, as commands and other programs say them."""
_IMAGE_STRENGTH, _MASK_STRENGTH = 0.8, 1.0  # diffusers' own


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
    times = 1 if count is None else _count(count)
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
    images = _pictures("images", image, len(prompts))
    masks = _pictures("masks", mask, len(prompts))
    if masks and not images:
        raise RequestError("There is a mask and no image; give the image that is to be drawn over.")
    if images and bundle.decoder.encoder is None:
        raise RequestError("This bundle has no VAE encoder, so it reads no images. Export it again.")
    control_images = _pictures("control images", control_image, len(prompts))
    if control_images and bundle.controlnet is None:
        raise RequestError(_no_controlnet(bundle))
    scale = _guidance(guidance_scale, bundle.defaults.guidance_scale)
    width = _size("width", width, bundle.defaults.width, bundle.size_step)
    height = _size("height", height, bundle.defaults.height, bundle.size_step)
    for single_mask in {id(each): each for each in masks}.values():
        _warn_of_mask(single_mask, width, height, bundle.decoder.downscale)
    return Request(
        prompts=spread(prompts),
        seeds=tuple(_seed(first + more) for first in map(_seed, seeds) for more in range(times)),
        negative_prompts=spread(_each("negative prompts", negative_prompt, len(prompts))),
        images=spread(images),
        masks=spread(masks),
        control_images=spread(control_images),
        control_scale=_control_scale(control_scale, control_images),
        settings=spread(_settings(concept_settings, len(prompts))),
        image_strength=_image_strength(image_strength, images, masks),
        width=width,
        height=height,
        num_inference_steps=_steps(num_inference_steps, bundle.defaults.num_inference_steps),
        guidance_scale=scale,
        guidance_rescale=_share("guidance rescale", guidance_rescale),
        guided=bundle.is_guided(scale),
        regions=spread(_regions(regions, len(prompts))),
        whole=_share("whole", whole),
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
    if _several(prompt) or _several(seed):
        raise RequestError("A job is one picture. Give one prompt and one seed, and submit a job for each.")
    if not _is_number(priority):
        raise RequestError(f"The priority is {priority!r}, expected a number; the default is 0.")
    if deadline is not None and not (_is_number(deadline) and deadline > 0):
        raise RequestError(f"The deadline is {deadline!r}, expected seconds above 0, or None.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(count: Any) -> int:
    value = _whole(count)
    if value is None or value < 1:
        raise RequestError(f"The count is {count!r}, expected a whole number from 1 on.")
    return value


def _each(name: str, value: Any, prompts: int) -> list[Any]:
    """One value a prompt, from one or from a list."""
    values = list(value) if _several(value) else [value] * prompts
    if len(values) != prompts:
        raise RequestError(f"There are {len(values)} {name} for {prompts} prompts; give one, or one each.")
    return values


def _several(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _pictures(name: str, source: Any, prompts: int) -> list[Any]:
    """One picture a prompt, in the form of an image or of a mask; none at all where none was given."""
    if source is None:
        return []
    from perfusion.picture_input import as_rgb, mask_of, open_picture  # Pillow, for requests that need it

    form = mask_of if name == "masks" else as_rgb
    if _several(source):
        return [form(open_picture(each)) for each in _each(name, source, prompts)]
    return [form(open_picture(source))] * prompts


def _warn_of_mask(mask: Image, width: int, height: int, downscale: int) -> None:
    """Say it where a mask tells no place from another: what comes looks as if nothing had been wrong."""
    share = float(as_mask(mask, width, height, downscale).mean())
    if 0 < share < 1:
        return
    from perfusion.picture_input import mask_fault

    fault = mask_fault(mask) or f"has only {'light' if share else 'dark'} places at {width} × {height} pixels"
    _log.warning("The mask %s: %s.", fault, "all is drawn anew" if share else "nothing is drawn, all is kept")


def _settings(given: Any, prompts: int) -> list[Changes]:
    changes = [{} if change is None else change for change in _each("concept settings", given, prompts)]
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
        _each("regions", given, prompts) if _several(given) and not _are_regions(given) else [given] * prompts
    )
    for regions in each:
        if not (regions is None or regions == AUTO or _are_regions(regions)):
            raise RequestError(
                f"The regions are {regions!r}, expected 'auto', None, a list of Region, or a list with one of "
                "these for each prompt."
            )
    return each


def _are_regions(value: Any) -> bool:
    return _several(value) and all(isinstance(region, Region) for region in value)


def _image_strength(strength: Any, images: list[Any], masks: list[Any]) -> float:
    if strength is None:
        return _MASK_STRENGTH if masks else _IMAGE_STRENGTH
    if not images:
        raise RequestError(
            "There is an image strength and no image; give the image that is to be drawn over."
        )
    return _share("image strength", strength)


def _control_scale(scale: Any, control_images: list[Any]) -> float:
    if scale is None:
        return 1.0
    if not control_images:
        raise RequestError("There is a control scale and no control image; give the image that controls.")
    if not (_is_number(scale) and 0 <= scale <= _MAX_CONTROL):
        raise RequestError(f"The control scale is {scale!r}, expected a number from 0 to {_MAX_CONTROL}.")
    return float(scale)


def _no_controlnet(bundle: Bundle) -> str:
    if not bundle.controlnets:
        return (
            "There is a control image, and this bundle has no ControlNet. Export it again with perfusion-export "
            "--controlnet."
        )
    names = ", ".join(bundle.controlnets)
    return (
        f"There is a control image, and this bundle has several ControlNets ({names}). Open the runtime with the name "
        "of one: controlnet=."
    )


def _share(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise RequestError(f"The {name} is {value!r}, expected a number from 0 to 1.")
    return number


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
            f"The guidance scale is {shown!r}, expected a number from 0 to {_MAX_GUIDANCE}; 1 or less is no "
            "guidance."
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
