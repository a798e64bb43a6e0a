"""Long prompts: cut between words into parts that the text encoder can read, one after another."""

from __future__ import annotations

import itertools
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from perfusion.concept.weighted_text import WeightedText, as_weighted
from perfusion.concept.words import Encode, Word, check_text, pieces
from perfusion.errors import RequestError

__all__ = ["MOST_CHUNKS", "split_prompt"]

MOST_CHUNKS = 16  # 1200 tokens; cross-attention's work and memory grow with them

_JOINER = "\u200d"  # between the parts of one emoji
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)  # two of them are a flag


def split_prompt(
    prompt: str | WeightedText, words: Mapping[str, Word], encode: Encode, limit: int
) -> tuple[WeightedText, ...]:
    """Parts of at most `limit` tokens each, cut where a word begins; a prompt that fits is one part, as it is.

    A single word longer than `limit`, as a sentence is in languages without blanks, is cut at its punctuation, and
    where it has none between its letters.

    A concept is never cut. It counts as many tokens as it or its superclass has, whichever is more, so that the parts
    are the same however strong it is. One of strength 0 is its superclass already.

    Where the prompt has a break a new part begins.

    Raises:
        RequestError: not a text, a concept longer than `limit`, or more parts than `MOST_CHUNKS`.
    """
    source = as_weighted(prompt)
    check_text(source.text)
    parts = [
        part
        for section in source.parts()
        for part in _split_section(_worded(section, words), words, encode, limit)
    ]
    if len(parts) > MOST_CHUNKS:
        raise RequestError(
            f"The prompt has {len(parts)} parts, expected at most {MOST_CHUNKS}. Shorten it, or leave a BREAK out."
        )
    return tuple(parts)


def _worded(prompt: WeightedText, words: Mapping[str, Word]) -> WeightedText:
    """The prompt with the superclasses of concepts that are not active."""
    if not any(not word.active for word in words.values()):
        return prompt
    return WeightedText.join(
        prompt[start : start + len(piece)].saying(words[piece].superclass)
        if piece in words and not words[piece].active
        else prompt[start : start + len(piece)]
        for start, piece in pieces(prompt, words)
    )


def _split_section(
    prompt: WeightedText, words: Mapping[str, Word], encode: Encode, limit: int
) -> tuple[WeightedText, ...]:
    """What stands between two breaks, in parts."""
    units = list(_units(prompt, words, encode))
    total = sum(tokens for _, _, tokens in units)
    if total > MOST_CHUNKS * limit:  # before much time goes into cutting it
        raise _too_long(total, limit)
    starts, size = [0], 0
    for start, tokens in _short_units(units, words, encode, limit):
        if size + tokens > limit:
            starts.append(start)
            size = 0
        size += tokens
    if len(starts) == 1:
        return (prompt,)
    if len(starts) > MOST_CHUNKS:
        raise _too_long(total, limit)
    return tuple(prompt[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True))


def _too_long(total: int, limit: int) -> RequestError:
    return RequestError(
        f"The prompt has {total} tokens, expected at most {MOST_CHUNKS * limit}. Shorten the prompt."
    )


def _units(prompt: WeightedText, words: Mapping[str, Word], encode: Encode) -> Iterator[tuple[int, str, int]]:
    """The words and concepts of a prompt: where each begins, what it is, and how many tokens it has."""
    for start, piece in pieces(prompt, words):
        if piece in words:
            yield start, piece, max(words[piece].rows, len(encode(words[piece].superclass)[0]))
            continue
        _, offsets = encode(piece)
        begins = [at for at in dict.fromkeys(offsets) if at == offsets[0] or piece[at - 1].isspace()]
        for at, end in itertools.pairwise([*begins, len(piece)]):
            tokens = bisect_left(offsets, end) - bisect_left(offsets, at)  # they rise
            yield start + at, piece[at:end], tokens


def _short_units(
    units: list[tuple[int, str, int]], words: Mapping[str, Word], encode: Encode, limit: int
) -> Iterator[tuple[int, int]]:
    """What is not to be cut, of at most `limit` tokens: where each begins and how many it has."""
    for start, unit, tokens in units:
        if tokens <= limit:
            yield start, tokens
        elif unit in words:
            raise RequestError(
                f"The concept {unit} takes {tokens} tokens, and the model reads {limit} at a time. "
                "Use one of fewer rows."
            )
        else:
            yield from ((start + at, count) for at, count in _cut(unit, encode, limit))


def _cut(word: str, encode: Encode, limit: int) -> Iterator[tuple[int, int]]:
    """A word in pieces of at most `limit` tokens: where each begins and how many tokens it has when it stands alone."""
    at = 0
    while at < len(word):
        rest = word[at:]
        _, offsets = encode(rest)
        reach = len(rest) if len(offsets) <= limit else offsets[limit]  # further than this no piece goes
        for end in _places(rest, reach):
            tokens = len(
                encode(rest[:end])[0]
            )  # some more than in the whole, where a cut parts what was one token
            if tokens <= limit:
                break
        yield at, tokens
        at += end


def _places(word: str, reach: int) -> Iterator[int]:
    """Where a word may be cut, up to `reach`, the best place first: behind punctuation in its second half, between
    letters, within one that is longer than all that fits."""
    if reach >= len(word):
        yield len(word)
    runs = [run.end() for run in re.finditer(r"[^\w\s]+", word) if reach / 2 < run.end() <= reach]
    yield from reversed([end for end in runs if _is_border(word, end)])
    yield from (end for end in range(reach, 0, -1) if _is_border(word, end))
    yield from range(max(reach, 1), 0, -1)


def _is_border(text: str, at: int) -> bool:
    """Whether a letter, as people see it, ends at a place: not within an accented one, an emoji or a flag."""
    if not 0 < at < len(text):
        return True
    before, after = text[at - 1], text[at]
    goes_on = unicodedata.category(after) in ("Mn", "Mc", "Me", "Cf") or ord(after) in _SKIN_TONES
    if goes_on or before == _JOINER:
        return False
    flags = len(list(itertools.takewhile(lambda char: ord(char) in _FLAG_LETTERS, reversed(text[:at]))))
    return not (flags % 2 and ord(after) in _FLAG_LETTERS)
