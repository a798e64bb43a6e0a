"""A1111's `/sdapi/v1`, as SillyTavern, Open WebUI and `webuiapi` speak it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.concept.embedding_file import Embedding
from perfusion.runtime import Runtime
from perfusion.serving.bodies import data_of, json_body
from perfusion.serving.desk import Desk
from perfusion.serving.gate import client_of
from perfusion.serving.infotext import WEBUI_SAMPLERS, parameters_of
from perfusion.serving.inspection import text_in
from perfusion.serving.library import Library, WordLibrary
from perfusion.serving.order import Order
from perfusion.serving.picture_encoding import preview_of
from perfusion.serving.webui_drawing import DIALECT, check_model, image_to_image, text_to_image

__all__ = ["webui_routes"]

_ROOT = "/sdapi/v1"
_MOST_OPTIONS, _MOST_CLIENTS = 64, 1000


def webui_routes(desk: Desk) -> list[Route]:
    """The routes of this dialect."""
    options = _Options(desk.runtime, is_kept=desk.history is not None)
    return [
        *_listing_routes(desk),
        *_option_routes(options),
        *_watching_routes(desk),
        *_drawing_routes(desk, options),
    ]


def _listing_routes(desk: Desk) -> list[Route]:
    def listing(answer: Callable[[], Any]) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            return JSONResponse(answer())

        return respond

    async def refresh(request: Request) -> Response:
        await asyncio.to_thread(desk.library.refresh)
        return JSONResponse(None)

    return [
        *(
            Route(f"{_ROOT}/{name}", listing(answer), methods=["GET"])
            for name, answer in _lists(desk).items()
        ),
        *(
            Route(f"{_ROOT}/refresh-{name}", refresh, methods=["POST"])
            for name in ("loras", "embeddings", "checkpoints")
        ),
    ]


def _option_routes(options: _Options) -> list[Route]:
    async def get_options(request: Request) -> Response:
        return JSONResponse(options.of(client_of(request)))

    async def set_options(request: Request) -> Response:
        options.change(client_of(request), await json_body(request))
        return JSONResponse(None)

    return [
        Route(f"{_ROOT}/options", get_options, methods=["GET"]),
        Route(f"{_ROOT}/options", set_options, methods=["POST"]),
    ]


def _watching_routes(desk: Desk) -> list[Route]:
    async def interrupt(request: Request) -> Response:
        for order in _orders(desk, request):
            order.cancel()
        return JSONResponse(None)

    async def skip(request: Request) -> Response:
        for order in _orders(desk, request)[:1]:
            order.cancel_next()
        return JSONResponse(None)

    async def progress(request: Request) -> Response:
        orders = _orders(desk, request)
        has_picture = request.query_params.get("skip_current_image", "false").lower() != "true"
        return JSONResponse(await asyncio.to_thread(_progress, orders, has_picture))

    return [
        Route(f"{_ROOT}/interrupt", interrupt, methods=["POST"]),
        Route(f"{_ROOT}/skip", skip, methods=["POST"]),
        Route(f"{_ROOT}/progress", progress, methods=["GET"]),
    ]


def _drawing_routes(desk: Desk, options: _Options) -> list[Route]:
    async def txt2img(request: Request) -> Response:
        fields = await json_body(request)
        return JSONResponse(await text_to_image(desk, request, fields, options.of(client_of(request))))

    async def img2img(request: Request) -> Response:
        fields = await json_body(request)
        return JSONResponse(await image_to_image(desk, request, fields, options.of(client_of(request))))

    async def png_info(request: Request) -> Response:
        fields = await json_body(request)
        return JSONResponse(await asyncio.to_thread(_png_info, data_of(fields.get("image"), "image")))

    return [
        Route(f"{_ROOT}/txt2img", txt2img, methods=["POST"]),
        Route(f"{_ROOT}/img2img", img2img, methods=["POST"]),
        Route(f"{_ROOT}/png-info", png_info, methods=["POST"]),
    ]


def _lists(desk: Desk) -> dict[str, Callable[[], Any]]:
    """What clients list, by the last part of the address; what there is none of is empty."""
    model = desk.runtime.bundle.base
    checkpoint = {
        "title": model, "model_name": model, "hash": desk.runtime.bundle.base_fingerprint[:10],
        "sha256": desk.runtime.bundle.base_fingerprint, "filename": model, "config": None,
    }  # fmt: skip
    schedulers = [
        {"name": name, "label": name.capitalize(), "aliases": None} for name in ("automatic", "karras")
    ]
    samplers = [{"name": name, "aliases": [own], "options": {}} for name, own in WEBUI_SAMPLERS.items()]
    empty = (
        "sd-vae",
        "upscalers",
        "latent-upscale-modes",
        "prompt-styles",
        "face-restorers",
        "hypernetworks",
    )
    return dict.fromkeys(empty, list) | {
        "samplers": lambda: samplers,
        "schedulers": lambda: schedulers,
        "sd-models": lambda: [checkpoint],
        "loras": lambda: _loras(desk.library),
        "embeddings": lambda: _embeddings(desk.runtime, desk.library),
        "memory": lambda: {"ram": {}, "cuda": {}},
        "scripts": lambda: {"txt2img": [], "img2img": []},
        "cmd-flags": dict,
    }


def _loras(library: WordLibrary) -> list[dict[str, Any]]:
    """The concepts, as these clients know adapters."""
    return [
        {"name": known.name, "alias": known.name, "path": known.path.name,
         "metadata": {"trigger": known.word, "superclass": known.concept.superclass if known.concept else "",
                      "preferred weight": known.settings["strength"]}}
        for known in library.concepts if known.why_not is None
    ]  # fmt: skip


def _embeddings(runtime: Runtime, library: WordLibrary) -> dict[str, Any]:
    skipped: list[Embedding] = []
    if isinstance(library, Library):
        with library.lock:
            skipped = library.embeddings.skipped
    kinds = {"loaded": list(runtime.embeddings.values()), "skipped": skipped}
    return {
        kind: {
            embedding.word: {
                "step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": sum(embedding.widths),
                "vectors": embedding.rows,
            }
            for embedding in embeddings
        }
        for kind, embeddings in kinds.items()
    }  # fmt: skip


class _Options:
    """What clients have set, each for himself; most of it changes nothing here."""

    def __init__(self, runtime: Runtime, *, is_kept: bool) -> None:
        """`is_kept`: otherwise a client's next request finds the usual options again."""
        self._runtime, self._is_kept = runtime, is_kept
        self._usual = {
            "sd_model_checkpoint": runtime.bundle.base, "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1,
            "samples_format": "png",
        }  # fmt: skip
        self._changes: dict[str, dict[str, Any]] = {}

    def of(self, client: str) -> dict[str, Any]:
        return {**self._usual, **self._changes.get(client, {})}

    def change(self, client: str, changes: dict[str, Any]) -> None:
        """Raises StatusError for a model that is not here."""
        check_model(self._runtime, changes.get("sd_model_checkpoint"))
        if not self._is_kept:
            return
        plain = {
            str(name)[:80]: value for name, value in changes.items()
            if isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) < 200)
        }  # fmt: skip
        merged = self._changes.pop(client, {}) | plain
        self._changes[client] = dict(list(merged.items())[-_MOST_OPTIONS:])
        if len(self._changes) > _MOST_CLIENTS:
            del self._changes[next(iter(self._changes))]


