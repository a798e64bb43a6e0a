"""Embeddings: the textual inversions that A1111's users have, learned words without an edit.

A file is safetensors with one table, under any name (`emb_params` in A1111's, the word in diffusers'), or with the two
of SDXL: `clip_l` and `clip_g`, in diffusers' DreamBooth scripts `text_encoders_0` and `text_encoders_1`. Numbers are
float32, float16, bfloat16 or float64. Pickles (.pt, .bin) are never opened: they can run code.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.concept.words import hidden_character
from perfusion.errors import ConceptError

__all__ = ["MOST_BYTES", "PAIRS", "Embedding"]

Array = NDArray[np.float32]

PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
"""SDXL's two tables in one file: the names of most programs, and those of diffusers' DreamBooth scripts."""

MOST_BYTES = 32 << 20
"""Of a file: no embedding is larger."""
_MOST_LETTERS = 64
_SYNTAX = re.compile(r"[()\[\]{}\\:|]|\bBREAK\b")  # what prompts read as syntax
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PICKLES = (
    b"PK\x03\x04",
    *(bytes((0x80, protocol)) for protocol in range(2, 6)),
)  # torch.save's, and older ones'


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """A word of prompts whose vectors stand in the place of tokens.

    Two are the same where their `sha256` is; it is that of the file, by which A1111's programs know an embedding too.
    """

    word: str  # in prompts, in any case
    vectors: tuple[Array, ...]  # (rows, hidden) for each text encoder, in the order of the encoders
    sha256: str

    def __post_init__(self) -> None:
        _check_word(self.word)

    def __repr__(self) -> str:
        return f"Embedding(word={self.word!r}, rows={self.rows})"

    @property
    def rows(self) -> int:
        """How many tokens it takes of a prompt."""
        return len(self.vectors[0])

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of a vector, for each text encoder."""
        return tuple(table.shape[1] for table in self.vectors)

    @classmethod
    def load(cls, path: str | Path, word: str | None = None) -> Embedding:
        """Read a file; without `word` its name is the word, as in A1111's web UI: EasyNegative.safetensors.

        Raises:
            ConceptError: it cannot be read, is a pickle, or holds no embedding; the message names the file.
        """
        path = Path(path)
        data = _read(path)
        try:
            return cls.from_bytes(data, path.stem if word is None else word)
        except ConceptError as error:
            raise ConceptError(f"{path}: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes, word: str) -> Embedding:
        """Read the bytes of a file.

        Raises:
            ConceptError: they are a pickle or hold no embedding, or the word is none.
        """
        tables = _tables(_tensors(data))
        return cls(word=word, vectors=tables, sha256=hashlib.sha256(data).hexdigest())


def _read(path: Path) -> bytes:
    """A file's bytes, or just enough of them to see that there are too many."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConceptError(
                f"{path} is not a file, expected an embedding such as EasyNegative.safetensors."
            )
        with open(path, "rb") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character in it
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConceptError(
            f"{path} cannot be read: {reason}. Expected an embedding such as EasyNegative.safetensors."
        ) from error


def _tensors(data: bytes) -> dict[str, Array]:
    """The tensors of a safetensors file as float32, (rows, hidden) each."""
    from safetensors import SafetensorError, deserialize

    if data.startswith(_PICKLES):
        raise ConceptError(
            "This is a pickle, as .pt and .bin files are, expected safetensors. A pickle can run code and is never "
            "opened here; get the embedding as .safetensors."
        )
    if len(data) > MOST_BYTES:
        raise ConceptError(f"The file has more than {MOST_BYTES} bytes; it is a model and no embedding.")
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]  # the library tells no types
    except (SafetensorError, ValueError) as error:
        raise ConceptError(
            f"This is no safetensors file, or a damaged one ({error}). Get it again."
        ) from error
    return {name: _table(name, entry) for name, entry in entries}


def _table(name: str, entry: Mapping[str, Any]) -> Array:
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if dtype not in _DTYPES or not 1 <= len(shape) <= 2 or 0 in shape:
        raise ConceptError(
            f"The tensor {name!r:.80} is {dtype} of shape {shape}, expected vectors of floating-point numbers: this is "
            "no embedding."
        )
    numbers = np.frombuffer(entry["data"], _DTYPES[dtype])
    if dtype == "BF16":  # the upper half of a float32
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # told of below
        table = np.array(numbers, np.float32).reshape(-1, shape[-1])
    if not np.isfinite(table).all():
        raise ConceptError(f"The tensor {name!r:.80} holds NaN or infinity. Get the embedding again.")
    table.setflags(write=False)
    return table


def _tables(tensors: Mapping[str, Array]) -> tuple[Array, ...]:
    """The tables of one word, in the order of the text encoders."""
    for pair in PAIRS:
        if set(tensors) == set(pair):
            first, second = (tensors[half] for half in pair)
            if len(first) != len(second):
                raise ConceptError(
                    f"{pair[0]} has {len(first)} vectors and {pair[1]} {len(second)}, expected as many. Get the "
                    "embedding again."
                )
            return first, second
    if len(tensors) != 1:
        raise ConceptError(
            f"The file holds {len(tensors)} tensors ({_some(tensors)}), expected one table, such as emb_params, or "
            "clip_l and clip_g: this is no embedding."
        )
    return tuple(tensors.values())


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))[:100] or "none"


def _check_word(word: object) -> None:
    """Refuse a word that cannot be typed, or that prompts read as syntax."""
    if isinstance(word, str) and word.strip() == word and 0 < len(word) <= _MOST_LETTERS:
        hidden, syntax = hidden_character(word), _SYNTAX.search(word)
        if hidden is None and syntax is None:
            return
        reason = f"with {syntax.group()!r}, which prompts read as syntax" if syntax else f"with {hidden}"
        raise ConceptError(f"The embedding's word is {word!r}, {reason}. Give it another word.")
    raise ConceptError(
        f"The embedding's word is {word!r:.80}, expected up to {_MOST_LETTERS} letters without blanks at the ends. "
        "Give it another word."
    )
