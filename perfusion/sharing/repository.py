"""What is published of a concept: its file, the same as a picture card, a gallery and the page that describes them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.concept import card
from perfusion.concept.concept_file import Concept
from perfusion.errors import HubError
from perfusion.hub import parse_name
from perfusion.picture_input import open_picture
from perfusion.sharing.gallery import GalleryPicture
from perfusion.sharing.model_card import CardFacts, model_card

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Repository", "check_names", "repository_of"]

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """The files of a repository on the hub, by their paths in it."""

    name: str
    """owner/name."""
    token: str
    """The concept's word."""
    files: Mapping[str, bytes]


def repository_of(
    path: str | Path,
    name: str,
    *,
    licence: str,
    base_model: str | None = None,
    gallery: Sequence[GalleryPicture] = (),
    picture: Path | None = None,
) -> Repository:
    """A concept's repository.

    Args:
        path: a concept file or a card.
        name: owner/name.
        licence: what others may do with it, by the hub's word for it: cc-by-4.0, openrail, …
        base_model: owner/name of the model that it was trained on; by default what the concept says.
        gallery: drawings of it.
        picture: what its card shows; by default the card that `path` is, or the gallery's first picture.

    Raises:
        ConceptError: no concept.
        HubError: names that the hub does not take.
        PictureError: `picture` is none.
    """
    path = Path(path)
    concept, data = Concept.load(path), path.read_bytes()
    base_model = base_model or concept.training.get("base_model")
    check_names(name, licence, base_model)
    file = card.extract(data) if card.is_card(data) else data
    stem = re.sub(r"[^\w.-]+", "-", path.stem, flags=re.ASCII).strip(".-") or "concept"
    pictured = picture is not None or card.is_card(data)
    names = [f"pictures/{number}.png" for number in range(1, len(gallery) + 1)]
    shown = {name: entry.prompt for name, entry in zip(names, gallery, strict=True)}
    facts = CardFacts(
        concept=concept, repository=name, file=f"{stem}.safetensors", card=f"{stem}.png", size=len(file),
        licence=licence, base_model=base_model, pictures=shown or ({f"{stem}.png": None} if pictured else {}),
    )  # fmt: skip
    files = {
        "README.md": model_card(facts).encode(),
        facts.file: file,
        facts.card: card.embed(_card_picture(path, concept, gallery, picture), file),
    }
    files |= {name: entry.data for name, entry in zip(names, gallery, strict=True)}
    return Repository(name=name, token=concept.token, files=files)


def check_names(name: str, licence: str | None, base_model: str | None) -> None:
    """Refuse what the hub would not take.

    Raises:
        HubError: which name, and what is expected.
    """
    parsed = parse_name(name)
    if parsed is None or parsed.revision or parsed.file:
        raise HubError(
            f"{name} is no name on the hub, expected your name there and the concept's: me/my-cat."
        )
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise HubError(
            f"{licence!r} is no licence as the hub names them, expected one such as cc-by-4.0, cc0-1.0 or openrail."
        )
    if base_model is not None and parse_name(base_model) is None:
        raise HubError(f"The base model {base_model} is no name on the hub, expected owner/name.")


def _card_picture(
    path: Path, concept: Concept, gallery: Sequence[GalleryPicture], picture: Path | None
) -> Image:
    """The picture of the card, as an image: what a file says beside its pixels stays here."""
    if picture is None and not card.is_card(path.read_bytes()):
        if not gallery:
            return card.plain(concept.token, concept.superclass, concept.base)
        from PIL import Image

        return Image.open(io.BytesIO(gallery[0].data))
    return open_picture(picture or path)
