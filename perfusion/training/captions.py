"""A corpus of captions like those people write for photographs and type as prompts.

From it the second moment of the text encodings is computed when there is no better text: what tells a concept's
direction from everything else is how encodings vary over ordinary prompts. Composed, not collected: the same captions
on every machine, with nothing to fetch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from perfusion.training import caption_words as words

__all__ = ["CAPTIONS", "generate_captions"]

CAPTIONS = 10_000
"""Gates stay where they are from 2,000 on; 10,000 hold nearly all words of the corpus."""

_AN = ("hourglass", "heir", "honest", "honor")
_NOT_AN = ("unicorn", "uniform", "university", "ukulele", "european", "one-")
_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "mouse": "mice", "goose": "geese", "sheep": "sheep",
    "deer": "deer", "moose": "moose", "bison": "bison", "salmon": "salmon", "goldfish": "goldfish", "knife": "knives",
    "leaf": "leaves", "loaf": "loaves", "calf": "calves", "wolf": "wolves", "fisherman": "fishermen", "dice": "dice",
    "businessman": "businessmen", "firefighter": "firefighters", "elf": "elves", "dwarf": "dwarves", "scarf": "scarves",
    "snowman": "snowmen", "starfish": "starfish", "die": "dice", "octopus": "octopuses", "potato": "potatoes",
    "tomato": "tomatoes", "mango": "mangoes", "samurai": "samurai", "aircraft": "aircraft", "piano": "pianos",
}  # fmt: skip

_OBJECTS = (*words.THINGS, *words.FOODS)
_ALL = (*words.PEOPLE, *words.ANIMALS, *_OBJECTS, *words.BUILDINGS, *words.NATURE)


def generate_captions(count: int = CAPTIONS, seed: int = 0) -> list[str]:
    """`count` distinct captions, the same for the same seed on every machine and version of Python.

    Raises:
        ValueError: more than a million are asked for, which the sentence forms would take ever longer to find.
    """
    if not 0 <= count <= 1_000_000:
        raise ValueError(f"count is {count}, expected 0 to 1000000")
    source = random.Random(seed)
    captions: dict[str, None] = {}
    while len(captions) < count:
        form = _FORMS[int(source.random() * len(_FORMS))]
        captions[form(source)] = None
    return list(captions)


def _pick(source: random.Random, options: Sequence[str]) -> str:
    # `random()` is the one draw whose sequence Python promises to keep
    return options[int(source.random() * len(options))]


def _with_article(phrase: str) -> str:
    """ "a cat", "an apple", "an hourglass", "a unicorn", "an 8k photo"."""
    vowel = phrase.startswith(("a", "e", "i", "o", "u", "8", *_AN)) and not phrase.startswith(_NOT_AN)
    return f"{'an' if vowel else 'a'} {phrase}"


def _plural(noun: str) -> str:
    """ "teddy bears", "bowls of soup", "sandwiches", "puppies", "gas stations"."""
    head, of, rest = noun.partition(" of ")
    before, space, last = head.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh", "z")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{before}{space}{last}{of}{rest}"


def _noun(source: random.Random, nouns: Sequence[str] = _ALL) -> str:
    """A noun, more often than not with something said of it: "old man", "red wooden chair"."""
    noun = _pick(source, nouns)
    if source.random() < 0.12 and nouns is _OBJECTS:
        noun = _said(_pick(source, words.MATERIALS), noun)
    if source.random() < 0.35 and nouns is not words.PEOPLE:
        noun = _said(_pick(source, words.COLOURS), noun)
    if source.random() < 0.25:
        noun = _said(_pick(source, words.QUALITIES), noun)
    return noun


def _said(adjective: str, noun: str) -> str:
    """Not "an old old man"."""
    return noun if set(adjective.split()) & set(noun.split()) else f"{adjective} {noun}"


def _phrase(source: random.Random, nouns: Sequence[str] = _ALL) -> str:
    """A noun with its article, rarely "the" or "my"."""
    noun, draw = _noun(source, nouns), source.random()
    if draw < 0.8:
        return _with_article(noun)
    return f"{'the' if draw < 0.95 else 'my'} {noun}"


def _scene(source: random.Random) -> str:
    """Somebody or something, doing something where that is possible."""
    draw = source.random()
    if draw < 0.35:
        return f"{_phrase(source, words.PEOPLE)} {_pick(source, words.PEOPLE_ACTIONS)}"
    if draw < 0.6:
        return f"{_phrase(source, words.ANIMALS)} {_pick(source, words.ANIMAL_ACTIONS)}"
    if draw < 0.8:
        return f"{_phrase(source)} {_pick(source, words.RELATIONS)} {_phrase(source)}"
    return _phrase(source)


def _maybe(source: random.Random, chance: float, options: Sequence[str], before: str = " ") -> str:
    """One of the options with a chance, else nothing."""
    return before + _pick(source, options) if source.random() < chance else ""


def _where(source: random.Random) -> str:
    return _maybe(source, 0.6, words.PLACES) + _maybe(source, 0.25, words.LIGHTS)


def _tags(source: random.Random, most: int) -> str:
    picked = dict.fromkeys(_pick(source, words.TAGS) for _ in range(1 + int(source.random() * most)))
    return ", ".join(picked)


def _shot_of(source: random.Random) -> str:
    return f"{_with_article(_pick(source, words.SHOTS))} of {_phrase(source)}{_where(source)}"


def _shot_of_scene(source: random.Random) -> str:
    return f"{_with_article(_pick(source, words.SHOTS))} of {_scene(source)}{_where(source)}"


def _plain(source: random.Random) -> str:
    return f"{_phrase(source)}{_where(source)}"


def _plain_scene(source: random.Random) -> str:
    return f"{_scene(source)}{_where(source)}"


def _there_is(source: random.Random) -> str:
    return f"there is {_with_article(_noun(source))} {_pick(source, words.PLACES)}"


def _several(source: random.Random) -> str:
    return f"{_pick(source, words.COUNTS)} {_plural(_noun(source))}{_where(source)}"


def _picture_of_several(source: random.Random) -> str:
    return f"{_with_article(_pick(source, words.SHOTS))} of {_several(source)}"


def _painted(source: random.Random) -> str:
    whose = _maybe(source, 0.3, words.ARTISTS, " by ")
    return f"{_with_article(_pick(source, words.STYLES))} of {_scene(source)}{_where(source)}{whose}"


def _in_the_style(source: random.Random) -> str:
    return f"{_phrase(source)} in the style of {_pick(source, words.ARTISTS)}"


def _as_style(source: random.Random) -> str:
    return f"{_phrase(source)} as {_with_article(_pick(source, words.STYLES))}"


def _tagged(source: random.Random) -> str:
    return f"{_noun(source)}{_maybe(source, 0.5, words.PLACES, ', ')}, {_tags(source, 4)}"


def _long(source: random.Random) -> str:
    second = f" and {_phrase(source)} {_pick(source, words.PLACES)}" if source.random() < 0.5 else ""
    shot = _with_article(_pick(source, words.SHOTS))
    return f"{shot} of {_scene(source)}{second}{_where(source)}, {_pick(source, words.STYLES)}, {_tags(source, 5)}"


def _short(source: random.Random) -> str:
    return _noun(source)


def _owned(source: random.Random) -> str:
    return f"the {_pick(source, words.PEOPLE)}'s {_noun(source, _OBJECTS)}{_where(source)}"


def _landscape(source: random.Random) -> str:
    seen = _with_article(_noun(source, (*words.NATURE, *words.BUILDINGS)))
    return f"{seen} with {_phrase(source)} {_pick(source, words.LIGHTS)}"


def _that_is(source: random.Random) -> str:
    noun, quality = _pick(source, _ALL), _pick(source, (*words.QUALITIES, *words.COLOURS, *words.MATERIALS))
    return f"the {noun}{_maybe(source, 0.5, words.PLACES)} is {quality}"


def _made_of(source: random.Random) -> str:
    other = _plural(_pick(source, _OBJECTS))
    return f"{_phrase(source)} made of {other}{_where(source)}"


_FORMS: tuple[Callable[[random.Random], str], ...] = (
    _shot_of, _shot_of, _shot_of_scene, _shot_of_scene, _plain, _plain, _plain_scene, _plain_scene, _there_is, _several,
    _picture_of_several, _painted, _in_the_style, _as_style, _tagged, _tagged, _long, _short, _owned, _landscape,
    _that_is, _made_of,
)  # fmt: skip
"""Every form as often as it is listed."""
