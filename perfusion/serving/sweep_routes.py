"""`/api/sweeps`: grids of one concept with two of its settings, as `perfusion-sweep` draws them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.concept.words import named
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import json_body
from perfusion.serving.body_fields import text_of, whole_of
from perfusion.serving.desk import Desk
from perfusion.serving.event_stream import event_stream
from perfusion.serving.gate import client_of
from perfusion.serving.history import History
from perfusion.serving.job_routes import order_events, spec_of
from perfusion.serving.library import Library
from perfusion.serving.order import Order
from perfusion.serving.sweep_spec import SweepSpec, axis_of

__all__ = ["sweep_routes"]

_MOST_PROMPTS = 8


def sweep_routes(desk: Desk, library: Library, history: History) -> list[Route]:
    """The routes of sweeps, whose pictures go into a history."""

    async def submit(request: Request) -> Response:
        spec = await asyncio.to_thread(_spec_of, library, await json_body(request))
        order = await desk.take(client_of(request), spec, is_stored=True)
        return JSONResponse(_facts(order), 202, headers={"Location": f"/api/sweeps/{order.id}"})

    async def sweeps(request: Request) -> Response:
        orders = desk.orders(client_of(request))
        return JSONResponse([_facts(order) for order in orders if isinstance(order.spec, SweepSpec)])

    async def state(request: Request) -> Response:
        return JSONResponse(_facts(_own(desk, request)))

    async def events(request: Request) -> Response:
        order = _own(desk, request)
        has_previews = text_of(request.query_params, "previews", "yes") != "no"
        return event_stream(order_events(order, has_previews, _facts))

    async def sheet(request: Request) -> Response:
        order = _own(desk, request)
        paths = await asyncio.to_thread(history.files, order.client, order.id)
        if not paths:
            raise StatusError(404, "This sweep has no pictures yet.")
        return Response(await asyncio.to_thread(_sheet, order, paths), media_type="image/png")

    async def cancel(request: Request) -> Response:
        order = _own(desk, request)
        order.cancel_open()
        return JSONResponse(_facts(order))

    return [
        Route("/api/sweeps", submit, methods=["POST"]),
        Route("/api/sweeps", sweeps, methods=["GET"]),
        Route("/api/sweeps/{id}", state, methods=["GET"]),
        Route("/api/sweeps/{id}", cancel, methods=["DELETE"]),
        Route("/api/sweeps/{id}/events", events),
        Route("/api/sweeps/{id}/sheet", sheet),
    ]


def _own(desk: Desk, request: Request) -> Order:
    order = desk.order(client_of(request), request.path_params["id"])
    if not isinstance(order.spec, SweepSpec):
        raise StatusError(404, "There is no such sweep of yours; it may have expired.")
    return order


def _spec_of(library: Library, fields: Mapping[str, Any]) -> SweepSpec:
    """What a sweep's fields ask for.

    Raises:
        StatusError: a field that is none of its kind, or more cells than a sweep has.
        RequestError: a value out of its range.
    """
    prompts = tuple(library.words(prompt) for prompt in _texts(fields))
    name = text_of(fields, "concept")
    word = library.word(name if name.startswith("<") else f"<{name}>")
    library.get(word[1:-1])
    for prompt in prompts:
        if word not in named(prompt, [word]):
            raise StatusError(
                400, f"The prompt {prompt[:80]!r} does not name {word}, so its settings would change nothing.",
                field="prompts",
            )  # fmt: skip
    usual = spec_of({**fields, "prompt": prompts[0], "seed": None, "count": 1})
    seeds, across, down = _seeds(fields), axis_of(fields, "across"), axis_of(fields, "down")
    if across.setting and across.setting == down.setting:
        raise StatusError(400, f"Both axes change {across.setting}. Choose two settings.", field="down")
    cells = len(prompts) * len(seeds) * len(across.values) * len(down.values)
    if cells > SweepSpec.most:
        raise StatusError(
            400, f"The sweep has {cells} cells, expected at most {SweepSpec.most}. Take fewer values.",
            field="across",
        )  # fmt: skip
    return SweepSpec(
        prompt=prompts[0], count=cells, exact=usual.exact, options=usual.options, concept=word, prompts=prompts,
        seeds=seeds, across=across, down=down,
    )  # fmt: skip


def _texts(fields: Mapping[str, Any]) -> list[str]:
    prompts = fields.get("prompts", [fields.get("prompt")])
    if not isinstance(prompts, list) or not all(isinstance(each, str) and each.strip() for each in prompts):
        raise StatusError(400, 'The prompts are no list of texts, such as ["a <cat>"].', field="prompts")
    if not 1 <= len(prompts) <= _MOST_PROMPTS:
        raise StatusError(
            400, f"There are {len(prompts)} prompts, expected 1 to {_MOST_PROMPTS}.", field="prompts"
        )
    return list(dict.fromkeys(prompts))


def _seeds(fields: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The seeds of each prompt; None: one by chance, the same for all cells."""
    seeds = fields.get("seeds")
    if seeds is None:
        return (whole_of(fields, "seed"),)
    if not isinstance(seeds, list) or not 1 <= len(seeds) <= SweepSpec.most:
        raise StatusError(400, "The seeds are no list of whole numbers, such as [0, 1].", field="seeds")
    return tuple(dict.fromkeys(whole_of({"seeds": seed}, "seeds", 0) for seed in seeds))


def _facts(order: Order) -> dict[str, Any]:
    """What clients are told of a sweep."""
    spec = order.spec
    assert isinstance(spec, SweepSpec)
    facts = {name: value for name, value in order.facts().items() if name not in ("pictures", "settings")}
    cells = [
        {**asdict(cell), "picture": order.address(number)}
        for number, cell in enumerate(spec.cells(order.seed))
    ]
    axes = {"across": asdict(spec.across), "down": asdict(spec.down) if spec.down.setting else None}
    return {**facts, "concept": spec.concept, **axes, "cells": cells}


def _sheet(order: Order, paths: Mapping[int, Path]) -> bytes:
    """All cells on one labelled sheet, those that are not there in grey; a PNG."""
    from PIL import Image

    from perfusion.sweep.sheet import grid

    spec = order.spec
    assert isinstance(spec, SweepSpec)
    pictures = dict[int, Image.Image]()
    for number, path in paths.items():
        with Image.open(path) as picture:
            pictures[number] = picture.convert("RGB")
    blank = Image.new("RGB", next(iter(pictures.values())).size, "#e0e0e0")
    cells = spec.cells(order.seed)
    columns = len(spec.across.values)
    rows = []
    for start in range(0, len(cells), columns):
        label = ", ".join(
            [cells[start].prompt, f"seed {cells[start].seed}", *_labels(spec.down.places)[cells[start].row]]
        )
        rows.append((label, [pictures.get(number, blank) for number in range(start, start + columns)]))
    stream = io.BytesIO()
    grid(rows, [", ".join(label) for label in _labels(spec.across.places)]).save(stream, "PNG")
    return stream.getvalue()


def _labels(places: list[dict[str, Any]]) -> list[list[str]]:
    return [[f"{name} {value}" for name, value in place.items()] for place in places]
