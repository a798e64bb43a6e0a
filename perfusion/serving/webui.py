"""A1111's `/sdapi/v1`, as SillyTavern, Open WebUI and `webuiapi` speak it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.errors import RequestError
from perfusion.runtime import SCHEDULERS
from perfusion.runtime.picture_settings import SAMPLERS
from perfusion.serving.bodies import json_body
from perfusion.serving.body_fields import number_of, text_of, whole_of
from perfusion.serving.desk import Desk
from perfusion.serving.gate import client_of
from perfusion.serving.order import PictureSpec
from perfusion.serving.picture_encoding import as_base64

__all__ = ["webui_routes"]

_SAMPLERS = {
    SAMPLERS[name.removesuffix("_karras")] + " Karras" * name.endswith("_karras"): name for name in SCHEDULERS
}
"""Our schedulers by A1111's names."""
_NO_CHOICE = (None, "", "Automatic", "automatic")
_ROOT = "/sdapi/v1"


def webui_routes(desk: Desk) -> list[Route]:
    """The routes of this dialect."""
    model = desk.runtime.bundle.base
    options = {"sd_model_checkpoint": model, "CLIP_stop_at_last_layers": 1, "samples_format": "png"}
    checkpoint = {
        "title": model,
        "model_name": model,
        "hash": None,
        "sha256": None,
        "filename": model,
        "config": None,
    }

    def loras() -> list[dict[str, Any]]:
        tokens = [token.strip("<>") for token in desk.runtime.concepts]
        return [{"name": token, "alias": token, "path": token, "metadata": {}} for token in tokens]

    lists: dict[str, Callable[[], Any]] = {
        "samplers": lambda: [
            {"name": name, "aliases": [own], "options": {}} for name, own in _SAMPLERS.items()
        ],
        "schedulers": lambda: [{"name": "automatic", "label": "Automatic", "aliases": None}],
        "sd-models": lambda: [checkpoint],
        "sd-vae": list,
        "upscalers": list,
        "latent-upscale-modes": list,
        "loras": loras,
        "embeddings": lambda: {"loaded": {}, "skipped": {}},
        "memory": lambda: {"ram": {}, "cuda": {}},
        "options": lambda: options,
    }

    def listing(answer: Callable[[], Any]) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            return JSONResponse(answer())

        return respond

    async def acknowledge(request: Request) -> Response:
        return JSONResponse(None)

    async def interrupt(request: Request) -> Response:
        for order in desk.under_way(client_of(request)):
            if order.dialect == "webui":
                order.cancel()
        return JSONResponse(None)

    async def progress(request: Request) -> Response:
        return JSONResponse(_progress(desk, request))

    async def txt2img(request: Request) -> Response:
        return JSONResponse(await _drawn(desk, request, await json_body(request)))

    posts = dict.fromkeys(("options", "refresh-loras", "refresh-checkpoints"), acknowledge)
    posts |= {"interrupt": interrupt, "skip": interrupt, "txt2img": txt2img}
    return [
        *(Route(f"{_ROOT}/{name}", listing(answer), methods=["GET"]) for name, answer in lists.items()),
        *(Route(f"{_ROOT}/{name}", answer, methods=["POST"]) for name, answer in posts.items()),
        Route(f"{_ROOT}/progress", progress),
    ]


async def _drawn(desk: Desk, request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    """The answer to txt2img."""
    prompt, negative_prompt = text_of(fields, "prompt"), text_of(fields, "negative_prompt")
    options = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": whole_of(fields, "steps", 50),
        "guidance_scale": number_of(fields, "cfg_scale", 7.0),
        "width": whole_of(fields, "width", 512),
        "height": whole_of(fields, "height", 512),
        "scheduler": _scheduler(fields),
    }
    count = (whole_of(fields, "batch_size", 1) or 0) * (whole_of(fields, "n_iter", 1) or 0)
    spec = PictureSpec(prompt=prompt, seed=whole_of(fields, "seed", -1), count=count, options=options)
    pictures, order = await desk.draw(request, spec, dialect="webui")
    seeds = [settings["seed"] for settings in order.settings]
    info = {
        "prompt": prompt, "all_prompts": [prompt] * count, "negative_prompt": negative_prompt, "seed": seeds[0],
        "all_seeds": seeds, "width": options["width"], "height": options["height"],
        "sampler_name": text_of(fields, "sampler_name"), "cfg_scale": options["guidance_scale"],
        "steps": options["num_inference_steps"], "batch_size": count, "infotexts": [],
        "sd_model_hash": desk.runtime.bundle.base_fingerprint[:10], "sd_model_name": desk.runtime.bundle.base,
    }  # fmt: skip
    images = []
    if fields.get("send_images", True):
        images = [
            await as_base64(picture, settings=desk.settings(order, number))
            for number, picture in enumerate(pictures)
        ]
    return {"images": images, "parameters": fields, "info": json.dumps(info)}


def _scheduler(fields: dict[str, Any]) -> str | None:
    """Our scheduler of A1111's sampler and scheduler; None is the bundle's own."""
    sampler = text_of(fields, "sampler_name") or text_of(fields, "sampler_index")
    if sampler in _NO_CHOICE:
        return None
    name = _SAMPLERS.get(sampler, sampler)
    if name not in SCHEDULERS:
        raise RequestError(f"The sampler is {sampler!r}; choose one of {', '.join(_SAMPLERS)}.")
    karras = text_of(fields, "scheduler").lower() == "karras"
    return f"{name}_karras" if karras and f"{name}_karras" in SCHEDULERS else name


def _progress(desk: Desk, request: Request) -> dict[str, Any]:
    """How far the caller's own first order is."""
    orders = [order for order in desk.under_way(client_of(request)) if order.dialect == "webui"]
    step, total = orders[0].steps if orders else (0, 0)
    return {
        "progress": step / (total + 1) if orders else 0.0,
        "eta_relative": (orders[0].seconds_left or 0.0) if orders else 0.0,
        "state": {
            "skipped": False, "interrupted": False, "job": "txt2img" if orders else "", "job_count": len(orders),
            "sampling_step": step, "sampling_steps": total,
        },
        "current_image": None,
        "textinfo": None,
    }  # fmt: skip
