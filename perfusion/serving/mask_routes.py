"""`/api/masks` and `/api/photo`: photos looked at before they are learned from."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.picture_input import as_rgb, knows_heif
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import PHONE_FORMATS, file_of, form_body, picture_of
from perfusion.serving.lessons import MOST_PHOTOS, Lessons
from perfusion.serving.superclass_routes import check_superclass

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["mask_routes"]

_LOOK_SECONDS = 0.25  # between two looks at whether the client is still there
_MOST_PIXELS = 64_000_000  # of a phone's photo that is made readable, one at a time
_MOST_SIDE = 2048  # pixels of a photo that is handed back
_QUALITY = 92  # of its JPEG


def mask_routes(lessons: Lessons | str) -> list[Route]:
    """The routes of photos. A text in place of the lessons is why this server does not train."""

    async def masks(request: Request) -> Response:
        """What counts of each photo, as pictures that the page can show."""
        if isinstance(lessons, str):
            raise StatusError(404, lessons)
        async with form_body(request) as form:
            uploads = [each for each in form.getlist("pictures") if isinstance(each, UploadFile)]
            superclass = check_superclass(str(form.get("superclass") or ""))
            if not 1 <= len(uploads) <= MOST_PHOTOS:
                raise StatusError(
                    400, f"There are {len(uploads)} photos, expected 1 to {MOST_PHOTOS}.", field="pictures"
                )
            photos = [await asyncio.to_thread(_photo_of, await upload.read()) for upload in uploads]
        given_up = threading.Event()
        watch = asyncio.ensure_future(_watch(request, given_up))
        try:
            found = await asyncio.to_thread(lessons.find_masks, photos, superclass, given_up)
        finally:
            watch.cancel()
        return JSONResponse(
            [
                {"mask": f"data:image/png;base64,{base64.b64encode(mask.data).decode()}", "cover": mask.cover}
                for mask in found
            ]
        )

    turn = asyncio.Lock()  # of large photos, which fill the memory while they are decoded

    async def photo(request: Request) -> Response:
        async with form_body(request) as form:
            data = await file_of(form, "file")
        async with turn:
            return Response(await asyncio.to_thread(_readable, data), media_type="image/jpeg")

    return [Route("/api/masks", masks, methods=["POST"]), Route("/api/photo", photo, methods=["POST"])]


async def _watch(request: Request, given_up: threading.Event) -> None:
    """Tell when the client is gone."""
    while not await request.is_disconnected():
        await asyncio.sleep(_LOOK_SECONDS)
    given_up.set()


def _photo_of(data: bytes) -> Image:
    """A photo, no larger than a browser sends it."""
    photo = picture_of(data, "pictures")
    photo.thumbnail((_MOST_SIDE, _MOST_SIDE))
    return photo


def _readable(data: bytes) -> bytes:
    """A photo that a browser may not read as a JPEG that every browser reads: upright, and no larger than is learned.

    Raises:
        StatusError: no picture, one of too many pixels, or HEIC where this server cannot read it.
    """
    if data[4:8] == b"ftyp" and data[8:12] != b"avif" and not knows_heif():
        raise StatusError(
            415,
            "This photo is HEIC, and this server does not read it. Install it there with "
            'pip install "perfusion-edge[heif]", or save the photo as JPEG.',
            field="file",
        )
    picture = as_rgb(picture_of(data, "file", PHONE_FORMATS, _MOST_PIXELS))
    picture.thumbnail((_MOST_SIDE, _MOST_SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
