"""Whether a concept has been learned, in words.

The same prompts and seeds are drawn with the concept and with the plain superclass. Three things must hold: the
pictures lie nearer to the subject than the plain ones, they still show the noun, and the place is the prompt's. A
likeness alone is no proof: a scorer finds camouflage in a cat's colours very much like the cat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from perfusion.judging.probes import MOSTLY, Probes
from perfusion.judging.scales import Similarities, similarities
from perfusion.judging.scorer import Scorer
from perfusion.pocket.vocabulary import article

__all__ = ["Evidence", "Remedy", "TrainingVerdict", "compare", "gather", "pass_verdict", "tell"]

NEARER, KEEPS = 0.7, 0.8
"""Shares of the pairs in which the concept must be nearer to the subject, and of the places that must be kept. Of 24
pairs, chance alone brings 0.7 nearer in one training of thirty; in more of them where several strengths are tried."""
SURE = 0.53
"""The share of pictures with the noun from which a concept is called learned, a little more than the half that
`benchmarks/subjects.py` asks for. Of 36 trainings on the first edition of the embedded model none lay between 0.34
and 0.53 (`benchmarks/verdicts.py`)."""

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


@dataclass(frozen=True)
class Remedy:
    """Something to try."""

    words: str
    option: str = ""
    """Of perfusion-train that does it. Who reads elsewhere, such as in the studio, has other switches, or none."""


@dataclass(frozen=True, kw_only=True)
class TrainingVerdict:
    """What became of a training."""

    grade: str
    """`learned`, `colours only` or `not learned`."""
    reason: str
    remedies: tuple[Remedy, ...]
    """What to try where it was not learned."""
    evidence: Evidence

    @property
    def sentence(self) -> str:
        """The grade with its reason and what to try, in words that are true wherever they are read."""
        return tell(self.grade, self.reason, self.remedies)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {"grade": self.grade, "sentence": self.sentence, "reason": self.reason}
        return {**facts, "remedies": [asdict(remedy) for remedy in self.remedies], **asdict(self.evidence)}


def tell(
    grade: str, reason: str, remedies: Sequence[Remedy], switches: Mapping[str, str] | None = None
) -> str:
    """A verdict in a sentence or two.

    Args:
        switches: for options of perfusion-train, how the same is called where the sentence is read.
    """
    names = switches or {}
    words = [
        f"{remedy.words} ({names[remedy.option]})" if remedy.option in names else remedy.words
        for remedy in remedies
    ]
    listed = ", or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
    return f"{grade}: {reason}." + (f" Try {listed}." if listed else "")


def compare(
    pictures: Sequence[Image.Image], plain: Sequence[Image.Image], subject: Sequence[Image.Image],
    prompts: Sequence[str], scorer: Scorer,
) -> tuple[Similarities, Similarities]:  # fmt: skip
    """Of pictures with a concept, and of those of its superclass.

    Args:
        pictures, plain: of the same prompts and seeds.
        subject: the training pictures, whole and cut to the object. The crops alone would count against a thing that
            the prompts' pictures show small.
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


def pass_verdict(
    evidence: Evidence, token: str, superclass: str, remedies: Sequence[Remedy]
) -> TrainingVerdict:
    """Judge by the evidence.

    Args:
        remedies: what to try where the base model cannot draw the subject.
    """
    grade, reason, attempts = _grade(evidence, token, superclass, remedies)
    return TrainingVerdict(grade=grade, reason=reason, remedies=tuple(attempts), evidence=evidence)


def _grade(
    evidence: Evidence, token: str, superclass: str, remedies: Sequence[Remedy]
) -> tuple[str, str, Sequence[Remedy]]:
    noun, place, plain = f"{evidence.noun:.0%}", f"{evidence.place:.0%}", f"{evidence.plain_noun:.0%}"
    if evidence.plain_noun < MOSTLY:
        reason = f"the base model's own pictures of {superclass!r} show one in only {plain}"
        return (
            NOT_LEARNED,
            reason,
            [Remedy("another superclass, one that the base model draws well", "--superclass")],
        )
    if evidence.scene < MOSTLY:
        return NOT_LEARNED, f"most pictures of {token} have become texture", remedies
    if evidence.noun < SURE * evidence.plain_noun:
        reason = f"the pictures of {token} have its colours, and {article(superclass)} is seen in only {noun} of them"
        return COLOURS if evidence.nearer >= NEARER else NOT_LEARNED, reason, remedies
    if evidence.place < KEEPS * evidence.plain_place:
        reason = f"only {place} of the pictures of {token} keep the place that the prompt asks for"
        return NOT_LEARNED, reason, _OVERFITTED
    if evidence.nearer < NEARER:
        reason = f"in only {evidence.nearer:.0%} of the pictures {token} is nearer to yours than any {superclass} is"
        return NOT_LEARNED, reason, _UNDERFITTED
    reason = f"the pictures of {token} are like yours, {noun} show {article(superclass)} and {place} keep the place"
    return LEARNED, reason, ()


_OVERFITTED = (
    Remedy("fewer steps", "--steps"), Remedy("masks that leave out the background", "--masks"),
    Remedy("a higher bias when you draw"),
)  # fmt: skip
_UNDERFITTED = (Remedy("more steps", "--steps"), Remedy("pictures that show the thing larger"))
