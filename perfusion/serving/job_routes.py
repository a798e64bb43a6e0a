"""`/api/jobs`: pictures ordered, watched and cancelled by whoever ordered them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.runtime import Region
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import concept_files_of, data_of, json_body, picture_of
from perfusion.serving.body_fields import flag_of, number_of, text_of, whole_of
from perfusion.serving.desk import Desk
from perfusion.serving.event_stream import event, event_stream
from perfusion.serving.gate import client_of
from perfusion.serving.history import History
from perfusion.serving.order import Order, PictureSpec
from perfusion.serving.picture_encoding import preview_of

__all__ = ["job_routes", "order_events", "spec_of"]

_EVENT_SECONDS = 0.2  # between two events of one stream
_TEXTS = ("scheduler", "lock", "gates", "prompt_syntax")
_WHOLES = ("width", "height", "num_inference_steps")
_NUMBERS = ("guidance_scale", "guidance_rescale", "image_strength", "whole")


def job_routes(desk: Desk, history: History) -> list[Route]:
    """The routes of jobs, whose pictures go into a history."""

    async def submit(request: Request) -> Response:
        spec = await asyncio.to_thread(spec_of, await json_body(request))
        order = await desk.take(client_of(request), spec, is_stored=True)
        return JSONResponse(order.facts(), 202, headers={"Location": f"/api/jobs/{order.id}"})

    async def jobs(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(_listed, desk, history, client_of(request)))

    async def state(request: Request) -> Response:
        return JSONResponse(_order_of(desk, request).facts())

    async def events(request: Request) -> Response:
        order = _order_of(desk, request)
        return event_stream(order_events(order, text_of(request.query_params, "previews", "yes") != "no"))

    async def cancel(request: Request) -> Response:
        order = _order_of(desk, request)
        order.cancel_open()
        return JSONResponse(order.facts())

    return [
        Route("/api/jobs", submit, methods=["POST"]),
        Route("/api/jobs", jobs, methods=["GET"]),
        Route("/api/jobs/{id}", state, methods=["GET"]),
        Route("/api/jobs/{id}", cancel, methods=["DELETE"]),
        Route("/api/jobs/{id}/events", events),
    ]


def spec_of(fields: Mapping[str, Any]) -> PictureSpec:
    """What a job's fields ask for.

    Raises:
        StatusError: a field that is none of its kind.
    """
    prompt = text_of(fields, "prompt")
    if not prompt.strip():
        raise StatusError(400, "There is no prompt. Say what is to be drawn.", field="prompt")
    options: dict[str, Any] = {"negative_prompt": text_of(fields, "negative_prompt")}
    options |= {name: text_of(fields, name) for name in _TEXTS if fields.get(name)}
    options |= {name: whole_of(fields, name) for name in _WHOLES}
    options |= {name: number_of(fields, name) for name in _NUMBERS if fields.get(name) is not None}
    options |= {
        name: picture_of(data_of(fields[name], name), name) for name in ("image", "mask") if fields.get(name)
    }
    if fields.get("concept_settings"):
        options["concept_settings"] = fields["concept_settings"]
    if "regions" in fields:
        options["regions"] = _regions(fields["regions"])
    return PictureSpec(
        prompt=prompt, seed=whole_of(fields, "seed"), count=whole_of(fields, "count", 1) or 0,
        exact=flag_of(fields, "exact"), files=concept_files_of(fields), options=options,
    )  # fmt: skip


async def order_events(
    order: Order, has_previews: bool, facts_of: Callable[[Order], dict[str, Any]] = Order.facts
) -> AsyncIterator[bytes]:
    """States as they change, previews of what is drawn, and at last "done" with the whole state."""
    told: dict[str, Any] = {}
    shown: dict[int, int] = {}
    while not order.is_over:
        facts = facts_of(order)
        if facts != told:
            told = facts
            yield event(facts, "state")
        for number, job in enumerate(list(order.jobs)) if has_previews else ():
            step = job.step
            if step is None or job.done or shown.get(number) == step.index:
                continue
            shown[number] = step.index
            picture = await asyncio.to_thread(preview_of, step, order.settings[number])
            yield event(
                {"number": number, "step": step.index + 1, "total": step.total, "picture": picture}, "preview"
            )
        await asyncio.sleep(_EVENT_SECONDS if shown else 0)  # the first preview comes as soon as it can
        if facts_of(order) == facts:
            await order.change(5)
    yield event(facts_of(order), "state")
    yield event(facts_of(order), "done")


def _listed(desk: Desk, history: History, client: str) -> list[dict[str, Any]]:
    """A client's jobs: those under way and those of the history, the newest first."""
    orders = {order.id: order.facts() for order in desk.orders(client) if order.is_stored}
    jobs = history.jobs(client)
    for job in jobs:
        job["pictures"] = [f"/api/pictures/{picture}" for picture in job["pictures"]]
        job |= {"position": None, "seconds_left": None, "step": None, "total": None}
    listed = orders | {job["id"]: job for job in jobs if job["id"] not in orders}
    return sorted(listed.values(), key=lambda job: -float(job["created"]))


def _order_of(desk: Desk, request: Request) -> Order:
    return desk.order(client_of(request), request.path_params["id"])


def _regions(regions: Any) -> Any:
    if regions is None or regions == "auto":
        return regions
    if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
        raise StatusError(
            400,
            'The regions are no list, expected such as [{"word": "<cat>", "box": [0, 0, 0.5, 1]}].',
            field="regions",
        )
    return [Region(region.get("word"), region.get("box") and tuple(region["box"])) for region in regions]
