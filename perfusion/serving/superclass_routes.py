"""`/api/superclass`: whether the model knows the word for a kind of thing, asked before anything is learned.

Answered from the bundle's tokenizer, without torch. The training asks the base model's own tokenizer once more.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.bundle.description import Bundle
from perfusion.concept.notices import WORD_END
from perfusion.embedded import is_embedded
from perfusion.runtime import Runtime
from perfusion.serving.answers import StatusError
from perfusion.serving.body_fields import text_of

__all__ = ["SuperclassAnswer", "check_superclass", "look_up", "superclass_routes"]

_MOST_LETTERS = 60
_MOST_PIECES = 4  # a word of more pieces is none that a model has learned
_NEAR, _LIKENESS = 3, 0.75  # words offered, and how alike they are at least


@dataclass(frozen=True, kw_only=True)
class SuperclassAnswer:
    """What is known of a word."""

    word: str
    known: bool
    near: tuple[str, ...] = ()
    """Words that may be meant instead, the nearest first."""
    sentence: str = ""
    """Why it cannot be used, or what is doubtful about it."""


def superclass_routes(runtime: Runtime) -> list[Route]:
    """The route that looks a superclass up."""

    async def superclass(request: Request) -> Response:
        word = " ".join(text_of(request.query_params, "word").split())
        if not 1 <= len(word) <= _MOST_LETTERS:
            raise StatusError(
                400,
                f"The word has {len(word)} letters, expected 1 to {_MOST_LETTERS}, such as cat.",
                field="word",
            )
        return JSONResponse(asdict(await asyncio.to_thread(look_up, runtime.bundle, word)))

    return [Route("/api/superclass", superclass)]


def check_superclass(superclass: str) -> str:
    """A superclass that may be a word, without what stands around it; whether a model knows it is another question.

    Raises:
        StatusError: it is none.
    """
    if re.fullmatch(r"[\w' -]{1,60}", superclass) and superclass.strip():
        return superclass.strip()
    raise StatusError(
        400, f"The superclass is {superclass[:60]!r}, expected a plain word such as cat.", field="superclass"
    )


def look_up(bundle: Bundle, superclass: str) -> SuperclassAnswer:
    """Whether a bundle's model can know a superclass, and what else may be meant."""
    if is_embedded(bundle.base):
        return _in_pocket(superclass)
    pieces, whole_words = _vocabulary(bundle.tokenizer)
    counts = {word: pieces(word) for word in superclass.split()}
    word, count = max(counts.items(), key=lambda item: item[1])
    if count == 1:
        return SuperclassAnswer(word=superclass, known=True)
    near = tuple(difflib.get_close_matches(word.lower(), whole_words, n=_NEAR, cutoff=_LIKENESS))
    if count > _MOST_PIECES:
        sentence = f"The model does not know {word!r}: it breaks into {count} pieces. Use a common word for this kind."
        return SuperclassAnswer(word=superclass, known=False, near=near, sentence=sentence)
    sentence = f"{word!r} is no common word to the model: it reads it in {count} pieces." if near else ""
    return SuperclassAnswer(word=superclass, known=True, near=near, sentence=sentence)


def _in_pocket(superclass: str) -> SuperclassAnswer:
    from perfusion.pocket.vocabulary import NOUNS, near_nouns

    if superclass.lower() in NOUNS:
        return SuperclassAnswer(word=superclass, known=True)
    sentence = f"The embedded model has never seen {superclass!r}. It knows: {', '.join(NOUNS)}."
    return SuperclassAnswer(word=superclass, known=False, near=near_nouns(superclass), sentence=sentence)


@functools.lru_cache(2)
def _vocabulary(path: Path) -> tuple[functools.partial[int], tuple[str, ...]]:
    """How many pieces a tokenizer breaks a word into, and the words that it has whole."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    words = [token.removesuffix(WORD_END) for token in tokenizer.get_vocab() if token.endswith(WORD_END)]
    return functools.partial(_count, tokenizer), tuple(
        sorted(word for word in words if word.isalpha() and len(word) > 2)
    )


def _count(tokenizer: object, word: str) -> int:
    return len(tokenizer.encode(word, add_special_tokens=False).ids)  # type: ignore[attr-defined]
