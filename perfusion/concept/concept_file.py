"""A concept and its file: one visual idea as a few thousand numbers, tied to one base model.

The file is safetensors with named tensors and string metadata; docs/format.md describes it for those who
write a reader of their own. A file called *.png is a card: a picture that carries such a file
(perfusion/concept/card.py). Everything is checked when a concept is made, so one that exists is usable.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perfusion.concept import card
from perfusion.concept.concept_checks import (
    MAX_TEXT_ENCODERS,
    TRAINING,
    check_algebra,
    check_shapes,
    check_texts,
    finite_array,
    finite_number,
)
from perfusion.concept.container import pack, unpack
from perfusion.concept.mistaken_files import refuse_mistaken
from perfusion.concept.settings import DEFAULT_LOCK, FILE_SETTINGS, ConceptSettings
from perfusion.concept.storage import narrow, stored_as, widen
from perfusion.errors import ConceptError
from perfusion.files import writing

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMAT", "FORMAT_VERSION", "Concept", "storage_of"]

FORMAT = "perfusion-concept"
FORMAT_VERSION = 1
_MAX_FILE_BYTES = 8 * 1024 * 1024
_PICTURES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")

_VECTORS = ("direction", "dual", "energy", "superclass_encoding")

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Concept:
    """One trained concept. All arrays are float32, read-only and share their first dimension, `rows`.

    Raises:
        ConceptError: at construction, when anything is missing, misshapen, not finite or contradictory.
    """

    token: str  # the word in prompts, "<cat>"
    superclass: str  # what kind of thing it is, "teddy bear"
    base: str  # the base model's family: sd15, sd21, sdxl, pocket, …
    base_fingerprint: str  # SHA-256 over the base's key and value projections, 64 hex digits
    direction: Float32  # (rows, text_dim) i*
    dual: Float32  # (rows, text_dim) w* = C⁻¹ i* / n
    energy: Float32  # (rows,) n = i*ᵀ C⁻¹ i*
    superclass_encoding: Float32  # (rows, text_dim) ē_super
    embeddings: tuple[Float32, ...]  # (rows, hidden) of each text encoder: the learned word
    target_values: Float32  # (rows, Σ d_V) o*_V of every layer, in module order
    target_keys: Float32 | None = None  # (rows, Σ d_K) o*_K; None: derived from the base's key projections
    lock: str = DEFAULT_LOCK  # the default at inference
    bias: float = ConceptSettings.bias  # β, default at inference
    temperature: float = ConceptSettings.temperature  # τ, default at inference
    strength: float = ConceptSettings.strength  # 0 to 1, default at inference
    created_with: str = ""
    training: Mapping[str, str] = field(default_factory=dict)  # steps, seed, pictures, …

    def __post_init__(self) -> None:
        check_texts(self)
        for name in FILE_SETTINGS:
            object.__setattr__(self, name, finite_number(name, getattr(self, name)))
        if self.temperature <= 0:
            raise ConceptError(
                f"The temperature is {self.temperature}, expected a number above 0, such as 0.15."
            )
        if not 0 <= self.strength <= 1:
            raise ConceptError(f"The strength is {self.strength}, expected 0 (the superclass) to 1.")
        object.__setattr__(self, "training", MappingProxyType(dict(self.training)))
        if not isinstance(self.embeddings, (tuple, list)):
            raise ConceptError(
                f"The embeddings are {type(self.embeddings).__name__}, expected a tuple of arrays."
            )
        embeddings = (
            finite_array(f"embeddings.{index}", array) for index, array in enumerate(self.embeddings)
        )
        object.__setattr__(self, "embeddings", tuple(embeddings))
        for name in self.tensors():
            if not name.startswith("embeddings."):
                object.__setattr__(self, name, finite_array(name, getattr(self, name)))
        check_shapes(self)
        check_algebra(self)

    def __repr__(self) -> str:
        names = f"token={self.token!r}, superclass={self.superclass!r}, base={self.base!r}"
        return f"Concept({names}, rows={self.rows})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied, and sent to another process, as the bytes of its file, which are checked on arrival."""
        return type(self).from_bytes, (self.to_bytes("float32"),)

    @property
    def rows(self) -> int:
        """How many placeholder tokens, and slots of the exported model, the concept takes; usually 1."""
        return int(self.direction.shape[0])

    @property
    def settings(self) -> ConceptSettings:
        """How the file asks to be used."""
        return ConceptSettings(**{name: getattr(self, name) for name in FILE_SETTINGS})

    @classmethod
    def load(cls, path: str | Path) -> "Concept":
        """Read a concept file or a card. Runs no code from it and allocates no more than its size.

        Raises:
            ConceptError: the file cannot be read or is not a valid concept; the message names the file.
        """
        data = _read(Path(path))
        try:
            return cls.from_bytes(data)
        except ConceptError as error:
            raise ConceptError(f"{path}: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> "Concept":
        """Read a concept from the bytes of its file or its card.

        Raises:
            ConceptError: the bytes are not a valid concept.
        """
        if card.is_card(data):
            data = card.extract(data)
        card.refuse_other_pictures(data)
        if len(data) > _MAX_FILE_BYTES:
            refuse_mistaken(data)
            raise ConceptError(
                f"The file has more than {_MAX_FILE_BYTES} bytes. This is no concept file; give one that "
                "perfusion-train wrote."
            )
        try:
            tensors, metadata = unpack(bytes(data))
            _check_format(metadata)
        except ConceptError:
            refuse_mistaken(data)
            raise
        tensors = widen(tensors)
        encoders = _check_names(tensors)
        fields = _fields(metadata)
        fields["embeddings"] = tuple(tensors.pop(f"embeddings.{index}") for index in range(encoders))
        fields |= tensors
        return cls(**fields)

    def save(
        self,
        path: str | Path,
        storage: str = "float16",
        *,
        keys: bool = True,
        picture: "Image | str | Path | None" = None,
    ) -> None:
        """Write the concept file, whole or not at all. The same concept always gives the same bytes.

        `storage` is "float16", "float32" or "int8"; `keys=False` leaves out the target keys, which a runtime
        derives from the base model. To a name ending in .png a card is written: `picture`, a drawing of the
        concept (an image, or the path of one), with the file inside; without a picture a plain card that
        says what the concept is.

        Raises:
            ConceptError: `storage` is unknown, a number does not fit it, or the file's name is that of another picture.
            PictureError: the picture cannot be read.
            PerfusionError: the file cannot be written.
        """
        path, data = Path(path), self.to_bytes(storage, keys=keys)
        if path.suffix.lower() == ".png":
            if picture is None:
                picture = card.plain(self.token, self.superclass, self.base)
            data = card.embed(picture, data)
        elif picture is not None:
            raise ConceptError(
                f"{path} was to carry a picture, and only a PNG can. Choose a name that ends in .png."
            )
        elif path.suffix.lower() in _PICTURES:
            raise ConceptError(
                f"{path} is the name of a picture that carries no concept: only a PNG can. Choose a name that ends in "
                ".png or .safetensors."
            )
        with writing(path) as file:
            file.write(data)

    def to_bytes(self, storage: str = "float16", *, keys: bool = True) -> bytes:
        """The bytes of the concept file that `save` writes.

        Raises:
            ConceptError: `storage` is unknown, or a number does not fit it.
        """
        tensors = self.tensors()
        if not keys:
            tensors.pop("target_keys", None)
        data = pack(narrow(tensors, storage), _metadata(self))
        if len(data) > _MAX_FILE_BYTES:
            raise ConceptError(
                f"The concept takes {len(data)} bytes, expected at most {_MAX_FILE_BYTES}. Use fewer rows."
            )
        return data

    def tensors(self) -> dict[str, Float32]:
        """The tensors by their names in the file."""
        tensors = {name: getattr(self, name) for name in _VECTORS}
        tensors |= {f"embeddings.{index}": array for index, array in enumerate(self.embeddings)}
        tensors["target_values"] = self.target_values
        if self.target_keys is not None:
            tensors["target_keys"] = self.target_keys
        return tensors


def storage_of(data: bytes) -> str:
    """The storage that a concept file, or the one in a card, was written with.

    Raises:
        ConceptError: the bytes are not a valid concept.
    """
    return stored_as(unpack(card.extract(data) if card.is_card(data) else data)[0])


def _read(path: Path) -> bytes:
    """A file's bytes, or just enough of them to see that there are too many."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a folder, or a pipe that would never end
            raise ConceptError(f"{path} is not a file, expected a concept file such as cat.safetensors.")
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
            if card.is_card(data):  # a picture may be larger than any concept
                data += file.read(card.MAX_CARD_BYTES + 1 - len(data))
            return data
    except (OSError, ValueError) as error:  # ValueError: a path with a null character in it
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConceptError(
            f"{path} cannot be read: {reason}. Expected a concept file such as cat.safetensors."
        ) from error


def _check_format(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ConceptError(
            f"The metadata says format {metadata.get('format')!r:.80}, expected {FORMAT!r}: some other "
            "safetensors file. Give one that perfusion-train wrote."
        )
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise ConceptError(
            f"The concept has format version {metadata.get('format_version')!r:.40}, this program reads "
            f"{FORMAT_VERSION}. Install a newer perfusion-edge, or train the concept again."
        )


def _check_names(tensors: Mapping[str, object]) -> int:
    """Refuse missing and unknown tensors; the number of text encoders."""
    encoders = max(1, sum(name.startswith("embeddings.") for name in tensors))
    required = {*_VECTORS, "target_values"}
    required |= {f"embeddings.{index}" for index in range(min(encoders, MAX_TEXT_ENCODERS))}
    if missing := sorted(required - set(tensors)):
        raise ConceptError(f"The file lacks the tensors {missing}. Copy or train the concept again.")
    if unknown := sorted(set(tensors) - required - {"target_keys"}):
        raise ConceptError(
            f"The file has unknown tensors {unknown!r:.200}, expected {sorted(required)} and target_keys."
        )
    return encoders


def _fields(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The concept's fields from the metadata; other names are ignored, so that later writers can say more."""
    fields: dict[str, Any] = {}
    for name in ("token", "superclass", "base", "base_fingerprint"):
        if name not in metadata:
            raise ConceptError(f"The metadata lacks {name!r}. Copy or train the concept again.")
        fields[name] = metadata[name]
    fields |= {name: metadata[name] for name in ("lock", "created_with") if name in metadata}
    fields |= {name: _parsed(name, metadata[name]) for name in FILE_SETTINGS if name in metadata}
    fields["training"] = {
        name.removeprefix(TRAINING): value for name, value in metadata.items() if name.startswith(TRAINING)
    }
    return fields


def _metadata(concept: Concept) -> dict[str, str]:
    """The strings that go into the file; the usual strength is left out, so that older readers see the same file."""
    defaults = {name: repr(getattr(concept, name)) for name in FILE_SETTINGS}
    if concept.strength == ConceptSettings.strength:
        del defaults["strength"]
    return {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "token": concept.token,
        "superclass": concept.superclass,
        "base": concept.base,
        "base_fingerprint": concept.base_fingerprint,
        "lock": concept.lock,
        **defaults,
        "created_with": concept.created_with,
        **{TRAINING + name: value for name, value in concept.training.items()},
    }


def _parsed(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConceptError(f"The metadata's {name} is {text!r:.40}, expected a number.") from error
