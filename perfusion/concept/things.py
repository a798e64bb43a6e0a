"""The things that a prompt names, how they stand to one another, and one reading of the prompt for each.

A thing is a concept's word, or plain words that the user marks: ``a <cat> and a {teapot} on a wooden table``. The
reading of a thing is the prompt with every thing's word replaced by its own (docs/method.md, *Regions*): "a <cat> and a
<cat> on a wooden table", "a teapot and a teapot on a wooden table". So each region of a picture is told of the same
number of things in the same place, and of one kind of thing only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from perfusion.concept.weighted_text import WeightedText, as_weighted
from perfusion.errors import RequestError

__all__ = ["MarkedPrompt", "Thing", "read_marks", "side_by_side"]

_MARK = re.compile(
    r"\\([{}\\])|(\{[^{}]*\|[^{}]*\})|\{([^{}]*)\}|([{}])"  # the second is another program's choice of words
)
_ARTICLE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)
_VOWEL_SOUND = re.compile(
    r"(?!(?:uni|use|one\b|once|eu|ewe))[aeiou]|(?:hour|honest|heir|honou?r)", re.IGNORECASE
)

_ON_THE_SIDE = re.compile(r"\bon\s+the\s+(left|right)(?:\s+(?:side|hand\s+side))?\b", re.IGNORECASE)
_RELATIONS: Mapping[str, str] = {
    "left": r"(?:to|on|at)\s+the\s+left(?:\s+(?:side|hand\s+side))?\s+of|left\s+of",
    "right": r"(?:to|on|at)\s+the\s+right(?:\s+(?:side|hand\s+side))?\s+of|right\s+of",
    "beside": r"next\s+to|beside|besides|alongside|along\s+with|together\s+with|near|close\s+to|by\s+the\s+side\s+of"
    r"|facing|opposite|and|or|plus|versus|vs\.?|&|\+|,|;",
    "one": r"on\s+top\s+of|on|onto|upon|inside|in|into|within|wearing|holding|carrying|riding|eating|with|without|under"
    r"|underneath|beneath|below|above|over|behind|in\s+front\s+of|through|around|inside\s+of|made\s+of|made\s+from"
    r"|full\s+of|of|as|like|from|at|for|against|sitting|standing|lying",
}
"""What may stand between two things: in which order they stand, or that they are one thing to look at."""
_RELATION = re.compile(
    "|".join(rf"(?P<{name}>(?<!\w)(?:{pattern})(?!\w))" for name, pattern in _RELATIONS.items()),
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A word or some words of a prompt, as they stand there: a concept's token, or plain text."""

    word: str
    spans: tuple[tuple[int, int], ...]  # where in the prompt's text it stands; the first is its mention


@dataclass(frozen=True, kw_only=True)
class MarkedPrompt:
    """A prompt without its marks, and its things in the order of their first mention."""

    text: WeightedText
    things: tuple[Thing, ...]

    def reading(self, thing: Thing, sounds_like: Mapping[str, str]) -> WeightedText:
        """The prompt in which every thing's word is that of `thing`, with "a" or "an" as it then needs.

        In the places of the others the word has the weight of its first mention.

        Args:
            sounds_like: by a concept's token the superclass that it is spoken as.
        """
        mention = self.text[slice(*thing.spans[0])]
        parts: list[WeightedText] = []
        end = 0
        for (start, stop), word in self._places():
            before = self.text[end:start]
            if word == thing.word:
                parts += [before, self.text[start:stop]]
            else:
                parts += [_with_article(before, thing.word, sounds_like), mention]
            end = stop
        return WeightedText.join([*parts, self.text[end:]])

    def plain(self, words: Mapping[str, str]) -> WeightedText:
        """The prompt with each thing that is a key of `words` replaced: concepts by their superclasses."""
        parts: list[WeightedText] = []
        end = 0
        for (start, stop), word in self._places():
            itself = self.text[start:stop]
            parts += [self.text[end:start], itself.saying(words[word]) if word in words else itself]
            end = stop
        return WeightedText.join([*parts, self.text[end:]])

    def _places(self) -> list[tuple[tuple[int, int], str]]:
        """Where the things stand, from first to last, and which word it is."""
        return sorted((span, thing.word) for thing in self.things for span in thing.spans)


def read_marks(prompt: str | WeightedText, tokens: Iterable[str], marked: Sequence[str] = ()) -> MarkedPrompt:
    r"""The things of a prompt: concepts' tokens, words in braces, and the words of `marked` wherever they stand.

    ``\{`` and ``\}`` are braces that mark nothing.

    Raises:
        RequestError: braces that do not pair, an empty mark, or a word of `marked` that the prompt does not hold.
    """
    text, places = _without_braces(as_weighted(prompt))
    for token in tokens:
        places += [(match.span(), token) for match in re.finditer(re.escape(token), text.text)]
    for word in marked:
        places += _places_of(word, text.text, places)
    spans: dict[str, list[tuple[int, int]]] = {}
    for span, word in sorted(set(places)):
        spans.setdefault(word, []).append(span)
    _check_apart(sorted(places))
    return MarkedPrompt(
        text=text,
        things=tuple(Thing(word=word, spans=tuple(where)) for word, where in spans.items()),
    )


