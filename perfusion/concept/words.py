"""Prompts to token ids, with concepts as words of their own among those of the base model's tokenizer.

A concept's word, "<cat>", is cut out of the prompt before the tokenizer sees it and becomes one placeholder
id a row, from `vocab_size` on. What stands around it is tokenized as it would be alone. Shared by the runtime,
which reads a bundle's tokenizer, and by `perfusion.diffusers`, which borrows a pipeline's.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfusion.concept.weighted_text import WeightedText, as_weighted
from perfusion.errors import RequestError

__all__ = [
    "Encode",
    "Frame",
    "Ids",
    "TokenizedPrompt",
    "Word",
    "aligned",
    "check_text",
    "hidden_character",
    "named",
    "pieces",
    "superclass_positions",
    "tokenize",
    "unknown",
]

Ids = NDArray[np.int64]
Encode = Callable[[str], tuple[list[int], list[int]]]
"""Ids of a text, without start and end, and where in the text each begins."""

_LIKE_A_CONCEPT = re.compile(r"<[^<>\s]{1,62}>")


@dataclass(frozen=True, kw_only=True)
class Word:
    """What must be known of a loaded concept."""

    rows: int
    superclass: str
    active: bool = True  # otherwise the concept is read as its superclass
    first_id: int | None = None  # placeholder id of its first row; None: numbered in order of appearance


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a text encoder expects around a prompt's tokens."""

    vocab_size: int
    context_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def around(self, ids: Sequence[int]) -> Ids:
        """Start, the ids, end, padding; (context_length,)."""
        framed = np.full(self.context_length, self.pad_token_id, np.int64)
        framed[: len(ids) + 2] = [self.bos_token_id, *ids, self.eos_token_id]
        return framed

    def weights(self, weights: Sequence[float]) -> NDArray[np.float64]:
        """Those of the ids, and 1 for start, end and padding; (context_length,)."""
        framed = np.ones(self.context_length)
        framed[1 : len(weights) + 1] = weights
        return framed


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedPrompt:
    """One prompt as the text encoder reads it.

    Placeholders are numbered through `concepts` in their order, the rows of the first first, unless their
    words say otherwise.
    """

    text: str
    input_ids: Ids  # (context_length,)
    length: int  # how many of them are not padding, start and end included
    concepts: tuple[str, ...]  # named in the prompt, in order of appearance
    unknown: tuple[str, ...]  # words that look like a concept's but are none
    superclass_tokens: tuple[int, ...]  # the prompt without its frame, superclasses in their concepts' places
    counterparts: tuple[int, ...]  # where in superclass_tokens each token of the prompt has its equal
    weights: NDArray[np.float64] | None = None  # (context_length,) of the tokens; None: all 1


def tokenize(
    prompt: str | WeightedText,
    words: Mapping[str, Word],
    encode: Encode,
    frame: Frame,
    knows: Callable[[str], bool],
) -> TokenizedPrompt:
    """Token ids of a prompt in which the keys of `words` name concepts; `knows` tells the base model's own words.

    What has a weight of its own is tokenized by itself, and so is what stands around it.

    Raises:
        RequestError: not a text, or longer than the text encoder reads.
    """
    source = as_weighted(prompt)
    prompt = source.text
    check_text(prompt)
    parts = [(start, _read_as(piece, words)) for start, piece in pieces(source, words)]
    concepts = tuple(dict.fromkeys(piece for _, piece in parts if piece in words))
    first_id = _first_ids(concepts, words, frame)
    ids: list[int] = []
    starts: list[int] = []  # where in the prompt each token begins
    superclass: list[int] = []
    counterparts: list[int] = []
    weights: list[float] = []
    for start, piece in parts:
        if piece in words:
            rows = words[piece].rows
            replacement, _ = encode(words[piece].superclass)
            ids += range(first_id[piece], first_id[piece] + rows)
            starts += [start] * rows
            counterparts += _align(rows, len(replacement), len(superclass))
            superclass += replacement
        else:
            plain, offsets = encode(piece)
            counterparts += range(len(superclass), len(superclass) + len(plain))
            ids += plain
            superclass += plain
            starts += [start + offset for offset in offsets]
        weights += [source.weight_at(start)] * (len(ids) - len(weights))  # a piece has one weight
    _check_length(prompt, starts, frame, words)
    return TokenizedPrompt(
        text=prompt,
        input_ids=frame.around(ids),
        length=len(ids) + 2,
        concepts=concepts,
        unknown=unknown(prompt, words, knows),
        superclass_tokens=tuple(superclass),
        counterparts=tuple(counterparts),
        weights=frame.weights(weights) if source.weights else None,
    )


def superclass_positions(prompt: TokenizedPrompt) -> Ids:
    """Where each token has its counterpart in the prompt with each superclass in its concept's place.

    (context_length,). Token counts may differ: what stands behind a concept then has another position in the two, so
    encodings are read through the positions, never side by side.

    Raises:
        RequestError: the superclasses make the prompt longer than the text encoder reads.
    """
    length, count = len(prompt.input_ids), len(prompt.superclass_tokens)
    if count > length - 2:
        raise RequestError(
            f"With the superclass in the concept's place the prompt has {count} tokens, and the model "
            f"reads {length - 2}. Shorten it, or use the local lock."
        )
    body = np.asarray(prompt.counterparts, np.int64) + 1
    # The end token's counterpart is the end token; padding follows as far as there is any.
    tail = count + 1 + np.arange(length - 1 - len(body))
    positions: Ids = np.minimum(np.concatenate([[0], body, tail]), length - 1)
    return positions


