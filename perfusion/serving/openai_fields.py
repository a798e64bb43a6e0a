"""What a request in OpenAI's dialect asks for: its fields, as JSON or as a form, to what is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile

from perfusion.bundle.description import Bundle
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import concept_files_of, data_of, parse_json, picture_of
from perfusion.serving.body_fields import flag_of, number_of, text_of, whole_of
from perfusion.serving.order import PictureSpec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageRequest", "edited_pictures", "form_fields", "image_request", "json_images"]

_MOST_PICTURES, _MOST_CHARACTERS, _MOST_PARTIALS = 10, 32_000, 3
_FORMATS = ("png", "jpeg", "webp")
_QUALITY_STEPS = {
    "low": 0.5, "standard": 1.0, "medium": 1.0, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 3.0,
}  # fmt: skip
"""How many times the bundle's own number of steps a quality takes."""
_OWN_TEXTS = ("scheduler", "lock", "gates", "prompt_syntax")
_OWN_NUMBERS = ("image_strength", "guidance_rescale", "whole")


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """A request of this dialect, checked."""

    spec: PictureSpec
    kind: str  # of the files: "png", "jpeg" or "webp"
    compression: int  # the quality of JPEG and WebP
    quality: str
    as_urls: bool  # data URLs in place of bare base64
    is_stream: bool
    safety_identifier: str | None


def image_request(
    bundle: Bundle, fields: Mapping[str, Any], image: Image | None = None, mask: Image | None = None
) -> ImageRequest:
    """A request for pictures; with `image`, for pictures drawn over it.

    Raises:
        StatusError: a field that cannot be served.
    """
    prompt = text_of(fields, "prompt")
    if not prompt:
        raise StatusError(400, "There is no prompt. Say what is to be drawn.", field="prompt")
    if len(prompt) > _MOST_CHARACTERS:
        raise StatusError(
            400,
            f"The prompt has {len(prompt)} characters, expected at most {_MOST_CHARACTERS}.",
            field="prompt",
        )
    if text_of(fields, "background", "auto") == "transparent":
        raise StatusError(
            400, "The background is transparent, and this server draws opaque pictures.", field="background"
        )
    options = _options(bundle, fields, image)
    if image is not None:
        options |= {"image": image, "mask": mask}
    return ImageRequest(
        spec=PictureSpec(
            prompt=prompt, seed=whole_of(fields, "seed"), count=_within(fields, "n", 1, 1, _MOST_PICTURES),
            exact=flag_of(fields, "exact"), files=concept_files_of(fields),
            partials=_within(fields, "partial_images", 0, 0, _MOST_PARTIALS) if flag_of(fields, "stream") else 0,
            options=options,
        ),
        kind=_choice(fields, "output_format", _FORMATS),
        compression=_within(fields, "output_compression", 95, 0, 100),
        quality=text_of(fields, "quality", "auto"),
        as_urls=_choice(fields, "response_format", ("b64_json", "url")) == "url",
        is_stream=flag_of(fields, "stream"),
        safety_identifier=text_of(fields, "safety_identifier") or text_of(fields, "user") or None,
    )  # fmt: skip


def edited_pictures(images: list[bytes], mask: bytes | None) -> tuple[Image, Image | None]:
    """The picture to draw over, and where: white in the second. In this dialect's masks, and in pictures without one,
    transparent places are drawn.

    Raises:
        StatusError: no picture or several, a mask of another size or without transparent places.
    """
    from PIL import ImageChops

    from perfusion.picture_input import alpha_of

    if len(images) != 1:
        raise StatusError(
            400, f"There are {len(images)} images, and this server draws over one.", field="image"
        )
    image = picture_of(images[0])
    if mask is None:
        alpha = alpha_of(image)
        return image, None if alpha is None else ImageChops.invert(alpha)
    drawn_over = picture_of(mask, "mask")
    alpha = alpha_of(drawn_over)
    if drawn_over.size != image.size:
        raise StatusError(
            400, f"The mask has {drawn_over.size} pixels and the image {image.size}.", field="mask"
        )
    if alpha is None:
        raise StatusError(
            400, "The mask has no transparent place, which would say where to draw.", field="mask"
        )
    return image, ImageChops.invert(alpha)