def side_by_side(prompt: MarkedPrompt) -> tuple[Thing, ...]:
    """The things from left to right, where the prompt says that they stand side by side; none where it does not.

    The order of mention, unless it says "to the right of" or "on the right". Things that are one to look at ("a <cat>
    in a {hat}") have no places of their own.
    """
    things = prompt.things
    if len(things) < 2:
        return ()
    order: list[Thing] = [things[0]]
    for earlier, later in pairwise(things):
        relation = _relation(prompt.text.text[earlier.spans[0][1] : later.spans[0][0]])
        if relation == "one":
            return ()
        at = order.index(earlier)
        order.insert(at if relation == "right" else at + 1, later)
    return _as_told(prompt, tuple(order))


def _relation(between: str) -> str:
    """What the words between two things say: the last relation among them, since it is the nearest to the second."""
    relations = list(_RELATION.finditer(_ON_THE_SIDE.sub(_blank_unless_of(between), between)))
    return str(relations[-1].lastgroup) if relations else "one"


def _blank_unless_of(between: str) -> str:
    """What "on the left" is replaced by where it tells a place and is no "on the left of"."""
    return (
        ""
        if not re.search(r"\b(?:left|right)(?:\s+(?:side|hand\s+side))?\s+of\b", between, re.IGNORECASE)
        else r"\g<0>"
    )


def _as_told(prompt: MarkedPrompt, order: tuple[Thing, ...]) -> tuple[Thing, ...]:
    """The order with the things that are told to be "on the left" or "on the right" at that end."""
    ends = [thing.spans[0][1] for thing in prompt.things]
    begins = [thing.spans[0][0] for thing in prompt.things[1:]] + [len(prompt.text)]
    sides: dict[str, str] = {}
    for thing, end, begin in zip(prompt.things, ends, begins, strict=True):
        between = prompt.text.text[end:begin]
        place = _ON_THE_SIDE.search(between)
        if place and not re.match(r"\s+of\b", between[place.end() :], re.IGNORECASE):
            sides[thing.word] = place.group(1).lower()
    rank = {"left": 0, "right": 2}
    return tuple(sorted(order, key=lambda thing: rank.get(sides.get(thing.word, ""), 1)))


def _without_braces(prompt: WeightedText) -> tuple[WeightedText, list[tuple[tuple[int, int], str]]]:
    """The text without its marks, and the marked words with their places in it."""
    parts: list[WeightedText] = []
    places: list[tuple[tuple[int, int], str]] = []
    length = end = 0
    for match in _MARK.finditer(prompt.text):
        word, alone = match[3], match[4]
        parts.append(prompt[end : match.start()])
        length += len(parts[-1])
        if alone is not None:
            raise RequestError(
                f"The prompt has a {alone!r} without its partner. "
                f"Mark a thing as {{teapot}}; write \\{alone} for a brace."
            )
        if word is not None:
            if not word.strip():
                raise RequestError(
                    "The prompt marks nothing with {}. Mark a thing as {teapot}, or write \\{ for a brace."
                )
            lead = len(word) - len(word.lstrip())
            places.append(((length + lead, length + lead + len(word.strip())), word.strip()))
        stays = next(group for group in (3, 1, 2) if match[group])
        parts.append(prompt[slice(*match.span(stays))])
        length += len(parts[-1])
        end = match.end()
    return WeightedText.join([*parts, prompt[end:]]), places


def _places_of(
    word: str, text: str, known: Sequence[tuple[tuple[int, int], str]]
) -> list[tuple[tuple[int, int], str]]:
    """Where a word of the prompt stands that is a thing by request."""
    if any(word == other for _, other in known):
        return []
    edges = (r"(?<!\w)" if word[:1].isalnum() else "", r"(?!\w)" if word[-1:].isalnum() else "")
    places = (
        [match.span() for match in re.finditer(edges[0] + re.escape(word) + edges[1], text)] if word else []
    )
    if not places:
        raise RequestError(
            f"A region is asked for {word!r}, and the prompt does not hold it. Name a concept or words of the prompt."
        )
    return [(place, word) for place in places]


def _check_apart(places: Sequence[tuple[tuple[int, int], str]]) -> None:
    for ((_, end), word), ((start, _), other) in pairwise(places):
        if start < end and word != other:
            raise RequestError(
                f"The things {word!r} and {other!r} overlap in the prompt. Mark each word once."
            )


def _with_article(before: WeightedText, word: str, sounds_like: Mapping[str, str]) -> WeightedText:
    """The text before a word with "a" or "an" as the word needs it."""
    article = _ARTICLE.search(before.text)
    if article is None:
        return before
    fitting = "an" if _VOWEL_SOUND.match(sounds_like.get(word, word)) else "a"
    written = fitting.capitalize() if article.group(1)[0].isupper() else fitting
    blanks = before[article.start(2) :]
    return WeightedText.join([before[: article.start()], before[article.start() :].saying(written), blanks])
