"""Prompts to token ids: the base model's own tokenizer, with loaded concepts as words of their own.

A concept's word, "<cat>", is cut out of the prompt before the tokenizer sees it and becomes one placeholder
id a row, from `vocab_size` on. What stands around it is tokenized as it would be alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import BundleError, RequestError
from perfusion.runtime.bundle import TextEncoder

__all__ = ["PromptTokenizer", "TokenizedPrompt", "Word"]

Ids = NDArray[np.int64]

_LIKE_A_CONCEPT = re.compile(r"<[^<>\s]{1,62}>")


@dataclass(frozen=True, kw_only=True)
class Word:
    """What the tokenizer must know of a loaded concept."""

    rows: int
    superclass: str
    active: bool = True  # a concept of strength 0 is read as its superclass


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedPrompt:
    """One prompt as the text encoder reads it.

    Placeholders are numbered through `concepts` in their order: the rows of the first come first.
    """

    input_ids: Ids  # (context_length,)
    concepts: tuple[str, ...]  # named in the prompt, in order of appearance
    unknown: tuple[str, ...]  # words that look like a concept's but are none
    superclass_tokens: tuple[int, ...]  # the prompt without its frame, superclasses in their concepts' places
    counterparts: tuple[int, ...]  # where in superclass_tokens each token of the prompt has its equal


class PromptTokenizer:
    """The bundle's tokenizer.json through the `tokenizers` library."""

    def __init__(self, path: Path, encoder: TextEncoder) -> None:
        """Raises BundleError when the file is not a tokenizer or not this text encoder's."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise BundleError(f"{path} is not a tokenizer ({error}). Export the bundle again.") from error
        if self._tokenizer.get_vocab_size() > encoder.vocab_size:
            raise BundleError(
                f"{path} has {self._tokenizer.get_vocab_size()} tokens and the text encoder knows "
                f"{encoder.vocab_size}. Export the bundle again."
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._encoder = encoder

    def knows(self, word: str) -> bool:
        """Whether `word` is a token of the base model's own."""
        return self._tokenizer.token_to_id(word) is not None

    def tokenize(self, prompt: str, words: Mapping[str, Word]) -> TokenizedPrompt:
        """Token ids of a prompt in which the keys of `words` name concepts.

        Raises:
            RequestError: not a text, or longer than the text encoder reads.
        """
        _check_text(prompt)
        pieces = [(start, _read_as(piece, words)) for start, piece in _pieces(prompt, words)]
        concepts = tuple(dict.fromkeys(piece for _, piece in pieces if piece in words))
        first_id = self._first_ids(concepts, words)
        ids: list[int] = []
        starts: list[int] = []  # where in the prompt each token begins
        superclass: list[int] = []
        counterparts: list[int] = []
        for start, piece in pieces:
            if piece in words:
                rows = words[piece].rows
                replacement, _ = self._encode(words[piece].superclass)
                ids += range(first_id[piece], first_id[piece] + rows)
                starts += [start] * rows
                counterparts += _align(rows, len(replacement), len(superclass))
                superclass += replacement
            else:
                plain, offsets = self._encode(piece)
                counterparts += range(len(superclass), len(superclass) + len(plain))
                ids += plain
                superclass += plain
                starts += [start + offset for offset in offsets]
        self._check_length(prompt, starts)
        return TokenizedPrompt(
            input_ids=self._framed(ids),
            concepts=concepts,
            unknown=tuple(word for word in _words_like_concepts(pieces, words) if not self.knows(word)),
            superclass_tokens=tuple(superclass),
            counterparts=tuple(counterparts),
        )

    def superclass_version(self, prompt: TokenizedPrompt) -> tuple[Ids, Ids]:
        """The prompt with each superclass in its concept's place, and where each token has its counterpart.

        Ids and positions, both (context_length,). Token counts may differ: what stands behind a concept then
        has another position in the two, so encodings are read through the positions, never side by side.

        Raises:
            RequestError: the superclasses make the prompt longer than the text encoder reads.
        """
        length, limit = self._encoder.context_length, self._encoder.context_length - 2
        count = len(prompt.superclass_tokens)
        if count > limit:
            raise RequestError(
                f"With the superclass in the concept's place the prompt has {count} tokens, and the model "
                f"reads {limit}. Shorten it, or use the local lock."
            )
        body = np.asarray(prompt.counterparts, np.int64) + 1
        # The end token's counterpart is the end token; padding follows as far as there is any.
        tail = count + 1 + np.arange(length - 1 - len(body))
        positions = np.minimum(np.concatenate([[0], body, tail]), length - 1)
        return self._framed(prompt.superclass_tokens), positions

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text and where each begins, without the ids for start and end."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _first_ids(self, concepts: Sequence[str], words: Mapping[str, Word]) -> dict[str, int]:
        """The placeholder id of each concept's first row."""
        first, ids = self._encoder.vocab_size, {}
        for token in concepts:
            ids[token] = first
            first += words[token].rows
        return ids

    def _framed(self, ids: Sequence[int]) -> Ids:
        """Start, the ids, end, padding."""
        encoder = self._encoder
        framed = np.full(encoder.context_length, encoder.pad_token_id, np.int64)
        framed[: len(ids) + 2] = [encoder.bos_token_id, *ids, encoder.eos_token_id]
        return framed

    def _check_length(self, prompt: str, starts: Sequence[int]) -> None:
        limit = self._encoder.context_length - 2
        if len(starts) > limit:
            raise RequestError(
                f"The prompt has {len(starts)} tokens, and the model reads {limit}: "
                f"{_short(prompt[starts[limit] :])!r} would be cut. Shorten the prompt."
            )


def _check_text(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise RequestError(f"The prompt is {_short(repr(prompt))}, expected a text.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"The prompt holds bytes that are not UTF-8 at character {error.start}."
        ) from error


def _pieces(prompt: str, words: Mapping[str, Word]) -> Iterator[tuple[int, str]]:
    """The prompt cut at concepts' words: where each piece begins, and the piece."""
    start = 0
    for found in re.finditer("|".join(re.escape(word) for word in words), prompt) if words else ():
        if found.start() > start:
            yield start, prompt[start : found.start()]
        yield found.start(), found.group()
        start = found.end()
    if start < len(prompt):
        yield start, prompt[start:]


def _read_as(piece: str, words: Mapping[str, Word]) -> str:
    """The superclass in place of a concept that is not active, anything else as it stands."""
    return words[piece].superclass if piece in words and not words[piece].active else piece


def _align(rows: int, replaced: int, offset: int) -> list[int]:
    """Counterparts of a concept's rows among the tokens of its superclass: last on last, none past the first.

    In "teddy bear" the head is the last word, so that is where a single row belongs.
    """
    return [offset + max(0, replaced - rows + row) for row in range(rows)]


def _words_like_concepts(pieces: Sequence[tuple[int, str]], words: Mapping[str, Word]) -> Iterator[str]:
    for _, piece in pieces:
        if piece not in words:
            yield from _LIKE_A_CONCEPT.findall(piece)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