def _orders(desk: Desk, request: Request) -> list[Order]:
    """The caller's own orders of this dialect: a page's jobs of the same client are not interrupted."""
    return [order for order in desk.under_way(client_of(request)) if order.dialect == DIALECT]


def _progress(orders: list[Order], has_picture: bool) -> dict[str, Any]:
    """How far the first of some orders is."""
    order = orders[0] if orders else None
    step, total = order.steps if order else (0, 0)
    job = next((job for job in order.jobs if job.step is not None and not job.done), None) if order else None
    picture = None
    if order is not None and job is not None and job.step is not None and has_picture:
        picture = preview_of(job.step, order.settings[0]).partition(",")[2]
    return {
        "progress": step / (total + 1),
        "eta_relative": (order.seconds_left or 0.0) if order else 0.0,
        "state": {
            "skipped": False, "interrupted": False, "job": DIALECT if order else "", "job_count": len(orders),
            "job_no": 0, "sampling_step": step, "sampling_steps": total,
        },
        "current_image": picture,
        "textinfo": None,
    }  # fmt: skip


def _png_info(data: bytes) -> dict[str, Any]:
    text = text_in(data)
    if not text:
        return {"info": "", "items": {}, "parameters": {}}
    return {"info": text, "items": {"parameters": text}, "parameters": parameters_of(text)}
