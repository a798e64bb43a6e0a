"""Embeddings as words: which of them stand in a text, and what the text encoders read there.

Their ids lie far above all tokens and all placeholders of concepts, and no two embeddings ever have the same. So what
is kept of a text with such ids is never another embedding's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perfusion.concept.embedding_file import Embedding
from perfusion.concept.words import Encode, Ids
from perfusion.errors import RequestError

__all__ = ["FIRST_ID", "NO_WORDS", "LearnedWords"]

Array = NDArray[np.float32]

FIRST_ID = 1 << 32
"""Of embeddings' rows; the ids of tokens and of concepts are below."""

_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Entry:
    embedding: Embedding
    first_id: int


class LearnedWords(Mapping[str, Embedding]):
    """The embeddings that are words of prompts, by their words. It never changes: another one comes in its place.

    A word is found in any case, as a whole word, and also as ComfyUI writes it: `embedding:EasyNegative`.
    """

    def __init__(self, entries: Mapping[str, _Entry] | None = None) -> None:
        self._entries = dict(entries or {})  # by their words in lower case

    __hash__ = object.__hash__  # what was read with these is kept under them

    def __eq__(self, other: object) -> bool:
        return self is other

    def __getitem__(self, word: str) -> Embedding:
        return self._entries[word.lower()].embedding

    def __iter__(self) -> Iterator[str]:
        return iter([entry.embedding.word for entry in self._entries.values()])

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"LearnedWords({', '.join(self)})"

    def adding(self, embedding: Embedding) -> LearnedWords:
        """These and another one, whose word is free."""
        return LearnedWords(
            {**self._entries, embedding.word.lower(): _Entry(embedding=embedding, first_id=_new_id())}
        )

    def without(self, word: str) -> LearnedWords:
        """These but one.

        Raises:
            RequestError: there is no such one.
        """
        if word not in self:
            raise RequestError(f"No embedding {word!r:.80} is loaded. Loaded: {', '.join(self) or 'none'}.")
        return LearnedWords({name: entry for name, entry in self._entries.items() if name != word.lower()})

    def named(self, text: str) -> tuple[Embedding, ...]:
        """Those that a text names, in the order of their first mention."""
        entries = dict.fromkeys(entry for _, _, entry in self._pieces(text) if entry is not None)
        return tuple(entry.embedding for entry in entries)

    def plain(self, text: str) -> str:
        """A text without their words."""
        return "".join(piece for _, piece, entry in self._pieces(text) if entry is None)

    def encode(self, text: str, encode: Encode) -> tuple[list[int], list[int]]:
        """The ids of a text and where each begins, of what is no learned word by `encode`."""
        if not self._entries:
            return encode(text)
        ids: list[int] = []
        starts: list[int] = []
        for start, piece, entry in self._pieces(text):
            if entry is None:
                plain, offsets = encode(piece)
                ids += plain
                starts += [start + offset for offset in offsets]
            else:
                rows = entry.embedding.rows
                ids += range(entry.first_id, entry.first_id + rows)
                starts += [start] * rows
        return ids, starts

    def placed(self, ids: Ids, first: int, encoder: int) -> tuple[Ids, Array | None]:
        """Ids with those of embeddings numbered from `first` on, and their vectors (rows, hidden) for a text encoder;
        None where there are none."""
        own = np.unique(ids[ids >= FIRST_ID])
        if not len(own):
            return ids, None
        placed = np.where(ids >= FIRST_ID, first + np.searchsorted(own, ids), ids)
        return placed, np.stack([self._vector(int(row), encoder) for row in own])

    def name(self, row: int) -> str:
        """The embedding that an id is of, with the row where it has several."""
        entry = self._owner(row)
        place = f"[{row - entry.first_id}]" if entry.embedding.rows > 1 else ""
        return f"{entry.embedding.word}{place}"

    def _vector(self, row: int, encoder: int) -> Array:
        entry = self._owner(row)
        vector: Array = entry.embedding.vectors[encoder][row - entry.first_id]
        return vector

    def _owner(self, row: int) -> _Entry:
        return next(
            entry for entry in self._entries.values() if 0 <= row - entry.first_id < entry.embedding.rows
        )

    def _pieces(self, text: str) -> Iterator[tuple[int, str, _Entry | None]]:
        """A text cut at their words: where each piece begins, the piece, and whose word it is."""
        end = 0
        for match in self._pattern.finditer(text) if self._entries else ():
            if match.start() > end:
                yield end, text[end : match.start()], None
            # a few letters match others of no equal lower case, as K does k; they are text
            yield match.start(), match.group(), self._entries.get(match["word"].lower())
            end = match.end()
        if end < len(text):
            yield end, text[end:], None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        names = "|".join(re.escape(name) for name in sorted(self._entries, key=len, reverse=True))
        return re.compile(rf"(?<!\w)(?:embedding:)?(?P<word>{names})(?!\w)", re.IGNORECASE)


def _new_id() -> int:
    """The first id of an embedding, whose rows end far below that of the next."""
    return FIRST_ID + next(_numbers) * (1 << 16)


NO_WORDS = LearnedWords()
"""What is in force where no embedding is loaded."""
