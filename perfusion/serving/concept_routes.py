"""`/api/concepts`: the library over HTTP. What was uploaded is served as a file to keep, or as a picture made anew."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.concept import card
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import file_of, form_body, json_body, picture_of, upload_of
from perfusion.serving.body_fields import text_of
from perfusion.serving.library import Library, LibraryConcept
from perfusion.serving.portraits import Portraits

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["concept_facts", "concept_routes"]

_CARD_SIDE, _THUMBNAIL_SIDE = 1024, 256  # pixels at most
_LEAST_CARD_SIDE = 256


def concept_routes(library: Library, portraits: Portraits) -> list[Route]:
    """The routes of the library."""

    async def concepts(request: Request) -> Response:
        return JSONResponse([concept_facts(known) for known in library.concepts])

    async def upload(request: Request) -> Response:
        async with form_body(request) as form:
            data = await file_of(form, "file")
            name = str(form.get("name") or Path(upload_of(form, "file").filename or "").stem)
        known = await asyncio.to_thread(library.add, await asyncio.to_thread(_cleaned, data), name)
        return JSONResponse(concept_facts(known), 201)

    async def change(request: Request) -> Response:
        fields = await json_body(request)
        settings, name = fields.get("settings"), fields.get("name")
        if settings is not None and not isinstance(settings, dict):
            raise StatusError(
                400, 'The settings are no object, expected such as {"bias": 0.6}.', field="settings"
            )
        new_name = None if name is None else text_of(fields, "name")
        known = await asyncio.to_thread(library.change, request.path_params["name"], settings, new_name)
        return JSONResponse(concept_facts(known))

    async def remove(request: Request) -> Response:
        return JSONResponse({"undo": await asyncio.to_thread(library.remove, request.path_params["name"])})

    async def restore(request: Request) -> Response:
        return JSONResponse(
            concept_facts(await asyncio.to_thread(library.restore, request.path_params["undo"]))
        )

    async def file(request: Request) -> Response:
        known = library.get(request.path_params["name"])
        return _to_keep(
            await asyncio.to_thread(_concept_file, known), "application/octet-stream", known, "safetensors"
        )

    async def concept_card(request: Request) -> Response:
        known = library.get(request.path_params["name"])
        portrait = None if _is_card(known) else await portraits.of(known)
        return _to_keep(await asyncio.to_thread(_card_of, known, portrait), "image/png", known, "png")

    async def picture(request: Request) -> Response:
        known = library.get(request.path_params["name"])
        headers = {"Cache-Control": "private, max-age=86400"}
        portrait = None if _is_card(known) else await portraits.of(known)
        data = await asyncio.to_thread(_thumbnail, known, portrait)
        return Response(data, media_type="image/png", headers=headers)

    return [
        Route("/api/concepts", concepts, methods=["GET"]),
        Route("/api/concepts", upload, methods=["POST"]),
        Route("/api/concepts/undo/{undo}", restore, methods=["POST"]),
        Route("/api/concepts/{name}", change, methods=["PATCH"]),
        Route("/api/concepts/{name}", remove, methods=["DELETE"]),
        Route("/api/concepts/{name}/file", file),
        Route("/api/concepts/{name}/card", concept_card),
        Route("/api/concepts/{name}/picture", picture),
    ]


def concept_facts(known: LibraryConcept) -> dict[str, Any]:
    """What clients are told of a concept."""
    concept = known.concept
    return {
        "name": known.name, "word": known.word, "token": concept and concept.token,
        "superclass": concept and concept.superclass, "base": concept and concept.base, "bytes": known.size,
        "settings": {**known.settings, "lock": concept.lock if concept else None},
        "fits": known.why_not is None, "why_not": known.why_not, "sha256": known.sha256 or None,
        "sample": known.is_sample, "picture": _is_card(known) or known.why_not is None,
    }  # fmt: skip


def _cleaned(data: bytes) -> bytes:
    """An upload as it is kept: of a card the picture is drawn anew, so that nothing else hides in it."""
    if not card.is_card(data):
        return data
    return card.embed(_small(picture_of(data, "file"), _CARD_SIDE), card.extract(data))


def _concept_file(known: LibraryConcept) -> bytes:
    if known.concept is None:  # another file than a concept's may lie in the folder
        raise StatusError(409, known.why_not or "The file cannot be read.")
    data = known.path.read_bytes()
    return card.extract(data) if card.is_card(data) else data


def _is_card(known: LibraryConcept) -> bool:
    return known.path.suffix == ".png"


def _card_of(known: LibraryConcept, portrait: Image | None) -> bytes:
    data = known.path.read_bytes()
    if card.is_card(data):
        return card.embed(_small(picture_of(data, "file"), _CARD_SIDE), card.extract(data))
    if known.concept is None:
        raise StatusError(409, known.why_not or "The file cannot be read.")
    concept = known.concept
    if portrait is None:
        return card.embed(card.plain(known.word, concept.superclass, concept.base), data)
    return card.embed(_large(portrait), data)


def _thumbnail(known: LibraryConcept, portrait: Image | None) -> bytes:
    """The picture of a card, or else a drawing of the concept.

    Raises:
        StatusError: it is no card, and cannot be drawn here.
    """
    picture = picture_of(known.path.read_bytes(), "file") if _is_card(known) else portrait
    if picture is None:
        raise StatusError(404, f"{known.word} came without a picture, and cannot be drawn here.")
    stream = io.BytesIO()
    _small(picture, _THUMBNAIL_SIDE).save(stream, "PNG")
    return stream.getvalue()


def _large(portrait: Image) -> Image:
    """A portrait that is large enough to be sent around as a picture."""
    from PIL.Image import Resampling

    factor = max(1, -(-_LEAST_CARD_SIDE // min(portrait.size)))
    size = portrait.width * factor, portrait.height * factor
    return portrait if factor == 1 else portrait.resize(size, Resampling.LANCZOS)


def _small(picture: Image, side: int) -> Image:
    """A picture's pixels alone, at most so large; what its file said besides is gone."""
    copy = picture.copy()
    copy.info = {}
    copy.thumbnail((side, side))
    return copy


def _to_keep(data: bytes, kind: str, known: LibraryConcept, suffix: str) -> Response:
    from urllib.parse import quote

    disposition = f"attachment; filename*=UTF-8''{quote(known.name)}.{suffix}"
    return Response(data, media_type=kind, headers={"Content-Disposition": disposition})
