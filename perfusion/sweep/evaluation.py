"""How well concepts are drawn: likeness to the subject, faith to the prompt, drift of what names none, and pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from perfusion.concept.concept_file import Concept
from perfusion.contact_sheet import contact_sheet
from perfusion.judging.probes import Probes
from perfusion.judging.scorer import Scorer
from perfusion.judging.verdict import Remedy, TrainingVerdict, compare, gather, pass_verdict

if TYPE_CHECKING:
    from perfusion.runtime import Runtime

__all__ = ["PROMPTS", "Evaluator", "PairScores", "SubjectScores"]

PROMPTS = (
    "a photo of a {} on a beach", "a photo of a {} in the snow", "a photo of a {} on a wooden table",
    "a photo of a {} in a forest", "a photo of a {} on a street", "a photo of a {} at night",
)  # fmt: skip
"""Places that every base model knows; the concept's token, or its superclass, stands in the gap."""
PAIR = "a photo of a {} and a {}"
REMEDIES = (
    Remedy("masks of the thing alone", "--masks"), Remedy("another superclass", "--superclass"),
    Remedy("more pictures"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectScores:
    """Of one concept, with its own settings."""

    name: str
    token: str
    likeness: float
    """From the base's pictures of the superclass (0) to the subject's own (1), the mean of all pictures."""
    prompt: float
    """The mean cosine of the pictures with their prompts, the superclass in the concept's place."""
    drift: float
    """How far a picture that names no concept moves by loading this one: the mean difference of a pixel, 0 to 1."""
    verdict: TrainingVerdict
    sheet: Image.Image
    """A row with the concept, and below it the same seeds with its superclass."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        numbers = {name: round(float(getattr(self, name)), 4) for name in ("likeness", "prompt", "drift")}
        return {"name": self.name, "token": self.token, **numbers, "verdict": self.verdict.as_dict()}


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores:
    """Of two concepts in one prompt."""

    tokens: tuple[str, str]
    both: float
    """The share of the pictures in which both superclasses are seen."""
    sheet: Image.Image

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"tokens": list(self.tokens), "both": round(self.both, 4)}


class Evaluator:
    """Draws with a runtime, and scores.

    Args:
        runtime: opened; concepts are loaded into it and taken out again.
        seeds: of each prompt.
        options: of every drawing, see `Runtime.generate`.
        scorer, probes: what looks at the pictures.
        prompts: with a gap for the concept.
    """

    def __init__(
        self, runtime: Runtime, scorer: Scorer, probes: Probes, *, seeds: Sequence[int],
        options: Mapping[str, Any] | None = None, prompts: Sequence[str] = PROMPTS,
    ) -> None:  # fmt: skip
        self._runtime, self._scorer, self._probes = runtime, scorer, probes
        self._seeds, self._options, self._prompts = tuple(seeds), dict(options or {}), tuple(prompts)

    def subject(self, name: str, concept: Concept, pictures: Sequence[Image.Image]) -> SubjectScores:
        """Score one concept.

        Args:
            pictures: of the subject, cut to the object.

        Raises:
            RequestError: the scorer sees no difference between the subject and its superclass.
        """
        plain_prompts = self._spelled(concept.superclass)
        plain = self._drawn(plain_prompts)
        self._runtime.load_concept(concept)
        try:
            own = self._drawn(self._spelled(concept.token))
            again = self._drawn(plain_prompts[: len(self._seeds)])
        finally:
            self._runtime.unload_concept(concept.token)
        measures = compare(own, plain, pictures, plain_prompts, self._scorer)
        evidence = gather(own, plain, plain_prompts, concept.superclass, measures, self._probes)
        first = len(self._seeds)
        columns = own[::first], plain[::first]
        captions = [self._spelled(word)[::first] for word in (concept.token, concept.superclass)]
        return SubjectScores(
            name=name,
            token=concept.token,
            likeness=float(measures[0].image.mean()),
            prompt=float(measures[0].text.mean()),
            drift=_difference(again, plain[:first]),
            verdict=pass_verdict(evidence, concept.token, concept.superclass, REMEDIES),
            sheet=contact_sheet(
                [*columns[0], *columns[1]], [*captions[0], *captions[1]], columns=len(columns[0])
            ),
        )

    def pair(self, first: Concept, second: Concept) -> PairScores:
        """Score two concepts in one prompt; their tokens must differ."""
        concepts = (first, second)
        for concept in concepts:
            self._runtime.load_concept(concept)
        try:
            prompt = PAIR.format(*(concept.token for concept in concepts))
            pictures = self._drawn([prompt] * len(self._seeds))
        finally:
            for concept in concepts:
                if concept.token in self._runtime.concepts:
                    self._runtime.unload_concept(concept.token)
        nouns = [concept.superclass for concept in concepts]
        shown = self._probes(pictures, [PAIR.format(*nouns)] * len(pictures), nouns)
        return PairScores(
            tokens=(first.token, second.token),
            both=float(np.mean(shown.noun)),
            sheet=contact_sheet(pictures, [prompt] * len(pictures), columns=len(pictures)),
        )

    def _spelled(self, word: str) -> list[str]:
        """Every prompt with a word in its gap, once for each seed."""
        return [prompt.replace("{}", word) for prompt in self._prompts for _ in self._seeds]

    def _drawn(self, prompts: Sequence[str]) -> list[Image.Image]:
        """A picture a prompt, the seeds in turn."""
        seeds = [self._seeds[at % len(self._seeds)] for at in range(len(prompts))]
        return [
            self._runtime.generate(prompt, seed=seed, **self._options)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


def _difference(pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    pairs = zip(pictures, others, strict=True)
    levels = [np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean() for a, b in pairs]
    return float(np.mean(levels) / 255)
