"""Which subject it is: a probe of what stands in the left and in the right half of a picture.

The scorer's own probe names nouns, and to it a tuxedo cat is a cat like any other. This probe knows the subjects. It is
ridge regression on the scorer's embeddings of both halves of a picture, taught with true pictures only. The world of
`recipes.pocket` composes them, of the subjects, of the ordinary things of their nouns in the three styles of the
training, and of the other things of the prompts. The same seeds give the same probe; `benchmarks/probe_accuracy.py`
measures it.

It needs no mask, and it asks for one thing in each half: a drawing with both things in the middle does not pass.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.evaluation.models import pocket_scorer
from benchmarks.evaluation.plan import Plan, subject_named
from benchmarks.evaluation.prompts import Prompt
from perfusion.errors import RequestError
from perfusion.files import writing
from perfusion.pocket.vocabulary import GROUND
from recipes.pocket.sprites import TRAINING_STYLES, Atlas, held_out_atlas, training_atlas
from recipes.pocket.subjects import SUBJECTS
from recipes.pocket.world import Item, Scene, World

__all__ = [
    "Question",
    "SubjectProbe",
    "compose",
    "embed_halves",
    "pair_question",
    "questions_of",
    "second_thing_question",
]

Array = NDArray[np.float32]
Pictures = NDArray[np.uint8]

SEED, RIDGE = 1, 0.03
"""Of the pictures that are taught, and the penalty of the regression."""
BACKDROPS, BATCH = 6, 32


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the halves of a picture may show, and what they should. A thing is the name of a subject, or a noun, which
    stands for the ordinary things of that name."""

    things: tuple[str, ...]
    expected: tuple[str, str]
    """In the order of mention, which is also the order of regions from left to right."""
    places: tuple[str, ...]

    @property
    def ordinary(self) -> tuple[str, ...]:
        """The ordinary things in the places of the expected ones."""
        return tuple(_styles()[thing][0] if thing in _styles() else thing for thing in self.expected)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Those of the expected things that are subjects."""
        return tuple(thing for thing in self.expected if thing in _styles())


def second_thing_question(subject: str, prompt: Prompt) -> Question:
    """Is it the subject, or an ordinary thing of its noun, and is the second thing of the prompt beside it?"""
    expected = (subject, prompt.other)
    if prompt.text.index(prompt.other) < prompt.text.index("{}"):
        expected = (prompt.other, subject)
    things = (subject, subject_named(subject).noun, prompt.other)
    return Question(things=things, expected=expected, places=(prompt.place,))


def pair_question(pair: tuple[str, str], prompts: Sequence[Prompt]) -> Question:
    """Are both subjects there, or ordinary things of their nouns?"""
    nouns = (subject_named(name).noun for name in pair)
    return Question(things=(*pair, *nouns), expected=pair, places=tuple(prompt.place for prompt in prompts))


def questions_of(plan: Plan) -> tuple[list[Question], list[Question]]:
    """Every subject beside every second thing of the prompts, and every pair."""
    prompts = [prompt for prompt in plan.prompts if prompt.other]
    seconds = [second_thing_question(name, prompt) for name in plan.subjects for prompt in prompts]
    return seconds, [pair_question(pair, plan.pair_prompts) for pair in plan.pairs]


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectProbe:
    """True halves and what they show; each question is answered by a regression on those of its things."""

    embeddings: Array
    """(scenes, 2, dim): the scorer's, of the left and the right half."""
    things: NDArray[np.str_]
    """(scenes, 2)"""

    @classmethod
    def taught(cls, questions: Sequence[Question], scenes: int, seed: int = SEED) -> SubjectProbe:
        """A probe for some questions: about a minute of one core for all of a plan's."""
        things = tuple(dict.fromkeys(thing for question in questions for thing in question.things))
        places = tuple(dict.fromkeys(place for question in questions for place in question.places))
        pictures, labels = compose(things, places, scenes, seed)
        return cls(embeddings=embed_halves(pictures), things=labels)

    def __call__(self, pictures: Pictures, question: Question) -> list[tuple[str, str]]:
        """What is seen in the left and the right half of each picture, of the question's things.

        Args:
            pictures: (n, height, width, 3).

        Raises:
            RequestError: a thing of the question was not among those that were taught.
        """
        mean, weight = self._regression(question.things)
        numbers = ((embed_halves(pictures) - mean) @ weight).argmax(-1)
        return [(question.things[left], question.things[right]) for left, right in numbers.tolist()]

    def _regression(self, things: Sequence[str]) -> tuple[Array, Array]:
        """The mean of the embeddings, and weights (dim, things) for what is left of them without it."""
        unknown = sorted(set(things) - set(self.things.flat))
        if unknown:
            raise RequestError(f"The probe was not taught {unknown[0]!r}; teach it this question too.")
        chosen = np.isin(self.things, things)
        targets = (self.things[chosen][:, None] == np.array(things)).astype(np.float64)
        inputs = self.embeddings[chosen].astype(np.float64)
        mean = inputs.mean(0)
        inputs, targets = inputs - mean, targets - targets.mean(0)
        penalty = RIDGE * np.eye(len(mean))
        weight = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets)
        return mean.astype(np.float32), weight.astype(np.float32)

    def save(self, path: Path) -> None:
        """Write what it has learned from."""
        with writing(path) as file:
            np.savez_compressed(file, embeddings=self.embeddings, things=self.things)

    @classmethod
    def load(cls, path: Path) -> SubjectProbe:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(embeddings=arrays["embeddings"], things=arrays["things"])


