r"""How people write prompts: weights, breaks and strengths, as A1111's web UI reads them.

| | |
|---|---|
| ``(word)``, ``((word))`` | times 1.1, times 1.21 |
| ``[word]`` | divided by 1.1 |
| ``(word:1.3)`` | times 1.3 |
| ``\(``, ``\)``, ``\[``, ``\]`` | brackets that are text |
| ``BREAK`` | a new part of the prompt begins, which the text encoder reads by itself |
| ``<lora:cat:0.8>`` | the strength of the concept ``<cat>``, which the prompt names elsewhere |

A bracket without its partner is text. A concept's own word is never read as syntax. Shared by the runtime and by
`perfusion.diffusers`; what the weights do is in `perfusion.concept.emphasis`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from perfusion.concept.weighted_text import WeightedText
from perfusion.concept.words import check_text, named
from perfusion.errors import RequestError

__all__ = [
    "DEFAULT_SYNTAX",
    "MOST_WEIGHT",
    "SYNTAXES",
    "ParsedPrompt",
    "check_syntax",
    "parse_prompt",
    "with_words",
]

SYNTAXES = ("weights", "plain")
DEFAULT_SYNTAX = "weights"
MOST_WEIGHT = 10.0

_STEP = 1.1  # what a pair of brackets multiplies or divides by
_MOST_DEEP = 100  # pairs within one another
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_TAG = r"<lora:(?P<name>[^<>:]+)(?P<numbers>(?::[^<>:]*)*)>"
_ANY = re.compile(r"[()\[\]]|BREAK|<lora:")
_COMMA = re.compile(r":\s*\d*,\d+\s*\)")  # a weight as many languages write it, which A1111 reads as text
_BREAK = WeightedText(" ", (), (0,))


@dataclass(frozen=True, kw_only=True)
class ParsedPrompt:
    """A prompt without its syntax."""

    text: WeightedText
    strengths: Mapping[str, float] = field(default_factory=dict)  # of concepts, by their tokens
    remarks: tuple[str, ...] = ()  # what its author may not have meant

    @property
    def changes(self) -> dict[str, dict[str, float]]:
        """The strengths as settings of concepts."""
        return {token: {"strength": strength} for token, strength in self.strengths.items()}


def check_syntax(syntax: object) -> None:
    """Raises RequestError for a prompt syntax that there is not."""
    if syntax not in SYNTAXES:
        raise RequestError(f"The prompt syntax is {syntax!r}, expected {' or '.join(map(repr, SYNTAXES))}.")


def parse_prompt(prompt: str, tokens: Collection[str], syntax: str = DEFAULT_SYNTAX) -> ParsedPrompt:
    """Read the syntax of a prompt; `tokens` are the words of loaded concepts. With "plain" all of it is text.

    Raises:
        RequestError: no text, a weight out of its range, or a tag whose concept is not loaded or not in the prompt.
    """
    check_text(prompt)
    if syntax == "plain" or not _ANY.search(prompt):
        return ParsedPrompt(text=WeightedText(prompt))
    symbols = list(_symbols(tokens).finditer(prompt))
    factors = _factors(symbols)
    text = WeightedText.join(_pieces(prompt, symbols, factors))
    tags = [_tag_of(symbol) for symbol in symbols if symbol["tag"]]
    alone = [
        symbol.group()[-1] for symbol in symbols if _is_bracket(symbol) and symbol.start() not in factors
    ]
    remarks = [
        f"the prompt has a {bracket!r} without its partner, so it is read as text" for bracket in alone
    ]
    remarks += [
        f"the prompt has {match.group()!r}, which is text and no weight; a weight has a point, as in (cat:1.2)"
        for match in _COMMA.finditer(prompt)
    ]
    remarks += [
        f"{tag.text} is more than all of a concept, so its strength is 1"
        for tag in tags
        if (tag.strength or 0) > 1
    ]
    return ParsedPrompt(
        text=text, strengths=_strengths(tags, text.text, tokens), remarks=tuple(dict.fromkeys(remarks))
    )


def with_words(prompt: str, tokens: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """A prompt of A1111's users, whose tags need no word: where a concept's word is nowhere in it, it is put where its
    tag stands. With the words that were put in.

    Raises:
        RequestError: a tag that says no strength, or whose concept is not loaded.
    """
    added: list[str] = []

    def worded(match: re.Match[str]) -> str:
        token = _token_of(_tag_of(match), tokens)
        if token in present or token in added:
            return match.group()
        added.append(token)
        return f"{token}{match.group()}"

    present = named(re.sub(_TAG, " ", prompt), tokens)
    return re.sub(_TAG, worded, prompt), tuple(added)


@dataclass(frozen=True, kw_only=True)
class _Tag:
    """A `<lora:name:weight>`."""

    text: str
    name: str
    strength: float | None
    """None: the concept's own."""


