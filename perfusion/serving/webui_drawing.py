"""txt2img and img2img: what A1111's fields ask for, and its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from perfusion.errors import CancelledError
from perfusion.picture_input import as_rgb
from perfusion.runtime import SCHEDULERS, Job, Runtime
from perfusion.runtime.picture_settings import parameters_text
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import MOST_PIXELS, concept_files_of, data_of, picture_of
from perfusion.serving.body_fields import flag_of, number_of, text_of, whole_of
from perfusion.serving.desk import Desk, cancel_when_gone
from perfusion.serving.gate import client_of
from perfusion.serving.infotext import WEBUI_SAMPLERS, fields_like, webui_scheduler
from perfusion.serving.order import Finish, Order, PictureSpec
from perfusion.serving.picture_encoding import as_base64
from perfusion.serving.webui_inpainting import Inpainting, resized

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DIALECT", "check_model", "image_to_image", "text_to_image"]

DIALECT = "webui"
_KINDS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
_NOT_HERE = {
    "enable_hr": "upscale",
    "restore_faces": "restore faces",
    "tiling": "draw tiles",
    "script_name": "run scripts",
    "alwayson_scripts": "run scripts",
    "styles": "add styles to the prompt",
    "subseed_strength": "mix two seeds",
    "refiner_checkpoint": "change the model on the way",
    "latent_mask": "take a second mask",
    "s_churn": "add noise at each step",
}
"""What asks for more than is done here, where it is neither absent nor empty nor 0."""
_STRENGTH, _SIDE = 0.75, 512


async def text_to_image(
    desk: Desk, request: Request, fields: dict[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer to txt2img. `settings`: what the client has set before.

    Raises:
        PerfusionError: what cannot be drawn.
    """
    fields = _with_infotext(fields)
    return await _drawn(desk, request, fields, settings, _spec(fields, {}))