def aligned(prompt: TokenizedPrompt, other: TokenizedPrompt) -> Ids:
    """Where in `other`, the same text with fewer of its concepts active, each token of `prompt` has its partner.

    A permutation, (context_length,): no token of either is left out or read twice, so what cross-attention draws from
    `other` does not change by it. Words stand beside themselves and a concept beside the last word of its superclass; a
    superclass's further words stand beside padding, of which `prompt` then has that much more.
    """
    length = len(prompt.input_ids)
    theirs = {counterpart: at for at, counterpart in enumerate(other.counterparts)}
    ours = {counterpart: at for at, counterpart in enumerate(prompt.counterparts)}
    partner = np.full(length, -1, np.int64)
    partner[0] = 0
    for counterpart in ours.keys() & theirs.keys():
        partner[ours[counterpart] + 1] = theirs[counterpart] + 1
    partner[prompt.length - 1] = other.length - 1  # the end token
    # What is left is padding and unpaired words; in each the padding is used up first, so it meets its like.
    left = _padding_first(np.flatnonzero(partner < 0), prompt.length)
    right = _padding_first(np.setdiff1d(np.arange(length), partner), other.length)
    partner[left] = right
    return partner


def named(prompt: str, words: Collection[str]) -> tuple[str, ...]:
    """The words of some concepts that a prompt holds, active or not, in order of appearance."""
    return tuple(dict.fromkeys(piece for _, piece in pieces(prompt, words) if piece in words))


def unknown(prompt: str, words: Mapping[str, Word], knows: Callable[[str], bool]) -> tuple[str, ...]:
    """What looks like a concept's word in a prompt and is neither one nor a word of the base model's own."""
    return tuple(word for word in _words_like_concepts(pieces(prompt, words), words) if not knows(word))


def check_text(prompt: object) -> None:
    """Raises RequestError for what is not a text."""
    if not isinstance(prompt, str):
        raise RequestError(f"The prompt is {_short(repr(prompt))}, expected a text.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"The prompt holds bytes that are not UTF-8 at character {error.start}."
        ) from error


def hidden_character(text: str) -> str | None:
    """The first character of a text that cannot be seen or breaks the line, by its number and name; None without one.

    A concept's file holds no such names: whoever types them again types them without it.
    """
    hidden = next((character for character in text if not character.isprintable()), None)
    if hidden is None:
        return None
    return f"U+{ord(hidden):04X} {unicodedata.name(hidden, '')}".rstrip()


def _first_ids(concepts: Sequence[str], words: Mapping[str, Word], frame: Frame) -> dict[str, int]:
    """The placeholder id of each concept's first row."""
    following, ids = frame.vocab_size, {}
    for token in concepts:
        chosen = words[token].first_id
        ids[token] = following if chosen is None else chosen
        following += words[token].rows
    return ids


def _check_length(prompt: str, starts: Sequence[int], frame: Frame, words: Mapping[str, Word]) -> None:
    limit = frame.context_length - 2
    if len(starts) > limit:
        replaced = [
            f"{words[token].superclass!r} for {token}"
            for token in named(prompt, words)
            if not words[token].active
        ]
        reading = f" with {', '.join(replaced)}" if replaced else ""  # the case at any strength below 1
        raise RequestError(
            f"The prompt has {len(starts)} tokens{reading}, and the model reads {limit}: "
            f"{_short(prompt[starts[limit] :])!r} would be cut. Shorten the prompt."
        )


def pieces(prompt: str | WeightedText, words: Collection[str]) -> Iterator[tuple[int, str]]:
    """The prompt cut at concepts' words and where weights change: where each piece begins, and the piece."""
    if isinstance(prompt, WeightedText):
        if prompt.weights:
            yield from _weighted_pieces(prompt, words)
            return
        prompt = prompt.text
    start = 0
    for match in re.finditer("|".join(re.escape(word) for word in words), prompt) if words else ():
        if match.start() > start:
            yield start, prompt[start : match.start()]
        yield match.start(), match.group()
        start = match.end()
    if start < len(prompt):
        yield start, prompt[start:]


def _weighted_pieces(prompt: WeightedText, words: Collection[str]) -> Iterator[tuple[int, str]]:
    for start, piece in pieces(prompt.text, words):
        if piece in words:
            yield start, piece
        else:
            for begin, end in prompt[start : start + len(piece)].runs():
                yield start + begin, piece[begin:end]


def _padding_first(positions: Ids, start: int) -> Ids:
    """Positions with those from `start` on, which are padding, before the others."""
    return np.concatenate([positions[positions >= start], positions[positions < start]])


def _read_as(piece: str, words: Mapping[str, Word]) -> str:
    """The superclass in place of a concept that is not active, anything else as it stands."""
    return words[piece].superclass if piece in words and not words[piece].active else piece


def _align(rows: int, replaced: int, offset: int) -> list[int]:
    """Counterparts of a concept's rows among the tokens of its superclass: last on last, none past the first.

    In "teddy bear" the head is the last word, so that is where a single row belongs.
    """
    return [offset + max(0, replaced - rows + row) for row in range(rows)]


def _words_like_concepts(pieces: Iterable[tuple[int, str]], words: Mapping[str, Word]) -> Iterator[str]:
    for _, piece in pieces:
        if piece not in words:
            yield from _LIKE_A_CONCEPT.findall(piece)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
