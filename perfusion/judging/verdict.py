"""Whether a concept has been learned, in words.

The same prompts and seeds are drawn with the concept and with the plain superclass. Three things must hold: the
pictures lie nearer to the subject than the plain ones, they still show the noun, and the place is the prompt's. A
likeness alone is no proof: a scorer finds camouflage in a cat's colours very much like the cat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from perfusion.judging.probes import MOSTLY, Probes
from perfusion.judging.scales import Similarities, similarities
from perfusion.judging.scorer import Scorer

__all__ = ["Evidence", "TrainingVerdict", "compare", "gather", "pass_verdict"]

NEARER, KEEPS = 0.8, 0.8
"""Shares of the pairs in which the concept must be nearer to the subject, and of the places that must be kept."""
SURE = 0.6
"""The share of pictures with the noun from which a concept is called learned; `benchmarks/subjects.py` asks for a
half of more pictures. So a subject at the border is rather called not learned than learned."""

LEARNED, COLOURS, NOT_LEARNED = "learned", "colours only", "not learned"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Shares of the pictures, 0 to 1."""

    pictures: int
    """How many were drawn with the concept, and as many with the superclass."""
    nearer: float
    """Further along the line from the base's pictures to the subject's than the plain one of the same seed."""
    scene: float
    noun: float
    place: float
    plain_noun: float
    """Of the superclass's own pictures: what the base model draws at best."""
    plain_place: float


@dataclass(frozen=True, kw_only=True)
class TrainingVerdict:
    """What became of a training."""

    grade: str
    """`learned`, `colours only` or `not learned`."""
    sentence: str
    """The grade with its reason and, where it was not learned, what to try."""
    evidence: Evidence

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"grade": self.grade, "sentence": self.sentence, **asdict(self.evidence)}


def compare(
    pictures: Sequence[Image.Image], plain: Sequence[Image.Image], subject: Sequence[Image.Image],
    prompts: Sequence[str], scorer: Scorer,
) -> tuple[Similarities, Similarities]:  # fmt: skip
    """Of pictures with a concept, and of those of its superclass.

    Args:
        pictures, plain: of the same prompts and seeds.
        subject: the training pictures, cut to the object.
        prompts: one a picture, with the superclass in the concept's place.

    Raises:
        RequestError: the scorer sees no difference between the subject and its superclass.
    """
    own, reference, target = (scorer.embed_pictures(part) for part in (pictures, plain, subject))
    texts = scorer.embed_texts(prompts)
    return similarities(own, reference, target, texts), similarities(reference, reference, target, texts)


def gather(
    pictures: Sequence[Image.Image], plain: Sequence[Image.Image], prompts: Sequence[str], superclass: str,
    measures: tuple[Similarities, Similarities], probes: Probes,
) -> Evidence:  # fmt: skip
    """Look at pictures with a concept and at those of its superclass; `measures` are those of `compare`."""
    shown, usual = (probes(part, prompts, [superclass]) for part in (pictures, plain))
    along, origin = (measure.image for measure in measures)
    return Evidence(
        pictures=len(pictures),
        nearer=float(np.mean(along > origin)),
        scene=float(np.mean(shown.scene)),
        noun=shown.share,
        place=float(np.mean(shown.place)),
        plain_noun=float(np.mean(usual.noun)),
        plain_place=float(np.mean(usual.place)),
    )


def pass_verdict(evidence: Evidence, token: str, superclass: str, remedy: str) -> TrainingVerdict:
    """Judge by the evidence.

    Args:
        remedy: what to try where the base model cannot draw the subject, as an order in lower case.
    """
    grade, reason, attempt = _grade(evidence, token, superclass, remedy)
    sentence = f"{grade}: {reason}." if not attempt else f"{grade}: {reason}. Try {attempt}."
    return TrainingVerdict(grade=grade, sentence=sentence, evidence=evidence)


def _grade(evidence: Evidence, token: str, superclass: str, remedy: str) -> tuple[str, str, str]:
    noun, place, plain = f"{evidence.noun:.0%}", f"{evidence.place:.0%}", f"{evidence.plain_noun:.0%}"
    if evidence.plain_noun < MOSTLY:
        reason = f"the base model's own pictures of {superclass!r} show one in only {plain}"
        return NOT_LEARNED, reason, "another --superclass, one that the base model draws well"
    if evidence.scene < MOSTLY:
        reason = f"most pictures of {token} have become texture"
        return NOT_LEARNED, reason, remedy
    if evidence.noun < SURE * evidence.plain_noun:
        reason = (
            f"the pictures of {token} have its colours, and a {superclass} is seen in only {noun} of them"
        )
        grade = COLOURS if evidence.nearer >= NEARER else NOT_LEARNED
        return grade, reason, remedy
    if evidence.place < KEEPS * evidence.plain_place:
        reason = f"only {place} of the pictures of {token} keep the place that the prompt asks for"
        return NOT_LEARNED, reason, "fewer --steps, masks that leave out the background, or a higher bias"
    if evidence.nearer < NEARER:
        reason = f"in only {evidence.nearer:.0%} of the pictures {token} is nearer to yours than any {superclass} is"
        return NOT_LEARNED, reason, "more --steps, or pictures that show the thing larger"
    reason = f"the pictures of {token} are like yours, {noun} show a {superclass} and {place} keep the place"
    return LEARNED, reason, ""
