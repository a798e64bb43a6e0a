"""What the second edition never sees together: one noun-place pair in ten and one pair of nouns in ten.

A model that draws them composes; the choice is a hash of the words, so that it is the same everywhere and for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations

from perfusion.pocket.vocabulary import NOUNS, PLACES

__all__ = ["allowed", "is_withheld", "withheld_noun_pairs", "withheld_noun_places"]

ONE_IN = 10


def is_withheld(*pair: str) -> bool:
    """Whether a pair of words, in any order, never appears in the training."""
    digest = hashlib.sha256("|".join(sorted(pair)).encode()).digest()
    return int.from_bytes(digest[:8]) % ONE_IN == 0


def allowed(nouns: Sequence[str], place: str) -> bool:
    """Whether a scene of these nouns in this place may be trained on. Plain backgrounds go with every noun."""
    in_place = any(is_withheld(noun, place) for noun in nouns) if place in PLACES else False
    return not in_place and not any(is_withheld(*pair) for pair in combinations(sorted(set(nouns)), 2))


def withheld_noun_places() -> list[tuple[str, str]]:
    """The withheld pairs of a noun and a painted place."""
    return [(noun, place) for noun in NOUNS for place in PLACES if is_withheld(noun, place)]


def withheld_noun_pairs() -> list[tuple[str, str]]:
    """The withheld pairs of nouns."""
    return [pair for pair in combinations(NOUNS, 2) if is_withheld(*pair)]
