"""The picture card: an ordinary PNG that carries a concept file in a chunk of its own.

People share pictures, so a concept travels inside a drawing of itself. The chunk is called `pfCo`: ancillary (a
viewer that does not know it shows the picture), private (it is ours), and safe to copy (the concept does not
depend on the pixels, so an editor may carry it over to a changed picture). Most programs that re-encode pictures,
messengers above all, drop chunks they do not know; what they send on is a plain picture.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.errors import ConceptError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CHUNK", "MAX_CARD_BYTES", "embed", "extract", "is_card", "plain", "refuse_other_pictures"]

CHUNK = b"pfCo"
MAX_CARD_BYTES = 64 * 1024 * 1024
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OTHER_PICTURES = {
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_FRAME = 12  # length, type and CRC around a chunk's data
_SIDE = 256  # pixels of a plain card
_AGAIN = "Ask for the card again, as a file and not as a picture that a messenger may shrink."


def is_card(data: bytes) -> bool:
    """Whether the bytes begin as a PNG does."""
    return data[: len(_SIGNATURE)] == _SIGNATURE


def refuse_other_pictures(data: bytes) -> None:
    """Say of a picture that is no PNG that it cannot carry a concept. A concept file that begins like one of them would
    have a header of more than the largest length.

    Raises:
        ConceptError: the bytes begin as a JPEG, WebP, GIF or TIFF does.
    """
    for start, kind in _OTHER_PICTURES.items():
        if data.startswith(start):
            raise ConceptError(
                f"This is a {kind} picture, which carries no concept: only a PNG can. {_AGAIN}"
            )


def extract(data: bytes) -> bytes:
    """The concept file that a PNG carries.

    Raises:
        ConceptError: it carries none or more than one, is cut off, too large, or the chunk is damaged.
    """
    if len(data) > MAX_CARD_BYTES:
        raise ConceptError(
            f"The picture has more than {MAX_CARD_BYTES} bytes, expected at most that of a card. Use a smaller one."
        )
    view = memoryview(data)
    spans = [(begin, end) for kind, begin, end in _chunks(data) if kind == CHUNK]
    if not spans:
        raise ConceptError(
            "This picture carries no concept: it never was a card, or it was saved again by a program that drops "
            f"what it does not know. {_AGAIN}"
        )
    if len(spans) > 1:
        raise ConceptError(f"This picture carries {len(spans)} concepts, expected one. {_AGAIN}")
    ((begin, end),) = spans
    body, crc = view[begin + 8 : end - 4], int.from_bytes(view[end - 4 : end], "big")
    if zlib.crc32(view[begin + 4 : end - 4]) != crc:
        raise ConceptError(f"The concept in this picture is damaged: its checksum does not match. {_AGAIN}")
    return bytes(body)


def embed(picture: "Image | str | Path", concept: bytes) -> bytes:
    """A PNG of `picture`, pixel for pixel, that carries `concept`; one it carried before is replaced.

    A PNG file keeps its bytes but for the chunk; anything else that Pillow opens is written as a PNG, turned as its
    EXIF data say.

    Raises:
        PictureError: the picture cannot be read.
        ConceptError: the card would be too large.
    """
    data = _png_of(picture)
    pieces, last = [_SIGNATURE], b""
    for kind, begin, end in _chunks(data):
        if kind == b"IEND":
            last = data[begin:end]
        elif kind != CHUNK:
            pieces.append(data[begin:end])
    # last but for the end: viewers that show a picture while it loads need not wait for the concept
    pieces += [
        struct.pack(">I", len(concept)),
        CHUNK,
        concept,
        struct.pack(">I", zlib.crc32(CHUNK + concept)),
        last,
    ]
    card = b"".join(pieces)
    if len(card) > MAX_CARD_BYTES:
        raise ConceptError(
            f"The card would have {len(card)} bytes, expected at most {MAX_CARD_BYTES}. Give a smaller picture."
        )
    return card


def plain(token: str, superclass: str, base: str) -> "Image":
    """A card for a concept of which there is no drawing: its names on a colour made of them. 256 x 256, RGB."""
    from PIL import Image, ImageDraw, ImageFont

    hue = zlib.crc32(f"{token} {superclass} {base}".encode()) % 360
    image = Image.new("RGB", (_SIDE, _SIDE), f"hsl({hue},45%,30%)")
    draw = ImageDraw.Draw(image)
    for text, largest, middle in ((token, 34, 104), (superclass, 20, 148), (base, 14, 230)):
        for size in range(largest, 5, -1):  # a long name is written smaller, and runs over the edge at last
            font = ImageFont.load_default(size)
            if draw.textlength(text, font=font) <= _SIDE - 24:
                break
        draw.text((_SIDE / 2, middle), text, fill="white", font=font, anchor="mm")
    return image


def _png_of(picture: "Image | str | Path") -> bytes:
    """The bytes of a PNG: those of the file, or the picture encoded, upright as its camera was held."""
    from perfusion.picture_input import open_picture

    image = open_picture(picture)  # a damaged picture is refused here and not by whoever opens the card
    if isinstance(picture, str | Path):
        data = Path(picture).read_bytes()
        if is_card(data):
            return data
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, begin and end of every chunk, from the first to IEND, lengths checked before anything is read."""
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        if at + _FRAME > len(data):
            raise ConceptError(
                f"This picture is cut off after {len(data)} bytes, in front of its end. {_AGAIN}"
            )
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + _FRAME + length
        if end > len(data):
            raise ConceptError(
                f"This picture is cut off: a chunk of it ends at byte {end} of {len(data)}. {_AGAIN}"
            )
        yield kind, at, end
        at = end
