"""OpenAI's images, as the package `openai` and Open WebUI speak: generations, edits, and the list of models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.errors import PerfusionError
from perfusion.serving.answers import StatusError, error_object
from perfusion.serving.bodies import form_body, json_body
from perfusion.serving.desk import Desk
from perfusion.serving.event_stream import event, event_stream
from perfusion.serving.gate import client_of
from perfusion.serving.openai_fields import (
    ImageRequest,
    edited_pictures,
    form_fields,
    image_request,
    json_images,
)
from perfusion.serving.order import Order
from perfusion.serving.picture_encoding import as_base64

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["openai_routes"]

_GENERATION, _EDIT = "image_generation", "image_edit"  # how the names of events begin


def openai_routes(desk: Desk) -> list[Route]:
    """The routes of this dialect."""
    bundle = desk.runtime.bundle
    model = {"id": bundle.base, "object": "model", "created": 0, "owned_by": "perfusion-edge"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        if request.path_params["name"] != bundle.base:
            raise StatusError(404, f"There is no such model; this server has {bundle.base}.", field="model")
        return JSONResponse(model)

    async def generations(request: Request) -> Response:
        return await _answer(desk, request, image_request(bundle, await json_body(request)), _GENERATION)

    async def edits(request: Request) -> Response:
        if request.headers.get("content-type", "").startswith("application/json"):
            fields = await json_body(request)
            images, mask = json_images(fields)
        else:
            async with form_body(request) as form:
                fields, images, mask = await form_fields(form)
        image, place = await asyncio.to_thread(edited_pictures, images, mask)
        return await _answer(desk, request, image_request(bundle, fields, image, place), _EDIT)

    return [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/images/edits", edits, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
    ]


async def _answer(desk: Desk, request: Request, terms: ImageRequest, kind: str) -> Response:
    """The pictures in one object, or as events."""
    order = await desk.take(client_of(request), terms.spec, dialect="openai")
    if terms.is_stream:
        return event_stream(_events(desk, order, terms, kind))
    usage = _usage(desk, order, terms.spec.count)  # beside the drawing, which takes longer
    pictures = await desk.pictures(request, order)
    texts = [await _text(desk, order, terms, number, picture) for number, picture in enumerate(pictures)]
    key, start = ("url", f"data:image/{terms.kind};base64,") if terms.as_urls else ("b64_json", "")
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": [{key: start + text} for text in texts],
            **_facts(terms, order),
            "usage": usage,
            **({"safety_identifier": terms.safety_identifier} if terms.safety_identifier else {}),
        }
    )


async def _events(desk: Desk, order: Order, terms: ImageRequest, kind: str) -> AsyncIterator[bytes]:
    """Each picture on its way, as often as was asked for, and done; at last the mark of the end."""
    facts = {"created_at": int(time.time()), **_facts(terms, order)}
    try:
        for number, job in enumerate(list(order.jobs)):
            async for index, picture in _partials(order, number):
                text = await as_base64(picture, terms.kind, quality=terms.compression)
                name = f"{kind}.partial_image"
                yield event({"type": name, "b64_json": text, "partial_image_index": index, **facts}, name)
            text = await _text(desk, order, terms, number, await job)
            name = f"{kind}.completed"
            yield event({"type": name, "b64_json": text, "usage": _usage(desk, order, 1), **facts}, name)
        yield event("[DONE]")
    except PerfusionError as error:
        yield event(error_object(500, str(error)))
    finally:
        desk.drop(order)


async def _partials(order: Order, number: int) -> AsyncIterator[tuple[int, Image]]:
    """The pictures on the way of one, as they come."""
    index = 0
    while True:
        is_done = order.jobs[number].done  # looked at first, so that none that comes meanwhile is missed
        partials = order.partials.get(number, [])[index:]
        for picture in partials:
            yield index, picture
            index += 1
        if is_done and not partials:
            return
        if not partials:
            await order.change(1)


async def _text(desk: Desk, order: Order, terms: ImageRequest, number: int, picture: Image) -> str:
    return await as_base64(picture, terms.kind, desk.settings(order, number), terms.compression)


def _facts(terms: ImageRequest, order: Order) -> dict[str, Any]:
    settings = order.settings[0]
    return {
        "background": "opaque", "output_format": terms.kind, "quality": terms.quality,
        "size": f"{settings['width']}x{settings['height']}",
    }  # fmt: skip


def _usage(desk: Desk, order: Order, pictures: int) -> dict[str, Any]:
    """What was read and drawn: a text in tokens of the text encoder, a picture in places of its latents. Nobody pays
    for them here; clients expect the fields.
    """
    runtime, spec, settings = desk.runtime, order.spec, order.settings[0]
    places = (settings["width"] // runtime.bundle.decoder.downscale) * (
        settings["height"] // runtime.bundle.decoder.downscale
    )
    syntax = settings["prompt_syntax"]
    texts = [settings["prompt"], settings["negative_prompt"]]
    text = sum(runtime.count_tokens(each, prompt_syntax=syntax) for each in texts if each)
    image = places if spec.options.get("image") else 0
    return {
        "input_tokens": text + image, "input_tokens_details": {"image_tokens": image, "text_tokens": text},
        "output_tokens": places * pictures, "total_tokens": text + image + places * pictures,
    }  # fmt: skip
