"""`/api/inspect`: what a picture or a concept file says of itself."""

from __future__ import annotations

import asyncio
import io
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.concept.card import is_card
from perfusion.concept.concept_file import Concept
from perfusion.errors import ConceptError, PictureError
from perfusion.runtime.picture_settings import concept_hash, parameters_text, read_settings
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import file_of, form_body
from perfusion.serving.infotext import settings_like
from perfusion.serving.library import WordLibrary

__all__ = ["inspected", "inspection_routes", "text_in"]

_MOST_TEXT = 1 << 16  # characters of another program's text
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286  # Exif tags


def inspection_routes(library: WordLibrary) -> list[Route]:
    """The route that looks into files."""

    async def inspect(request: Request) -> Response:
        async with form_body(request) as form:
            data = await file_of(form, "file")
        return JSONResponse(await asyncio.to_thread(inspected, data, library))

    return [Route("/api/inspect", inspect, methods=["POST"])]


def inspected(data: bytes, library: WordLibrary) -> dict[str, Any]:
    """The kind of a file ("picture", "concept", "card"), and what it carries.

    A picture's `missing` are the concepts that it was drawn with and that are not in the library; of another program's
    picture the `parameters` are told, and in `like` what of them can be drawn with.

    Raises:
        StatusError: neither a picture nor a concept.
    """
    try:
        concept = Concept.from_bytes(data)
    except ConceptError:
        return _picture_facts(data, library)
    facts = {
        "token": concept.token, "superclass": concept.superclass, "base": concept.base, "rows": concept.rows,
        "sha256": concept_hash(concept), "settings": {**asdict(concept.settings), "lock": concept.lock},
        "training": dict(concept.training), "created_with": concept.created_with,
    }  # fmt: skip
    return {"kind": "card" if is_card(data) else "concept", "concept": facts}


def _picture_facts(data: bytes, library: WordLibrary) -> dict[str, Any]:
    try:
        settings = read_settings(io.BytesIO(data))
    except PictureError as error:
        raise StatusError(400, str(error), field="file") from error
    if settings is None:
        text = text_in(data)
        return {
            "kind": "picture",
            "settings": None,
            "parameters": text,
            "like": settings_like(text) if text else None,
        }
    by_hash = {known.sha256: known.word for known in library.concepts if known.why_not is None}
    words = {
        token: by_hash.get(str(concept.get("sha256"))) for token, concept in settings["concepts"].items()
    }
    return {
        "kind": "picture", "settings": settings, "parameters": parameters_text(settings), "words": words,
        "missing": [token for token, word in words.items() if word is None],
    }  # fmt: skip


def text_in(data: bytes) -> str | None:
    """The `parameters` text of a picture, ours or another program's; Pillow bounds it before it inflates it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            comment = picture.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
            text = picture.info.get("parameters") or _comment(comment)
    except Exception:  # whatever a decoder raises for damaged bytes
        return None
    return str(text)[:_MOST_TEXT] if text else None


def _comment(comment: object) -> str:
    """The text of an Exif user comment: after eight bytes that name its code."""
    if not isinstance(comment, bytes):
        return str(comment)
    code, text = comment[:8], comment[8:]
    return text.decode("utf-16-be" if code.startswith(b"UNICODE") else "utf-8", errors="replace")
