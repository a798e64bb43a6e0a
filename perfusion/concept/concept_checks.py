"""What holds for every concept: names that can be typed, tensors whose shapes agree, the method's identities."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perfusion.concept.settings import LOCKS
from perfusion.concept.words import hidden_character
from perfusion.errors import ConceptError

if TYPE_CHECKING:
    from perfusion.concept.concept_file import Concept

__all__ = [
    "MAX_TEXT_ENCODERS", "TRAINING", "check_algebra", "check_shapes", "check_texts", "finite_array", "finite_number",
]  # fmt: skip

MAX_TEXT_ENCODERS = 2
MAX_TEXT = 1000
"""Characters of a metadata value."""
TRAINING = "training."
"""Prefix of the training facts among the metadata."""

Float32 = npt.NDArray[np.float32]


def finite_number(name: str, value: Any) -> float:
    """A finite Python float, so that it is written the same whatever number it came as."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConceptError(f"The {name} is {value!r:.40}, expected a number.") from error
    if not np.isfinite(number):
        raise ConceptError(f"The {name} is {number}, expected a finite number.")
    return number


def check_texts(concept: "Concept") -> None:
    """Refuse names that could not be typed in a prompt, printed on one line or compared."""
    if not isinstance(concept.training, Mapping):
        raise ConceptError(f"The training facts are {concept.training!r:.100}, expected names and strings.")
    texts = {name: getattr(concept, name) for name in ("token", "superclass", "base", "lock", "created_with")}
    texts |= {f"{TRAINING}{name}": value for name, value in concept.training.items()}
    for name, text in texts.items():
        if not isinstance(text, str) or max(len(text), len(name)) > MAX_TEXT:
            raise ConceptError(
                f"{name!r:.80} is {text!r:.80}, expected one line of at most {MAX_TEXT} characters."
            )
        if (hidden := hidden_character(name + text)) is not None:
            raise ConceptError(
                f"{name!r:.80} is {text!r:.80}, with the character {hidden}, which cannot be seen, expected one line "
                "that can be typed."
            )
    if not re.fullmatch(r"<[^<>\s]{1,62}>", concept.token):
        raise ConceptError(
            f"The token is {concept.token!r:.80}, expected a word in angle brackets without spaces, at most "
            "64 characters, such as '<cat>'."
        )
    if not concept.superclass.strip():
        raise ConceptError(
            "The superclass is empty, expected what kind of thing the concept is, such as 'cat'."
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,31}", concept.base):
        raise ConceptError(
            f"The base is {concept.base!r:.80}, expected a model family such as 'sd15' or 'pocket'."
        )
    if not isinstance(concept.base_fingerprint, str) or not re.fullmatch(
        r"[0-9a-f]{64}", concept.base_fingerprint
    ):
        raise ConceptError(
            f"The base fingerprint is {concept.base_fingerprint!r:.80}, expected 64 lower-case hex digits."
        )
    if concept.lock not in LOCKS:
        raise ConceptError(f"The lock is {concept.lock!r:.80}, expected one of {', '.join(LOCKS)}.")


def finite_array(name: str, array: Any) -> Float32:
    """A read-only float32 copy of a tensor, finite throughout."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        found = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ConceptError(f"Tensor {name!r} is {found}, expected a numpy array of floating-point numbers.")
    with np.errstate(all="ignore"):  # what overflows or is not a number is refused in the next line
        copy = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(copy).all():
        raise ConceptError(
            f"Tensor {name!r} holds NaN or infinity, expected finite numbers. Train the concept again."
        )
    copy.setflags(write=False)
    return copy


def check_shapes(concept: "Concept") -> None:
    """One number of rows everywhere, one text_dim for what lives in the encodings' space."""
    if not 1 <= len(concept.embeddings) <= MAX_TEXT_ENCODERS:
        raise ConceptError(
            f"The concept has {len(concept.embeddings)} embeddings, expected 1 or {MAX_TEXT_ENCODERS}."
        )
    shape = concept.direction.shape
    if len(shape) != 2 or 0 in shape:
        raise ConceptError(f"Tensor 'direction' has shape {shape}, expected (rows, text_dim).")
    expected: dict[str, tuple[int | None, ...]] = {
        "dual": shape,
        "superclass_encoding": shape,
        "energy": shape[:1],
    }
    for name, array in concept.tensors().items():
        wanted = expected.get(name, (shape[0], None))
        found = array.shape
        if (
            len(found) != len(wanted)
            or 0 in found
            or any(w not in (None, f) for w, f in zip(wanted, found, strict=True))
        ):
            text = str(wanted).replace("None", "any")
            raise ConceptError(
                f"Tensor {name!r} has shape {found}, expected {text} to go with 'direction' {shape}."
            )


def check_algebra(concept: "Concept") -> None:
    """The identities that hold for every concept: n > 0 and i* · w* = 1."""
    if not (concept.energy > 0).all():
        raise ConceptError(
            f"The energy is {concept.energy}, expected numbers above 0. Train the concept again."
        )
    products = np.einsum("rd,rd->r", concept.direction, concept.dual, dtype=np.float64)
    if not (abs(products - 1) <= 1e-2).all():
        raise ConceptError(
            f"direction · dual is {products}, expected 1 for every row: they belong to different concepts or "
            "are damaged. Train the concept again."
        )