def _symbols(tokens: Collection[str]) -> re.Pattern[str]:
    """What is no plain letter of a prompt; concepts' words are among it, so that they are never cut."""
    names = "".join(f"|{re.escape(token)}" for token in sorted(tokens, key=len, reverse=True))
    return re.compile(
        rf"(?P<escape>\\[()\[\]])|(?P<text>\\[\\{{}}]{names})|(?P<tag>{_TAG})|(?P<opening>[(\[])"
        rf"|(?P<weighted>:\s*(?P<number>{_NUMBER})\s*\))|(?P<closing>[)\]])|(?P<break>\bBREAK\b)"
    )


def _is_bracket(symbol: re.Match[str]) -> bool:
    return bool(symbol["opening"] or symbol["weighted"] or symbol["closing"])


def _factors(symbols: Iterable[re.Match[str]]) -> dict[int, float]:
    """By the place of a bracket that has a partner what the pair multiplies by."""
    factors: dict[int, float] = {}
    open_at: dict[str, list[int]] = {")": [], "]": []}
    for symbol in symbols:
        if symbol["opening"]:
            open_at[")" if symbol["opening"] == "(" else "]"].append(symbol.start())
        elif symbol["weighted"] or symbol["closing"]:
            bracket = symbol.group()[-1]
            if open_at[bracket]:
                number = (
                    float(symbol["number"]) if symbol["weighted"] else _STEP if bracket == ")" else 1 / _STEP
                )
                factors[open_at[bracket].pop()] = factors[symbol.start()] = number
    return factors


def _pieces(
    prompt: str, symbols: Iterable[re.Match[str]], factors: Mapping[int, float]
) -> Iterator[WeightedText]:
    """The prompt's text in pieces of one weight."""
    active: list[float] = []
    end = 0
    for symbol in symbols:
        yield _weighted(prompt[end : symbol.start()], active)
        end = symbol.end()
        factor = factors.get(symbol.start())
        if factor is not None and symbol["opening"]:
            active.append(factor)
            if len(active) > _MOST_DEEP:
                raise RequestError(
                    f"The prompt has more than {_MOST_DEEP} pairs of brackets within one another."
                )
        elif factor is not None:
            active.remove(factor)
        elif symbol["break"]:
            yield _BREAK
        elif not symbol["tag"]:
            yield _weighted(symbol.group()[1:] if symbol["escape"] else symbol.group(), active)
    yield _weighted(prompt[end:], active)


def _weighted(text: str, factors: Sequence[float]) -> WeightedText:
    weight = round(math.prod(factors), 9)  # so that [(word)] weighs 1
    if text and not 0 <= weight <= MOST_WEIGHT:
        raise RequestError(
            f"The prompt weighs {text.strip()[:40]!r} {weight:g} times, expected 0 to {MOST_WEIGHT:g}. "
            "Write \\( and \\) for brackets that are text."
        )
    return WeightedText(text, () if weight == 1 else (weight,) * len(text))


def _tag_of(match: re.Match[str]) -> _Tag:
    text = match["tag"] if "tag" in match.re.groupindex else match.group()
    numbers = match["numbers"].split(":")[1:]
    try:
        strength = float(*numbers) if numbers else None
    except (TypeError, ValueError):
        strength = math.nan
    if strength is not None and not 0 <= strength < math.inf:
        raise RequestError(
            f"The prompt has {text}, expected a strength from 0 to 1, such as <lora:{match['name']}:0.8>."
        )
    return _Tag(text=text, name=match["name"].strip(), strength=strength)


def _token_of(tag: _Tag, tokens: Collection[str]) -> str:
    """The word of the concept that a tag names."""
    for token in (f"<{tag.name}>", tag.name):
        if token in tokens:
            return token
    raise RequestError(
        f"The prompt has {tag.text}, and no concept named {tag.name} is loaded. Loaded: {', '.join(tokens) or 'none'}."
    )


def _strengths(tags: Iterable[_Tag], text: str, tokens: Collection[str]) -> dict[str, float]:
    """The strengths that tags give to concepts of the text."""
    present, strengths = named(text, tokens), dict[str, float]()
    for tag in tags:
        token = _token_of(tag, tokens)
        if token not in present:
            raise RequestError(
                f"The prompt has {tag.text} and nowhere the word {token}, whose strength that is. Write {token} where "
                "the concept is to be seen."
            )
        if tag.strength is None:
            continue
        strength = min(tag.strength, 1.0)
        if strengths.setdefault(token, strength) != strength:
            raise RequestError(f"The prompt gives {token} two strengths. Leave one <lora:{tag.name}:…>.")
    return strengths