async def form_fields(form: FormData) -> tuple[dict[str, Any], list[bytes], bytes | None]:
    """The fields of a form, its images and its mask. Names with brackets are objects, as this dialect's clients send
    them: `concepts[<cat>][strength]`.
    """
    fields: dict[str, Any] = {}
    images, mask = list[bytes](), None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            data = await value.read()
            mask = data if name == "mask" else mask
            images += [data] if re.fullmatch(r"image(\[\d*\])?", name) else []
        else:
            _put(fields, re.split(r"\]\[|\[|\]", name.rstrip("]")), value)
    return fields, images, mask


def json_images(fields: Mapping[str, Any]) -> tuple[list[bytes], bytes | None]:
    """The images and the mask of a JSON object: data URLs, since no address is fetched."""
    images = fields.get("images")
    if not isinstance(images, list):
        raise StatusError(
            400, 'There are no images, expected such as [{"image_url": "data:…"}].', field="images"
        )
    urls = [image.get("image_url") if isinstance(image, dict) else image for image in images]
    mask = fields.get("mask")
    mask = mask.get("image_url") if isinstance(mask, dict) else mask
    return [data_of(url, "images") for url in urls], None if mask is None else data_of(mask, "mask")


def _options(bundle: Bundle, fields: Mapping[str, Any], image: Image | None) -> dict[str, Any]:
    """What the runtime is told; diffusers' names and ours come in `extra_body`."""
    concepts = fields.get("concepts")
    if isinstance(concepts, str):
        try:
            concepts = parse_json(concepts)
        except ValueError:
            raise StatusError(400, "The concepts are no JSON object.", field="concepts") from None
    options: dict[str, Any] = {
        "negative_prompt": text_of(fields, "negative_prompt"),
        "num_inference_steps": whole_of(fields, "num_inference_steps") or _steps(bundle, fields),
        "guidance_scale": number_of(fields, "guidance_scale"),
        "concept_settings": _numbers(concepts),
        **_size(bundle, fields, image),
    }
    options |= {name: text_of(fields, name) for name in _OWN_TEXTS if fields.get(name)}
    return options | {name: number_of(fields, name) for name in _OWN_NUMBERS if fields.get(name) is not None}


def _steps(bundle: Bundle, fields: Mapping[str, Any]) -> int | None:
    quality = text_of(fields, "quality", "auto")
    if quality == "auto":
        return None
    times = _QUALITY_STEPS[_choice(fields, "quality", tuple(_QUALITY_STEPS))]
    return max(1, round(bundle.defaults.num_inference_steps * times))


def _size(bundle: Bundle, fields: Mapping[str, Any], image: Image | None) -> dict[str, int]:
    """Width and height. "auto" is the bundle's own size, in the shape of the picture that is drawn over."""
    size = text_of(fields, "size", "auto")
    if size != "auto":
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
        if match is None:
            raise StatusError(
                400,
                f"The size is {size[:60]!r}, expected auto, or width and height such as 512x512.",
                field="size",
            )
        return {"width": int(match[1]), "height": int(match[2])}
    width, height, step = bundle.defaults.width, bundle.defaults.height, bundle.size_step
    if image is not None:
        shape = (image.width / image.height) ** 0.5
        side = (width * height) ** 0.5
        width, height = (max(step, round(length / step) * step) for length in (side * shape, side / shape))
    return {"width": width, "height": height}


def _numbers(concepts: Any) -> Any:
    """Settings that came as text in a form, as numbers."""
    if not isinstance(concepts, dict):
        return concepts
    return {
        token: {name: number_of(changes, name) for name in changes} if isinstance(changes, dict) else changes
        for token, changes in concepts.items()
    }


def _choice(fields: Mapping[str, Any], name: str, choices: Iterable[str]) -> str:
    """One of some texts; the first where there is none."""
    choices = tuple(choices)
    value = text_of(fields, name) or choices[0]
    if value not in choices:
        raise StatusError(
            400, f"The {name} is {value[:60]!r}, expected one of {', '.join(choices)}.", field=name
        )
    return value


def _within(fields: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = whole_of(fields, name, default)
    if value is None or not least <= value <= most:
        raise StatusError(400, f"The field {name} is {value}, expected {least} to {most}.", field=name)
    return value


def _put(fields: dict[str, Any], path: list[str], value: str) -> None:
    """Set a field, or one of an object in a field."""
    *outer, last = path
    for name in outer:
        inner = fields.setdefault(name, {})
        if not isinstance(inner, dict):
            raise StatusError(400, f"The field {name} is a text and an object.", field=name)
        fields = inner
    fields[last] = value