async def image_to_image(
    desk: Desk, request: Request, fields: dict[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer to img2img: white places of a mask are drawn anew.

    Raises:
        StatusError: there is no picture to draw over.
        PerfusionError: what cannot be drawn.
    """
    images = fields.get("init_images")
    if not isinstance(images, list) or not images:
        raise StatusError(404, "There is no init image. Send one in init_images.", field="init_images")
    fields = _with_infotext(fields)
    spec = await asyncio.to_thread(_spec_over, fields, images[0])
    if not flag_of(fields, "include_init_images"):
        fields = fields | {"init_images": None, "mask": None}  # of the answer's copy
    return await _drawn(desk, request, fields, settings, spec)


def _spec(fields: Mapping[str, Any], options: dict[str, Any], finish: Finish | None = None) -> PictureSpec:
    count = max(0, whole_of(fields, "batch_size", 1) or 0) * max(0, whole_of(fields, "n_iter", 1) or 0)
    return PictureSpec(
        prompt=text_of(fields, "prompt"), seed=whole_of(fields, "seed", -1), count=count, names_by_tags=True,
        files=concept_files_of(fields), options=_options(fields) | options, finish=finish,
    )  # fmt: skip


def _spec_over(fields: Mapping[str, Any], image: object) -> PictureSpec:
    """What is drawn over a picture."""
    options: dict[str, Any] = {"image_strength": number_of(fields, "denoising_strength", _STRENGTH)}
    picture = picture_of(data_of(image, "init_images"), "init_images")
    size = whole_of(fields, "width", _SIDE) or 0, whole_of(fields, "height", _SIDE) or 0
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise StatusError(
            400, f"The size is {size[0]} × {size[1]}, expected 1 to {MOST_PIXELS} pixels.", field="width"
        )  # fmt: skip
    if not fields.get("mask"):
        return _spec(fields, options | {"image": resized(fields, as_rgb(picture), size)})
    mask = picture_of(data_of(fields["mask"], "mask"), "mask")
    place = Inpainting.of(fields, picture, mask, size)
    return _spec(fields, options | {"image": place.image, "mask": place.mask}, place.laid_over)


def _with_infotext(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that are not there, from the `parameters` text in `infotext`."""
    text = text_of(fields, "infotext")
    return {**fields_like(text), **fields} if text else fields


async def _drawn(
    desk: Desk, request: Request, fields: dict[str, Any], settings: Mapping[str, Any], spec: PictureSpec
) -> dict[str, Any]:
    kind = _kind(desk, fields, settings)
    order = await desk.take(
        client_of(request), spec, dialect=DIALECT, is_stored=flag_of(fields, "save_images")
    )
    watch = asyncio.ensure_future(cancel_when_gone(request, order))
    try:
        pictures = await _results(order)
    finally:
        watch.cancel()
        if order.is_stored:
            order.cancel()
        else:
            desk.drop(order)
    texts = [
        await as_base64(picture, kind, desk.settings(order, number)) for number, picture in pictures.items()
    ]
    images = texts if flag_of(fields, "send_images", True) else []
    return {"images": images, "parameters": fields, "info": json.dumps(_info(desk, order, fields))}


def _kind(desk: Desk, fields: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What the pictures are encoded as; `override_settings` count more than what was set before."""
    overrides = fields.get("override_settings") or {}
    if not isinstance(overrides, dict):
        raise StatusError(400, "The override_settings are no object.", field="override_settings")
    check_model(desk.runtime, overrides.get("sd_model_checkpoint"))
    return _KINDS.get(str({**settings, **overrides}.get("samples_format", "png")).lower(), "png")


def check_model(runtime: Runtime, model: object) -> None:
    """Raises StatusError for a model that is not here; that of the server may be named or not."""
    base = runtime.bundle.base
    if model and str(model) != base:
        raise StatusError(400, f"There is no model {str(model)[:80]!r}; this server has {base}.")


async def _results(order: Order) -> dict[int, Image]:
    """The pictures by their number; one that was interrupted is as far as it came, and absent before its first step."""
    pictures: dict[int, Image] = {}
    for number, job in enumerate(list(order.jobs)):
        try:
            pictures[number] = await job
        except CancelledError:
            if picture := await asyncio.to_thread(_as_far_as, job):
                pictures[number] = picture
    return {number: order.spec.finished(picture) for number, picture in pictures.items()}


def _as_far_as(job: Job) -> Image | None:
    return None if job.step is None else job.step.preview()[0]


def _options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the runtime is told. What is not done here is refused, where it is asked for."""
    for name, deed in _NOT_HERE.items():
        if fields.get(name):
            raise StatusError(
                400, f"The field {name} asks to {deed}, which this server does not. Leave it out.", field=name
            )
    scheduler = webui_scheduler(fields)
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise StatusError(
            400,
            f"The sampler is {scheduler[:60]!r}; choose one of {', '.join(WEBUI_SAMPLERS)}.",
            field="sampler_name",
        )
    return {
        "negative_prompt": text_of(fields, "negative_prompt"),
        "num_inference_steps": whole_of(fields, "steps", 50),
        "guidance_scale": number_of(fields, "cfg_scale", 7.0),
        "width": whole_of(fields, "width", _SIDE),
        "height": whole_of(fields, "height", _SIDE),
        "scheduler": scheduler,
    }


def _info(desk: Desk, order: Order, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of the pictures, as the web UI's own `info`."""
    settings, prompts = order.settings[0], [each["prompt"] for each in order.settings]
    seeds, negative = [each["seed"] for each in order.settings], settings["negative_prompt"]
    bundle = desk.runtime.bundle
    return {
        "prompt": prompts[0], "all_prompts": prompts, "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(prompts), "seed": seeds[0], "all_seeds": seeds, "subseed": -1,
        "all_subseeds": [-1] * len(prompts), "subseed_strength": 0, "width": settings["width"],
        "height": settings["height"], "sampler_name": text_of(fields, "sampler_name"),
        "cfg_scale": settings["guidance_scale"], "steps": settings["num_inference_steps"],
        "batch_size": len(prompts), "denoising_strength": settings["image_strength"], "clip_skip": 1,
        "infotexts": [parameters_text(each) for each in order.settings], "styles": [],
        "sd_model_hash": bundle.base_fingerprint[:10], "sd_model_name": bundle.base, "index_of_first_image": 0,
    }  # fmt: skip
