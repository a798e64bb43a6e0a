"""Pictures as files, encoded in threads beside the event loop: a PNG of a megapixel takes half a second."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perfusion.errors import RequestError
from perfusion.runtime import Step
from perfusion.runtime.picture_settings import write

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["as_base64", "as_file", "preview_of"]

_QUALITY = 95
_PREVIEW_SIDE, _PREVIEW_QUALITY = 512, 80


def as_file(
    picture: Image, kind: str = "png", settings: dict[str, Any] | None = None, quality: int | None = None
) -> bytes:
    """A picture's file; `kind` is "png", "jpeg" or "webp", `quality` 0 to 100 for the last two."""
    stream = io.BytesIO()
    write(picture, stream, kind.upper(), settings, _QUALITY if quality is None else quality)
    return stream.getvalue()


async def as_base64(
    picture: Image, kind: str = "png", settings: dict[str, Any] | None = None, quality: int | None = None
) -> str:
    """The same as text."""
    return base64.b64encode(await asyncio.to_thread(as_file, picture, kind, settings, quality)).decode()


def preview_of(step: Step, settings: Mapping[str, Any]) -> str:
    """A picture as it is after a step, in a data URL: its sketch, or decoded where the bundle makes no sketches."""
    try:
        (picture,) = step.sketch()
    except RequestError:
        (picture,) = step.preview()
    return _data_url(picture, settings["width"], settings["height"])


def _data_url(picture: Image, width: int, height: int) -> str:
    """A preview in a data URL: a JPEG, as large as the picture will be, within limits."""
    share = min(1.0, _PREVIEW_SIDE / max(width, height))
    size = max(1, round(width * share)), max(1, round(height * share))
    stream = io.BytesIO()
    picture.resize(size).save(stream, "JPEG", quality=_PREVIEW_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
