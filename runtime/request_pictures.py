"""The pictures of a request: what is drawn over, where, and what controls the drawing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perfusion.errors import RequestError
from perfusion.runtime.pictures import as_mask
from perfusion.runtime.request_values import is_list, is_number, per_prompt, share_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from perfusion.bundle.description import Bundle

__all__ = ["RequestPictures", "read_pictures", "warn_of_masks"]

_log = logging.getLogger(__name__)

_MAX_CONTROL = 2  # as in other programs; 1 is what a ControlNet was trained with
_IMAGE_STRENGTH, _MASK_STRENGTH = 0.8, 1.0  # diffusers' own


@dataclass(frozen=True, kw_only=True)
class RequestPictures:
    """The lists have one entry a prompt, or none at all."""

    images: list[Image]
    masks: list[Image]
    control_images: list[Image]
    image_strength: float
    control_scale: float


def read_pictures(
    bundle: Bundle,
    prompts: int,
    *,
    image: Any,
    mask: Any,
    image_strength: Any,
    control_image: Any,
    control_scale: Any,
) -> RequestPictures:
    """Open the pictures that a request names, one for each of its prompts.

    Raises:
        RequestError: pictures that do not go together, or that the bundle has no graph for.
    """
    images = _pictures("images", image, prompts)
    masks = _pictures("masks", mask, prompts)
    if masks and not images:
        raise RequestError("There is a mask and no image; give the image that is to be drawn over.")
    if images and bundle.decoder.encoder is None:
        raise RequestError("This bundle has no VAE encoder, so it reads no images. Export it again.")
    control_images = _pictures("control images", control_image, prompts)
    if control_images and bundle.controlnet is None:
        raise RequestError(_no_controlnet(bundle))
    return RequestPictures(
        images=images,
        masks=masks,
        control_images=control_images,
        image_strength=_image_strength(image_strength, images, masks),
        control_scale=_control_scale(control_scale, control_images),
    )


def warn_of_masks(masks: list[Image], width: int, height: int, downscale: int) -> None:
    """Say it where a mask tells no place from another: what comes looks as if nothing had been wrong.

    Args:
        masks: one a prompt; the same one is looked at once.
        width: of the pictures, in pixels.
        height: of the pictures, in pixels.
        downscale: pixels of a picture to one of the latents, along a side.
    """
    for mask in {id(mask): mask for mask in masks}.values():
        _warn_of_mask(mask, width, height, downscale)


def _pictures(name: str, source: Any, prompts: int) -> list[Any]:
    """One picture a prompt, in the form of an image or of a mask; none at all where none was given."""
    if source is None:
        return []
    from perfusion.picture_input import as_rgb, mask_of, open_picture  # Pillow, for requests that need it

    form = mask_of if name == "masks" else as_rgb
    if is_list(source):
        return [form(open_picture(each)) for each in per_prompt(name, source, prompts)]
    return [form(open_picture(source))] * prompts


def _warn_of_mask(mask: Image, width: int, height: int, downscale: int) -> None:
    """Say it where a mask tells no place from another: what comes looks as if nothing had been wrong."""
    share = float(as_mask(mask, width, height, downscale).mean())
    if 0 < share < 1:
        return
    from perfusion.picture_input import mask_fault

    fault = mask_fault(mask) or f"has only {'light' if share else 'dark'} places at {width} × {height} pixels"
    _log.warning("The mask %s: %s.", fault, "all is drawn anew" if share else "nothing is drawn, all is kept")


def _image_strength(strength: Any, images: list[Any], masks: list[Any]) -> float:
    if strength is None:
        return _MASK_STRENGTH if masks else _IMAGE_STRENGTH
    if not images:
        raise RequestError(
            "There is an image strength and no image; give the image that is to be drawn over."
        )
    return share_of("image strength", strength)


def _control_scale(scale: Any, control_images: list[Any]) -> float:
    if scale is None:
        return 1.0
    if not control_images:
        raise RequestError("There is a control scale and no control image; give the image that controls.")
    if not (is_number(scale) and 0 <= scale <= _MAX_CONTROL):
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
