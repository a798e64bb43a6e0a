"""The bodies of requests: JSON objects, forms, pictures and concept files, each bounded before it is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import re
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from perfusion.errors import PictureError
from perfusion.picture_input import open_picture
from perfusion.serving.answers import StatusError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "MOST_PIXELS", "PHONE_FORMATS", "concept_files_of", "data_of", "file_of", "form_body", "json_body", "parse_json",
    "picture_of", "upload_of",
]  # fmt: skip

MOST_PIXELS = 1 << 25
"""Of an uploaded picture: 33 million, 100 MB decoded. A file of a few kilobytes can claim any number."""

_FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP")
PHONE_FORMATS = (*_FORMATS, "HEIF", "AVIF", "MPO")
"""What phones take; of these Pillow reads HEIF with pillow-heif alone."""
_MOST_FILES, _MOST_FIELDS, _MOST_FIELD = 64, 64, 1 << 20
_DATA_URL = "data:"
_WORD = re.compile(r"<[^<>\s:]{1,62}>")
_MOST_DIGITS = 40  # of a whole number
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # how half of a surrogate pair is written


async def json_body(request: Request) -> dict[str, Any]:
    """A request's JSON object.

    Raises:
        StatusError: no JSON object, or more bytes than are read.
    """
    try:
        fields = parse_json(await request.body())
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise StatusError(400, 'The body is no JSON object. Send one, such as {"prompt": "a cat"}.')
    return fields


def parse_json(text: bytes | str) -> Any:
    """JSON as its standard has it: UTF-8 without half characters, and numbers that are some.

    Python's own reader also takes NaN, 1e999, halves of surrogate pairs and numbers of thousands of digits, each of
    which would fail later, where it is computed with, kept or sent back.

    Raises:
        ValueError: it is none.
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        value = json.loads(text, parse_float=_finite, parse_int=_whole, parse_constant=_finite)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("It is nested too deep.") from None
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number.")
    return number


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text[:20]}… has too many digits.")
    return int(text)


@asynccontextmanager
async def form_body(request: Request) -> AsyncIterator[FormData]:
    """A request's form; its files lie on the disk where they are large, and go with the block.

    Raises:
        StatusError: no form, too many parts of it, or more bytes than are read.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise StatusError(400, "The body is no form. Send multipart/form-data, as curl does with -F.")
    try:
        form = await request._get_form(
            max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD
        )
    except MultiPartException as error:
        raise StatusError(400, f"The form cannot be read: {error.message.rstrip('.').lower()}.") from error
    try:
        yield form
    finally:
        await form.close()


def upload_of(form: FormData, name: str) -> UploadFile:
    """The file in a form's field.

    Raises:
        StatusError: there is none.
    """
    upload = form.get(name)
    if not isinstance(upload, UploadFile):
        raise StatusError(
            400, f"The form has no file {name}. Send one, as curl does with -F {name}=@FILE.", field=name
        )
    return upload


async def file_of(form: FormData, name: str) -> bytes:
    """The bytes of the file in a form's field."""
    return await upload_of(form, name).read()


def data_of(text: object, field: str) -> bytes:
    """The bytes of base64, bare or in a data URL. Nothing is fetched: another URL is refused.

    Raises:
        StatusError: anything else.
    """
    if isinstance(text, str):
        start, _, rest = text.partition(",")
        bare = rest if start.startswith(_DATA_URL) and start.endswith(";base64") else text
        try:
            return base64.b64decode("".join(bare.split()), validate=True)
        except (binascii.Error, ValueError):
            pass
    raise StatusError(
        400, f"The field {field} is no base64 and no data URL. This server fetches no addresses.", field=field
    )


def concept_files_of(fields: Mapping[str, Any]) -> dict[str, bytes]:
    """The concept files that a request brings in its field `concept_files`, by the words that its prompt has for them.

    Raises:
        StatusError: no object of words and base64.
    """
    files = fields.get("concept_files") or {}
    if not isinstance(files, dict) or not all(_WORD.fullmatch(word) for word in files):
        raise StatusError(
            400, 'The concept files are no object of words, expected such as {"<cat>": "base64 of its file"}.',
            field="concept_files",
        )  # fmt: skip
    return {word: data_of(text, "concept_files") for word, text in files.items()}


def picture_of(
    data: bytes, field: str = "image", formats: tuple[str, ...] = _FORMATS, most: int = MOST_PIXELS
) -> Image:
    """A picture from the bytes of a file of some formats, upright, in 8 bits a channel; of several frames the first.

    Its size is looked at before it is decoded, and Pillow bounds what text it inflates.

    Raises:
        StatusError: no picture, or one of more than `most` pixels.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            picture = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise _too_large(field, most) from None
    except Exception as error:  # whatever a decoder raises for damaged bytes
        raise StatusError(
            400, f"The {field} cannot be read, expected a PNG, JPEG or WebP picture.", field=field
        ) from error
    if picture.width * picture.height > most:
        raise _too_large(field, most)
    try:
        return open_picture(picture)
    except PictureError as error:
        raise StatusError(400, str(error), field=field) from error


def _too_large(field: str, most: int) -> StatusError:
    return StatusError(
        413,
        f"The {field} has more than {most // 1_000_000} million pixels. Scale it down.",
        field=field,
    )
