"""Probes: what pictures show, for telling a picture of the thing from texture in its colours.

The embedded model's world is synthetic, so a classifier knows its nouns and places. Of other models a scorer is asked:
a picture shows the noun if the noun's sentence is nearer to it than any sentence about texture or about nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perfusion.embedded import is_embedded
from perfusion.judging.pocket_scorer import SCORER_FILE, PocketScorer
from perfusion.judging.scorer import Scorer
from perfusion.pocket.vocabulary import NOUNS, PLACES, plural

__all__ = ["MOSTLY", "PocketProbes", "Probes", "ScorerProbes", "Shown", "open_probes"]

TEXTURES = ("an abstract texture", "a camouflage pattern", "a blurred pattern of colours", "noise")
"""What pictures have become that show nothing, in a scorer's words."""
NOTHING = "an empty place with nothing in it"
MOSTLY = 0.5
"""The share of pictures from which they count as pictures of the noun, and of scenes."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What the probes see in pictures, (pictures,) each."""

    scene: Flags
    """A scene, and no texture or noise."""
    noun: Flags
    """The noun that the concept is a kind of."""
    place: Flags
    """The place that the prompt asks for; true where it names none."""

    @property
    def share(self) -> float:
        """Of the pictures that show the noun in a scene; below `MOSTLY` most are texture or something else."""
        return float(np.mean(self.scene & self.noun))


class Probes(Protocol):
    """Look at pictures and say what is in them."""

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], nouns: Sequence[str]
    ) -> Shown:
        """Look at pictures.

        Args:
            pictures: of any size.
            prompts: what each should show, in the base model's own words: superclasses in the concepts' places.
            nouns: the superclasses; a picture shows those of them that its prompt names.
        """
        ...


class PocketProbes:
    """The classifier that ships with the embedded model.

    Args:
        folder: of a scorer with its probes; None: the one that ships.

    Raises:
        ModelError, DeviceError: as `PocketScorer`.
    """

    def __init__(self, folder: Path | None = None, *, threads: int | None = None) -> None:
        self._scorer = PocketScorer(folder, threads=threads)

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], nouns: Sequence[str]
    ) -> Shown:
        """See `Probes`. A picture shows the nouns if they are among the likeliest, as many as its prompt names."""
        answers = self._scorer(pictures)
        noun, place = [], []
        for row, prompt in enumerate(prompts):
            named = _nouns_in(prompt)
            likeliest = answers.best_nouns(row, max(1, len(named)))
            noun.append(all(word.lower() in likeliest for word in nouns if word.lower() in named))
            expected = _place_in(prompt)
            place.append(expected is None or answers.place[row] == expected)
        return Shown(scene=answers.scene > 0, noun=np.array(noun, bool), place=np.array(place, bool))


class ScorerProbes:
    """Any scorer, asked in sentences. What it says of textures is as good as it is."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], nouns: Sequence[str]
    ) -> Shown:
        """See `Probes`. A place is kept if no other prompt of the batch is nearer to the picture than its own."""
        images = self._scorer.embed_pictures(pictures).astype(np.float64)
        texture = (images @ self._scorer.embed_texts(TEXTURES).T).max(1)
        empty = images @ self._scorer.embed_texts([NOTHING])[0]
        noun = np.ones(len(pictures), bool)
        for word in nouns:
            named = np.array([_names(prompt, word) for prompt in prompts])
            likeness = images @ self._scorer.embed_texts([f"a photo of a {word}"])[0]
            noun &= ~named | (likeness > np.maximum(texture, empty))
        unique = list(dict.fromkeys(prompts))
        cosines = images @ self._scorer.embed_texts(unique).T
        own = cosines[np.arange(len(prompts)), [unique.index(prompt) for prompt in prompts]]
        return Shown(scene=own > texture, noun=noun, place=own >= cosines.max(1))


def open_probes(folder: Path, scorer: Scorer, family: str) -> Probes:
    """The probes that go with a scorer: the embedded model's own for its pictures, else the scorer itself.

    Args:
        folder: of the scorer.
        family: of the base model that draws.
    """
    knows_world = is_embedded(family) and (folder / SCORER_FILE).is_file()
    return PocketProbes(folder) if knows_world else ScorerProbes(scorer)


def _nouns_in(prompt: str) -> list[str]:
    """The embedded model's nouns that a prompt names."""
    return [noun for noun in NOUNS if _names(prompt, noun) or _names(prompt, plural(noun))]


def _place_in(prompt: str) -> str | None:
    """The embedded model's place that a prompt names."""
    matches = (
        place for place, phrases in PLACES.items() if any(_names(prompt, phrase) for phrase in phrases)
    )
    return next(matches, None)


def _names(prompt: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, re.IGNORECASE) is not None
