"""`/api/trainings`: concepts taught over HTTP, to each client his own lessons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.serving.answers import StatusError, refused_routes
from perfusion.serving.bodies import form_body, json_body, parse_json, picture_of
from perfusion.serving.body_fields import whole_of
from perfusion.serving.event_stream import event, event_stream
from perfusion.serving.gate import client_of
from perfusion.serving.lessons import MOST_PHOTOS, Lesson, Lessons, LessonSpec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["lesson_routes"]

_EVENT_SECONDS = 0.5
_MOST_SIDE = 2048  # pixels of a photo: twice what the largest base models learn from


def lesson_routes(lessons: Lessons | str) -> list[Route]:
    """The routes of trainings. A text in place of the lessons is why this server does not train."""
    if isinstance(lessons, str):
        return refused_routes(404, lessons, "/api/trainings")

    async def submit(request: Request) -> Response:
        async with form_body(request) as form:
            uploads = [each for name in ("pictures", "pictures[]") for each in form.getlist(name)]
            spec = await _spec_of(form, [each for each in uploads if isinstance(each, UploadFile)])
        lesson = await asyncio.to_thread(lessons.submit, client_of(request), spec)
        headers = {"Location": f"/api/trainings/{lesson.id}"}
        return JSONResponse(_facts(lessons, lesson), 202, headers=headers)

    async def listing(request: Request) -> Response:
        return JSONResponse([_facts(lessons, lesson) for lesson in lessons.of(client_of(request))])

    def own(request: Request) -> Lesson:
        return lessons.get(client_of(request), request.path_params["id"])

    async def state(request: Request) -> Response:
        return JSONResponse(_facts(lessons, own(request)))

    async def events(request: Request) -> Response:
        return event_stream(_events(lessons, own(request)))

    async def go_on(request: Request) -> Response:
        lesson = own(request)
        fields = await json_body(request)
        await asyncio.to_thread(lessons.go_on, lesson, whole_of(fields, "steps"))
        return JSONResponse(_facts(lessons, lesson), 202)

    async def remove(request: Request) -> Response:
        await asyncio.to_thread(lessons.remove, own(request))
        return Response(status_code=204)

    return [
        Route("/api/trainings", submit, methods=["POST"]),
        Route("/api/trainings", listing, methods=["GET"]),
        Route("/api/trainings/{id}", state, methods=["GET"]),
        Route("/api/trainings/{id}", remove, methods=["DELETE"]),
        Route("/api/trainings/{id}/events", events),
        *_picture_routes(lessons, own),
        Route("/api/trainings/{id}/continue", go_on, methods=["POST"]),
    ]


def _picture_routes(lessons: Lessons, own: Callable[[Request], Lesson]) -> list[Route]:
    """The routes of what a training draws; `own` finds the client's."""

    async def sheet(request: Request) -> Response:
        path = lessons.sheet(own(request))
        if path is None:
            raise StatusError(404, "This training has no sheet yet.")
        return Response(await asyncio.to_thread(path.read_bytes), media_type="image/png")

    async def sample(request: Request) -> Response:
        step = int(request.path_params["step"])
        path = lessons.samples(own(request)).path(step)
        if not path.is_file():
            raise StatusError(404, f"There is no picture of step {step}.")
        return Response(await asyncio.to_thread(path.read_bytes), media_type="image/png")

    return [
        Route("/api/trainings/{id}/sheet", sheet),
        Route("/api/trainings/{id}/samples/{step:int}", sample),
    ]


async def _spec_of(form: FormData, uploads: list[UploadFile]) -> LessonSpec:
    """What a form asks for.

    Raises:
        StatusError: a field or a picture that is none of its kind.
    """
    if len(uploads) > MOST_PHOTOS:
        raise StatusError(
            400, f"There are {len(uploads)} photos, expected 1 to {MOST_PHOTOS}.", field="pictures"
        )
    photos = [await asyncio.to_thread(_photo_of, await upload.read()) for upload in uploads]
    masks = [
        await asyncio.to_thread(_photo_of, await each.read(), "masks")
        for each in form.getlist("masks")
        if isinstance(each, UploadFile)
    ]
    try:
        options = parse_json(str(form.get("options") or "{}"))
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise StatusError(400, 'The options are no JSON object, such as {"steps": 200}.', field="options")
    return LessonSpec(
        name=str(form.get("name") or ""), superclass=str(form.get("superclass") or ""), photos=tuple(photos),
        steps=whole_of(options, "steps"), masks=tuple(masks),
    )  # fmt: skip


def _photo_of(data: bytes, field: str = "pictures") -> Image:
    """A photo or its mask, no larger than is learned from: ten large ones together would fill the memory."""
    photo = picture_of(data, field)
    photo.thumbnail((_MOST_SIDE, _MOST_SIDE))
    return photo


def _facts(lessons: Lessons, lesson: Lesson) -> dict[str, Any]:
    """What clients are told of a training."""
    facts = {name: value for name, value in asdict(lesson).items() if name != "client"}
    sheet = f"/api/trainings/{lesson.id}/sheet" if lessons.sheet(lesson) else None
    samples = [
        {"step": step, "url": f"/api/trainings/{lesson.id}/samples/{step}"}
        for step in lessons.samples(lesson).steps
    ]
    concept = lesson.name if lesson.state == "done" else None
    return {**facts, "concept": concept, "sheet": sheet, "samples": samples}


async def _events(lessons: Lessons, lesson: Lesson) -> AsyncIterator[bytes]:
    """States as they change, and at last "done" with the whole state."""
    told: dict[str, Any] = {}
    while not lesson.is_over:
        facts = _facts(lessons, lesson)
        if facts != told:
            told = facts
            yield event(facts, "state")
        await asyncio.sleep(_EVENT_SECONDS)
    yield event(_facts(lessons, lesson), "done")
