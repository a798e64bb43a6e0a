"""Long prompts: cut between words into parts that the text encoder can read, one after another."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from perfusion.concept.words import Encode, Word, check_text, pieces
from perfusion.errors import RequestError

__all__ = ["MOST_CHUNKS", "split_prompt"]

MOST_CHUNKS = 16  # 1200 tokens; cross-attention's work and memory grow with them


def split_prompt(prompt: str, words: Mapping[str, Word], encode: Encode, limit: int) -> tuple[str, ...]:
    """Parts of at most `limit` tokens each, cut where a word begins; a prompt that fits is one part, as it is.

    A concept counts as many tokens as it or its superclass has, whichever is more, so that the parts are the same
    however strong it is. One of strength 0 is its superclass already.

    Raises:
        RequestError: not a text, a single word longer than `limit`, or more parts than `MOST_CHUNKS`.
    """
    check_text(prompt)
    prompt = "".join(
        words[piece].superclass if piece in words and not words[piece].active else piece
        for _, piece in pieces(prompt, words)
    )
    starts, size = [0], 0
    total = 0
    for start, tokens in _units(prompt, words, encode):
        if tokens > limit:
            raise RequestError(
                f"A word of the prompt has {tokens} tokens, and the model reads {limit} at a time: "
                f"{prompt[start : start + 40]!r}. Put spaces into it."
            )
        total += tokens
        if size + tokens > limit:
            starts.append(start)
            size = 0
        size += tokens
    if len(starts) == 1:
        return (prompt,)
    if len(starts) > MOST_CHUNKS:
        raise RequestError(
            f"The prompt has {total} tokens, expected at most {MOST_CHUNKS * limit}. Shorten the prompt."
        )
    return tuple(prompt[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True))


def _units(prompt: str, words: Mapping[str, Word], encode: Encode) -> Iterator[tuple[int, int]]:
    """What is not to be cut, a word or a concept: where each begins and how many tokens it has."""
    for start, piece in pieces(prompt, words):
        if piece in words:
            yield start, max(words[piece].rows, len(encode(words[piece].superclass)[0]))
            continue
        _, offsets = encode(piece)
        begins = [at for at in dict.fromkeys(offsets) if at == offsets[0] or piece[at - 1].isspace()]
        for at, end in itertools.pairwise([*begins, len(piece)]):
            yield start + at, bisect_left(offsets, end) - bisect_left(offsets, at)  # they rise
