"""Which of the kept steps is the best: like the training pictures, and still what the prompt says.

Image similarity grows with training while text similarity falls. Each is brought to 0 … 1 over the steps, and the step
with the best harmonic mean of the two is taken (docs/method.md, section 5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from perfusion.concept import Concept
from perfusion.errors import TrainingError
from perfusion.scoring import Scorer

__all__ = ["PROMPTS", "Draw", "Score", "Selection", "cut_to_mask", "score_snapshots", "select"]

Draw = Callable[[Concept, Sequence[str], Sequence[int]], Sequence[Image.Image]]
"""Draws each of the prompts with the seed at the same place; the prompts name the concept by its token."""

PROMPTS = ("a photo of a {}", "a {} on the beach", "a {} in the snow", "a painting of a {}")
"""What the steps are tried on when the caller names no prompts; the gap is for the concept's token."""
MARGIN = 0.1
"""Of the object's longer side, left around it when a picture is cut to its mask."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One step: mean cosines with the training pictures and with the prompts, and what they make of it."""

    step: int
    image: float
    text: float
    score: float
    """Harmonic mean of the two, each brought to 0 … 1 over the steps."""
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The scores of all steps, in order; exactly one is chosen."""

    scores: tuple[Score, ...]

    @property
    def best(self) -> Score:
        """The chosen one."""
        return next(score for score in self.scores if score.chosen)

    def table(self) -> str:
        """For people: one line a step, a star at the chosen one."""
        lines = ["   step   image    text   score"]
        lines += [
            f"{entry.step:7d}  {entry.image:6.3f}  {entry.text:6.3f}  {entry.score:6.3f}{'  *' * entry.chosen}"
            for entry in self.scores
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """For programs: a list of objects with the fields of `Score`."""
        return json.dumps([asdict(score) for score in self.scores])

    @classmethod
    def from_json(cls, text: str) -> Selection:
        """What `to_json` wrote."""
        return cls(scores=tuple(Score(**entry) for entry in json.loads(text)))


def select(image: Mapping[int, float], text: Mapping[int, float]) -> Selection:
    """Choose a step by its two similarities.

    A similarity that is the same at all steps tells nothing and counts as one everywhere. Among steps of equal score,
    such as two of which each is worst in something, the one with the greater harmonic mean of the cosines themselves
    is taken; if they are equal too, the earlier: it is less tied to the training pictures.

    Args:
        image: mean cosine with the training pictures, by step.
        text: mean cosine with the prompts, by step.

    Raises:
        TrainingError: there are no steps, or a similarity is not a number.
    """
    steps = sorted(image)
    if not steps or sorted(text) != steps:
        raise TrainingError(
            f"{len(image)} steps have an image similarity and {len(text)} a text similarity, expected the same steps, "
            "at least one; keep concepts while training (--save-every)"
        )
    for name, values in (("image", image), ("text", text)):
        broken = [step for step in steps if not np.isfinite(values[step])]
        if broken:
            raise TrainingError(
                f"the {name} similarity of step {broken[0]} is {values[broken[0]]}, expected a number; the scorer is "
                "damaged, use another"
            )
    images, texts = _normalised([image[step] for step in steps]), _normalised([text[step] for step in steps])
    scores = [_harmonic(a, b) for a, b in zip(images, texts, strict=True)]
    # rounded: equal scores come with different last bits
    ranks = [
        (round(score, 9), round(_harmonic(image[step], text[step]), 9), -step)
        for step, score in zip(steps, scores, strict=True)
    ]
    chosen = ranks.index(max(ranks))
    return Selection(
        scores=tuple(
            Score(
                step=step, image=float(image[step]), text=float(text[step]), score=score, chosen=at == chosen
            )
            for at, (step, score) in enumerate(zip(steps, scores, strict=True))
        )
    )


def score_snapshots(
    snapshots: Mapping[int, Concept],
    draw: Draw,
    scorer: Scorer,
    pictures: Sequence[Image.Image],
    *,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0, 1),
    report: Callable[[int, int], None] | None = None,
) -> Selection:
    """Draw with the concept of every step, judge what comes, and choose.

    Args:
        snapshots: concepts by step.
        draw: draws prompts with a concept; the same prompts and seeds at every step.
        scorer: judges pictures and prompts.
        pictures: the training pictures, or the parts of them that show the object (`cut_to_mask`).
        prompts: with a gap for the concept, "a {} on the beach". The scorer reads the superclass in its place, since
            it has never heard of the concept.
        seeds: each prompt is drawn with each of them.
        report: called after every step with how many are done and how many there are.

    Raises:
        TrainingError: nothing to choose from, a prompt without a gap, or `draw` gave too few pictures.
    """
    gapless = [prompt for prompt in prompts if "{}" not in prompt]
    if gapless or not prompts or not seeds or not pictures:
        found = f"the validation prompt {gapless[0]!r}" if gapless else "an empty list"
        raise TrainingError(
            f"{found} was given, expected pictures, seeds and prompts with a gap, 'a {{}} on the beach'"
        )
    targets = scorer.embed_pictures(pictures)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    image, text = {}, {}
    for done, (step, concept) in enumerate(sorted(snapshots.items()), 1):
        asked = [prompt.replace("{}", concept.token) for prompt, _ in pairs]
        drawn = draw(concept, asked, [seed for _, seed in pairs])
        if len(drawn) != len(pairs):
            raise TrainingError(
                f"{len(drawn)} pictures were drawn for {len(pairs)} prompts, expected as many"
            )
        found_pictures = scorer.embed_pictures(drawn)
        read = scorer.embed_texts([prompt.replace("{}", concept.superclass) for prompt in prompts])
        wanted = np.repeat(read, len(seeds), axis=0)
        image[step] = float((found_pictures @ targets.T).mean())
        text[step] = float((found_pictures * wanted).sum(-1).mean())
        if report:
            report(done, len(snapshots))
    return select(image, text)


def cut_to_mask(picture: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The part of a training picture that shows the object, with a little around it: where it stood is not its
    likeness. The whole picture without a mask, or with an empty one.

    Args:
        picture: any size.
        mask: of the same size, white where the object is.
    """
    box = mask.convert("L").point([255 * (level > 127) for level in range(256)]).getbbox() if mask else None
    if box is None:
        return picture
    left, top, right, bottom = box
    margin = round(MARGIN * max(right - left, bottom - top))
    return picture.crop(
        (
            max(0, left - margin),
            max(0, top - margin),
            min(picture.width, right + margin),
            min(picture.height, bottom + margin),
        )
    )


def _normalised(values: Sequence[float]) -> list[float]:
    """Brought to 0 … 1; all ones when they are all the same."""
    low, high = min(values), max(values)
    if high - low <= 1e-9:
        return [1.0] * len(values)
    return [(value - low) / (high - low) for value in values]


def _harmonic(first: float, second: float) -> float:
    """2ab / (a + b) of two numbers from zero up; less than zero counts as zero."""
    first, second = max(0.0, first), max(0.0, second)
    return 2 * first * second / (first + second) if first + second > 0 else 0.0
