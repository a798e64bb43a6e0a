"""Which of the kept steps is the best: like the training pictures, and still what the prompt says.

Image similarity grows with training while text similarity falls. Each is brought to 0 … 1 over the steps, and the step
with the best harmonic mean of the two is taken (docs/method.md, section 5), unless chance could have made it so.

All steps are scored on the same prompts and seeds, so steps are compared picture by picture: what a prompt or a seed
makes hard it makes hard for all of them, and the mean difference has a much smaller error than either mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from perfusion.concept.concept_file import Concept
from perfusion.errors import TrainingError
from perfusion.judging.scales import harmonic_mean, prompt_cosines, rescale, standard_error, subject_cosines
from perfusion.judging.scorer import Scorer

__all__ = ["PROMPTS", "Draw", "Score", "Selection", "cut_to_mask", "score_snapshots", "select"]

Float64 = npt.NDArray[np.float64]
Draw = Callable[[Concept, Sequence[str], Sequence[int]], Sequence[Image.Image]]
"""Draws each of the prompts with the seed at the same place; the prompts name the concept by its token."""

PROMPTS = (
    "a photo of a {}", "a {} on the beach", "a {} in the snow", "a {} in a forest", "a photo of a {} on a table",
    "a painting of a {}",
)  # fmt: skip
"""What the steps are tried on when the caller names no prompts; the gap is for the concept's token."""
TOLD_APART = 3.0
"""Standard errors between the highest and the lowest step from which a similarity counts as different at all. Of six
to eight steps that are all the same, chance puts that much between two of them about once in ten times."""
BEATEN = 2.0
"""Standard errors by which a step must score more than the last one to be taken in its place."""
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
    why: str
    """The reason for the choice, in a sentence."""

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


def select(image: Mapping[int, Sequence[float]], text: Mapping[int, Sequence[float]]) -> Selection:
    """Choose a step by its two similarities, or the last one where chance could have chosen.

    A similarity whose highest and lowest step are less than `TOLD_APART` standard errors apart tells nothing and counts
    as one everywhere. The step with the best score is taken if it beats the last one by more than `BEATEN` standard
    errors; else the last is. A standard error is always that of the mean difference between the same pictures.

    Args:
        image: cosine of each picture with the training pictures, by step; the pictures in the same order at every step.
        text: cosine of each picture with its prompt, likewise.

    Raises:
        TrainingError: there are no steps, their pictures do not correspond, or a similarity is not a number.
    """
    steps = sorted(image)
    images, texts = _table("image", image, steps), _table("text", text, steps)
    if images.shape != texts.shape:
        raise TrainingError(
            f"{images.shape[1]} pictures a step have an image similarity and {texts.shape[1]} a text similarity, "
            "expected the same pictures."
        )
    shares = _rescaled(images), _rescaled(texts)
    likeness, faith = (share.mean(1) for share in shares)
    scores = np.array([harmonic_mean(a, b) for a, b in zip(likeness, faith, strict=True)])
    chosen, why = _choice(steps, scores, _influence(*shares))
    return Selection(
        scores=tuple(
            Score(
                step=step, image=float(images[at].mean()), text=float(texts[at].mean()), score=float(scores[at]),
                chosen=at == chosen,
            )
            for at, step in enumerate(steps)
        ),
        why=why,
    )  # fmt: skip


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
    """Draw with the concept of every step, score what comes, and choose.

    Args:
        snapshots: concepts by step.
        draw: draws prompts with a concept; the same prompts and seeds at every step.
        scorer: reads pictures and prompts.
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
        culprit = f"The validation prompt {gapless[0]!r}" if gapless else "An empty list"
        raise TrainingError(
            f"{culprit} was given, expected pictures, seeds and prompts with a gap, 'a {{}} on the beach'."
        )
    subject = scorer.embed_pictures(pictures)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    image, text = dict[int, list[float]](), dict[int, list[float]]()
    for done, (step, concept) in enumerate(sorted(snapshots.items()), 1):
        named = [prompt.replace("{}", concept.token) for prompt, _ in pairs]
        drawings = draw(concept, named, [seed for _, seed in pairs])
        if len(drawings) != len(pairs):
            raise TrainingError(
                f"{len(drawings)} pictures were drawn for {len(pairs)} prompts, expected as many."
            )
        embeddings = scorer.embed_pictures(drawings)
        plain = scorer.embed_texts([prompt.replace("{}", concept.superclass) for prompt in prompts])
        image[step] = subject_cosines(embeddings, subject).tolist()
        text[step] = prompt_cosines(embeddings, np.repeat(plain, len(seeds), axis=0)).tolist()
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


def _table(name: str, values: Mapping[int, Sequence[float]], steps: Sequence[int]) -> Float64:
    """(steps, pictures), checked."""
    counts = {len(row) for row in values.values()}
    if not steps or sorted(values) != list(steps) or len(counts) != 1 or 0 in counts:
        raise TrainingError(
            f"The {name} similarities are of {len(values)} steps with {sorted(counts)} pictures, expected "
            f"{len(steps) or 'one or more'} steps with the same pictures each. Keep concepts while training "
            "(--save-every)."
        )
    table = np.array([values[step] for step in steps], np.float64)
    broken = np.argwhere(~np.isfinite(table))
    if len(broken):
        row, column = broken[0]
        raise TrainingError(
            f"The {name} similarity of step {steps[row]} is {table[row, column]}, expected a number. The scorer is "
            "damaged; use another."
        )
    return table


def _rescaled(table: Float64) -> Float64:
    """Similarities (steps, pictures), 0 at the lowest step's mean and 1 at the highest's; all ones where chance could
    have made the difference."""
    means = table.mean(1)
    low, high = table[int(means.argmin())], table[int(means.argmax())]
    return rescale(table, low, high, max(1e-9, TOLD_APART * standard_error(high - low)))


def _influence(images: Float64, texts: Float64) -> Float64:
    """What each picture adds to the score of its step, (steps, pictures): the harmonic mean's slopes at the step's
    means times the picture's own two values, from which the error of a score follows (the delta method)."""
    first, second = images.mean(1, keepdims=True), texts.mean(1, keepdims=True)
    both = np.maximum(first + second, 1e-12) ** 2
    slopes = np.where(first + second > 1e-9, 2 * np.stack([second**2, first**2]) / both, 0.5)
    return np.asarray(slopes[0] * images + slopes[1] * texts)


def _choice(steps: Sequence[int], scores: Float64, influence: Float64) -> tuple[int, str]:
    """Where the chosen step is, and the reason."""
    last = len(steps) - 1
    best = last - int(np.round(scores[::-1], 9).argmax())  # of equals the later
    if np.ptp(scores) <= 1e-9:
        return last, "the snapshots differ by no more than chance, so the last one is taken"
    if best == last:
        return last, f"the last snapshot, of step {steps[last]}, scores best"
    gain, error = float(scores[best] - scores[last]), standard_error(influence[best] - influence[last])
    reason = f"the snapshot of step {steps[best]} scores {gain:.2f} ± {error:.2f} more than the last"
    if gain <= BEATEN * error:
        return last, f"{reason}, which chance may have done, so the last one is taken"
    return best, f"{reason}, and is taken"
