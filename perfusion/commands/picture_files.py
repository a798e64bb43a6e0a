"""The picture files of perfusion-generate: how they are named, and which of them may be replaced."""

import re
from collections.abc import Iterator
from pathlib import Path

from perfusion.errors import ConceptError, PerfusionError, PictureError

__all__ = ["check_replaceable", "numbered"]


def numbered(output: Path) -> Iterator[Path]:
    """OUT-0001, OUT-0002, ... behind the highest number that is there, whatever kind of picture has it."""
    from perfusion.runtime.picture_settings import FORMATS

    name = re.compile(re.escape(output.stem) + r"-(\d+)")
    others = output.parent.iterdir() if output.parent.is_dir() else ()
    matches = [name.fullmatch(other.stem) for other in others if other.suffix.lower() in FORMATS]
    number = max((int(match[1]) for match in matches if match), default=0)
    while True:
        number += 1
        path = output.with_name(f"{output.stem}-{number:04}{output.suffix}")
        if not path.exists():  # another drawing into the same folder may be under way
            yield path


def check_replaceable(path: Path) -> None:
    """Refuse to replace a file that may be dear to somebody: all but an empty one and what this program wrote.

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
    from perfusion.runtime.picture_settings import is_marked

    try:
        picture = open_picture(path)
    except PictureError:
        return False
    if not is_marked(picture):
        return False
    try:
        extract(path.read_bytes())
    except ConceptError:  # no card, as it should be
        return True
    return False