def embed_halves(pictures: Pictures) -> Array:
    """The scorer's embeddings (n, 2, dim) of the left and the right half of pictures (n, height, width, 3)."""
    middle = pictures.shape[2] // 2
    halves = [
        Image.fromarray(half) for picture in pictures for half in (picture[:, :middle], picture[:, middle:])
    ]
    return pocket_scorer()(halves).embeddings.reshape(len(pictures), 2, -1)


def compose(
    things: Sequence[str], places: Sequence[str], count: int, seed: int
) -> tuple[Pictures, NDArray[np.str_]]:
    """True pictures of two different things side by side, and what stands left and right.

    Returns:
        Pictures (count, 128, 128, 3) and names (count, 2).
    """
    rng = random.Random(seed)
    names = [rng.sample(list(things), 2) for _ in range(count)]
    scenes = [_scene(rng, pair, places[at % len(places)]) for at, pair in enumerate(names)]
    world = _sprites()[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [world.render(scenes[start : start + BATCH])[0] for start in range(0, count, BATCH)]
    levels = (torch.cat(parts).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return levels, np.array(names)


def _scene(rng: random.Random, pair: Sequence[str], place: str) -> Scene:
    """Two things at the distance and of the size that the world's own pairs have."""
    sprites, (low, high) = _sprites()[1], GROUND[place]
    size, items = rng.uniform(0.36, 0.5), list[Item]()
    for thing, x in zip(pair, (rng.uniform(0.22, 0.3), rng.uniform(0.7, 0.78)), strict=True):
        own = size * rng.uniform(0.9, 1.1)
        base = min(0.97, max(rng.uniform(low, high), own + 0.02))
        sprite, angle, flip = rng.choice(sprites[thing]), rng.gauss(0, 4), rng.random() < 0.5
        items.append(Item(sprite=sprite, x=x, base=base, size=own, angle=angle, flip=flip))
    return Scene(caption="", place=place, backdrop=rng.randrange(BACKDROPS), items=tuple(items))


@functools.cache
def _sprites() -> tuple[World, dict[str, list[int]]]:
    """A world of all styles, and the numbers of every thing's sprites in it."""
    unseen, familiar = held_out_atlas(), training_atlas()
    atlas = Atlas(
        pixels=np.concatenate([unseen.pixels, familiar.pixels]), nouns=unseen.nouns + familiar.nouns,
        styles=unseen.styles + familiar.styles,
    )  # fmt: skip
    looks = list(zip(atlas.nouns, atlas.styles, strict=True))
    numbers = {name: [looks.index(look)] for name, look in _styles().items()}
    for number, (noun, style) in enumerate(looks):
        if style in TRAINING_STYLES:
            numbers.setdefault(noun, []).append(number)
    return World(atlas, size=128, backdrops=BACKDROPS, seed=3), numbers


@functools.cache
def _styles() -> dict[str, tuple[str, str]]:
    """Noun and style of every subject, by its name."""
    return {subject.name: (subject.noun, subject.style) for subject in SUBJECTS}
