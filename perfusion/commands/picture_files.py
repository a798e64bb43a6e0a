"""The picture files of perfusion-generate: how they are named and marked, and which of them may be replaced."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.errors import ConceptError, PerfusionError, PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "check_replaceable", "numbered", "save_picture"]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_PROGRAM = "perfusion-edge"
_SOFTWARE = 0x0131  # the EXIF tag of the program that made a picture


def numbered(output: Path) -> Iterator[Path]:
    """OUT-0001, OUT-0002, ... behind the highest number that is there, whatever kind of picture has it."""
    name = re.compile(re.escape(output.stem) + r"-(\d+)")
    others = output.parent.iterdir() if output.parent.is_dir() else ()
    matches = [name.fullmatch(other.stem) for other in others if other.suffix.lower() in FORMATS]
    number = max((int(match[1]) for match in matches if match), default=0)
    while True:
        number += 1
        path = output.with_name(f"{output.stem}-{number:04}{output.suffix}")
        if not path.exists():  # another drawing into the same folder may be under way
            yield path


def save_picture(path: Path, picture: "Image", settings: "Mapping[str, Any] | None" = None) -> None:
    """A picture in the format of its file's name, whole or not at all, with the mark of this program."""
    from perfusion.runtime.picture_settings import save

    save(picture, path, settings)


def check_replaceable(path: Path) -> None:
    """Refuse to replace a file that may be dear to somebody: all but an empty one and what `save_picture` wrote.

    Raises:
        PerfusionError: there is another file of that name, or a card.
    """
    if path.is_file() and path.stat().st_size and not _is_ours(path):
        raise PerfusionError(
            f"{path} is there and is no drawing of perfusion-generate. Choose another name, or replace it with --force."
        )


def _is_ours(path: Path) -> bool:
    """Whether a picture has our mark and carries no concept."""
    from perfusion.concept.card import extract
    from perfusion.picture_input import open_picture

    try:
        picture = open_picture(path)
    except PictureError:
        return False
    software = picture.info.get("Software") or picture.getexif().get(_SOFTWARE)
    if not str(software).startswith(f"{_PROGRAM} "):
        return False
    try:
        extract(path.read_bytes())
    except ConceptError:  # no card, as it should be
        return True
    return False
