"""The pictures that are shown beside a shared concept: drawings of it, out of files and of a sweep's folder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion.concept.concept_file import Concept
from perfusion.errors import PictureError, RequestError
from perfusion.picture_input import open_picture
from perfusion.runtime.picture_settings import FORMATS, read_settings, write

__all__ = ["MOST_PICTURES", "GalleryPicture", "read_gallery"]

MOST_PICTURES = 12


@dataclass(frozen=True, kw_only=True)
class GalleryPicture:
    """A picture as it is published."""

    data: bytes
    """A PNG."""
    prompt: str | None
    """What it was drawn from, where its file says so."""


def read_gallery(paths: Sequence[Path], concept: Concept) -> tuple[GalleryPicture, ...]:
    """The pictures of some files and folders, at most `MOST_PICTURES`.

    Of a folder, such as a sweep's, those that were drawn with this concept are taken, each prompt and seed once, with
    the settings that are nearest to the concept's own.

    Raises:
        PictureError: a file is no picture.
        RequestError: a folder has no drawing of the concept.
    """
    files = [file for path in paths for file in (_drawings_of(path, concept) if path.is_dir() else [path])]
    return tuple(_picture(file) for file in files[:MOST_PICTURES])


def _picture(path: Path) -> GalleryPicture:
    """The pixels, and the settings that a drawing of ours carries. Nothing else: a camera writes where it was."""
    image, settings = open_picture(path), _settings(path)
    file = io.BytesIO()
    write(image, file, "PNG", settings)
    return GalleryPicture(data=file.getvalue(), prompt=None if settings is None else str(settings["prompt"]))


def _settings(path: Path) -> dict[str, Any] | None:
    """What a drawing says of itself; None of all other files."""
    try:
        return read_settings(path)
    except PictureError:
        return None


def _drawings_of(folder: Path, concept: Concept) -> list[Path]:
    """A folder's drawings of a concept, one for each prompt and seed, in the order of prompts and seeds."""
    nearest: dict[tuple[str, int], tuple[float, Path]] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS):
        settings = _settings(path) or {}
        used = settings.get("concepts", {}).get(concept.token)
        if used and used["strength"]:
            place = str(settings["prompt"]), int(settings["seed"])
            distance = (
                abs(used["bias"] - concept.bias)
                + abs(used["strength"] - concept.strength)
                + abs(used["start"])
            )
            nearest[place] = min(nearest.get(place, (distance, path)), (distance, path))
    if not nearest:
        raise RequestError(
            f"{folder} has no drawing of {concept.token} that says how it was drawn. Give the folder that "
            "perfusion-sweep --work or perfusion-generate wrote into, or single pictures."
        )
    return [path for _, (_, path) in sorted(nearest.items())]
