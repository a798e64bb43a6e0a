"""OpenAI's images: `/v1/images/generations` and `/v1/models`, as the package `openai` and Open WebUI speak them."""

from __future__ import annotations

import re
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.errors import RequestError
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import json_body
from perfusion.serving.body_fields import number_of, text_of, whole_of
from perfusion.serving.desk import Desk
from perfusion.serving.order import PictureSpec
from perfusion.serving.picture_encoding import as_base64

__all__ = ["openai_routes"]

_FORMATS = ("png", "jpeg", "webp")
_QUALITY_STEPS = {
    "low": 0.5,
    "standard": 1.0,
    "medium": 1.0,
    "high": 1.5,
    "hd": 1.5,
    "xhigh": 2.0,
    "max": 3.0,
}
"""How many times the bundle's own number of steps a quality takes."""


def openai_routes(desk: Desk) -> list[Route]:
    """The routes of this dialect."""
    name = desk.runtime.bundle.base

    model = {"id": name, "object": "model", "created": 0, "owned_by": "perfusion-edge"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        if request.path_params["name"] != name:
            raise StatusError(404, f"There is no such model; this server has {name}.", field="model")
        return JSONResponse(model)

    async def generations(request: Request) -> Response:
        fields = await json_body(request)
        return JSONResponse(await _generated(desk, request, fields))

    return [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
    ]


async def _generated(desk: Desk, request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("stream"):
        raise RequestError("This server does not stream pictures. Leave stream out.")
    prompt = text_of(fields, "prompt")
    if not prompt:
        raise RequestError("There is no prompt. Say what is to be drawn.")
    kind = text_of(fields, "output_format", "png")
    if kind not in _FORMATS:
        raise RequestError(f"The output_format is {kind!r}, expected one of {', '.join(_FORMATS)}.")
    if text_of(fields, "response_format", "b64_json") != "b64_json":
        raise RequestError("The response_format is a URL, and this server answers with b64_json alone.")
    if text_of(fields, "background", "auto") == "transparent":
        raise RequestError("The background is transparent, and this server draws opaque pictures.")
    compression = whole_of(fields, "output_compression")
    if compression is not None and not 0 <= compression <= 100:
        raise RequestError(f"The output_compression is {compression}, expected 0 to 100.")
    spec = PictureSpec(
        prompt=prompt, seed=whole_of(fields, "seed"), count=whole_of(fields, "n", 1) or 0,
        options=_options(desk, fields),
    )  # fmt: skip
    pictures, order = await desk.draw(request, spec, dialect="openai")
    width, height = pictures[0].size
    return {
        "created": int(time.time()),
        "data": [
            {"b64_json": await as_base64(picture, kind, desk.settings(order, number), compression)}
            for number, picture in enumerate(pictures)
        ],
        "background": "opaque",
        "output_format": kind,
        "quality": text_of(fields, "quality", "auto"),
        "size": f"{width}x{height}",
        "usage": _NO_USAGE,
    }


_NO_USAGE = {
    "input_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}, "output_tokens": 0,
    "total_tokens": 0,
}  # fmt: skip
"""Nobody pays for tokens here; clients expect the fields."""


def _options(desk: Desk, fields: dict[str, Any]) -> dict[str, Any]:
    """What the runtime is told; diffusers' names and ours come in `extra_body`."""
    options: dict[str, Any] = {
        "negative_prompt": text_of(fields, "negative_prompt"),
        "num_inference_steps": whole_of(fields, "num_inference_steps"),
        "guidance_scale": number_of(fields, "guidance_scale"),
        "scheduler": text_of(fields, "scheduler") or None,
        "concept_settings": fields.get("concepts"),
    }
    size = text_of(fields, "size", "auto")
    if size != "auto":
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
        if match is None:
            raise RequestError(f"The size is {size!r}, expected auto, or width and height such as 512x512.")
        options |= {"width": int(match[1]), "height": int(match[2])}
    quality = text_of(fields, "quality", "auto")
    if quality != "auto" and options["num_inference_steps"] is None:
        if quality not in _QUALITY_STEPS:
            raise RequestError(
                f"The quality is {quality!r}, expected auto or one of {', '.join(_QUALITY_STEPS)}."
            )
        usual = desk.runtime.bundle.defaults.num_inference_steps
        options["num_inference_steps"] = max(1, round(usual * _QUALITY_STEPS[quality]))
    return options
