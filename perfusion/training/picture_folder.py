"""Which files of a folder are training pictures, and which look like some and are not used."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, features

from perfusion.errors import TrainingError
from perfusion.picture_input import HEIF_SUFFIXES, knows_heif, picture_kind

__all__ = ["SUFFIXES", "find_pictures"]

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff")
"""Read by every Pillow."""
PHOTO_SUFFIXES = (
    ".heic", ".heif", ".avif", ".jxl", ".svg", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
)  # fmt: skip
"""Pictures that may not be read and that Pillow may not know by name."""
NAMED = 6
"""More files than this are not listed one by one."""


def find_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name. Hidden files are passed over; what else may be a picture is named.

    Raises:
        TrainingError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        there = "is a file" if folder.exists() else "is not there"
        raise TrainingError(f"{folder} {there}, expected a folder with pictures of one object (--images).")
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in visible if path.is_file()]
    suffixes = _readable_suffixes(files)
    pictures = [path for path in files if path.suffix.lower() in suffixes]
    left_out = _left_out(folder, [path for path in files if path not in pictures], visible)
    if not pictures:
        raise TrainingError(
            f"{folder} has no pictures to learn from: {''.join(f'{line}; ' for line in left_out)}expected files "
            f"ending in {', '.join(suffixes)}."
        )
    for line in left_out:
        logger.warning("%s: %s", folder, line)
    return pictures


def _readable_suffixes(files: Sequence[Path]) -> tuple[str, ...]:
    """Those that every Pillow reads, and those that this one reads."""
    suffixes: tuple[str, ...] = SUFFIXES
    if features.check("avif"):
        suffixes += (".avif",)
    if any(path.suffix.lower() in HEIF_SUFFIXES for path in files) and knows_heif():
        suffixes += HEIF_SUFFIXES
    return suffixes


def _left_out(folder: Path, others: Sequence[Path], visible: Sequence[Path]) -> list[str]:
    """A line for each kind of picture that is not learned from, with what to do."""
    known = (set(Image.registered_extensions()) | set(PHOTO_SUFFIXES)) - set(SUFFIXES)
    heif = [path.name for path in others if path.suffix.lower() in HEIF_SUFFIXES]
    foreign = [path.name for path in others if path.suffix.lower() in known - set(HEIF_SUFFIXES)]
    nameless = [path.name for path in others if not path.suffix and picture_kind(path)]
    folders = [path for path in visible if path.is_dir() and path.name != "masks"]
    nested = [f"{path.name}/" for path in folders if _holds_pictures(path)]
    remedies = (
        (heif, 'pip install "perfusion-edge[heif]" to read HEIC, or convert'),
        (foreign, "convert to PNG or JPEG"),
        (nameless, "without a suffix; rename to .jpg or .png"),
        (nested, "put the pictures of folders beside the others"),
    )
    return [
        f"{_names(names)} {'is' if len(names) == 1 else 'are'} not used: {remedy}"
        for names, remedy in remedies
        if names
    ]


def _holds_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in (*SUFFIXES, *PHOTO_SUFFIXES) for path in folder.iterdir())


def _names(names: Sequence[str]) -> str:
    """ "2.gif, 5.heic", or the first of many and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
