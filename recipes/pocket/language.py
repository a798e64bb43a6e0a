"""What the second edition's captions say: counts to five, sizes, places of things, and the words of all of it.

Nouns, colours, places and their phrases are the first edition's (`perfusion/pocket/vocabulary.py`).
"""

from __future__ import annotations

from perfusion.pocket import vocabulary
from perfusion.pocket.vocabulary import article

__all__ = ["COUNTS", "PATTERNS", "SIZES", "listing", "place_phrases", "relation_phrases", "words"]

COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}

SIZES = {"small": (0.28, 0.42), "large": (0.80, 0.92)}
"""Word → how much of the picture an object alone in it fills."""

PATTERNS = (*vocabulary.PATTERNS, "patched", "checked")
"""Looks that captions name."""

SPARE = (
    "zero six seven eight nine ten tiny huge little tall wide beside under over inside between top middle centre front "
    "back facing flying running sleeping happy sad angry face head eyes body wearing holding bright dark light wooden"
)
"""Words without a use yet: a vocabulary cannot grow once a model is trained on it."""


def relation_phrases(relation: str, first: str, second: str) -> tuple[str, ...]:
    """The ways to say how the first of two things stands to the second; both come with their articles.

    `beside` and `sides` have the first thing on the left; `sides` always says so.

    >>> relation_phrases("behind", "a tree", "an owl")
    ('a tree behind an owl', 'an owl in front of a tree')
    """
    sides = (
        f"{first} to the left of {second}",
        f"{second} to the right of {first}",
        f"{first} on the left and {second} on the right",
        f"{second} on the right and {first} on the left",
    )
    return {
        "beside": (
            f"{first} and {second}",
            f"{second} and {first}",
            f"{first} next to {second}",
            f"{second} next to {first}",
            *sides,
        ),
        "sides": sides,
        "behind": (f"{first} behind {second}", f"{second} in front of {first}"),
        "on": (f"{first} on {second}", f"{first} on top of {second}"),
        "wearing": (f"{first} with {second}", f"{first} wearing {second}"),
        "under": (f"{first} under {second}", f"{first} below {second}"),
    }[relation]


def place_phrases(place: str) -> tuple[str, ...]:
    """The phrases for a painted scene, or for a colour that stands for a plain background.

    >>> place_phrases("orange")
    ('on an orange background', 'on orange')
    """
    if place in vocabulary.PLACES:
        return vocabulary.PLACES[place]
    return f"on {article(place)} background", f"on {place}"


def listing(phrases: list[str]) -> str:
    """Three or more things in a row.

    >>> listing(["a cat", "a dog", "a car"])
    'a cat, a dog and a car'
    """
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def words() -> list[str]:
    """Every word of the second edition's captions, those of the first included, sorted."""
    relations = [
        phrase
        for relation in ("beside", "behind", "on", "wearing", "under")
        for phrase in relation_phrases(relation, article("cat"), article("owl"))
    ]
    text = [*vocabulary.words(), *COUNTS.values(), *SIZES, *PATTERNS, *relations, "between", SPARE]
    return sorted({word for phrase in text for word in phrase.replace("-", " ").split()})
