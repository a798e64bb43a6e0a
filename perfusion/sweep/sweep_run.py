"""A whole sweep: draw every prompt and seed with every setting, and score what comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from perfusion.errors import RequestError
from perfusion.judging.probes import Probes
from perfusion.judging.scales import Similarities, similarities
from perfusion.judging.scorer import Scorer
from perfusion.sweep.drawing import Drawings, Job
from perfusion.sweep.front import Point, points_of
from perfusion.sweep.ranges import Setting, varied
from perfusion.sweep.sheet import grid

__all__ = ["Sweep", "sweep"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """What was drawn and, with a scorer, what it is worth."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...]
    points: tuple[Point, ...]
    """One a setting; empty without a scorer."""
    drawings: Drawings

    @property
    def recommended(self) -> Point | None:
        """The point to take when nothing else is known."""
        return next((point for point in self.points if point.recommended), None)

    def grid(self) -> Image.Image:
        """A row for each prompt and seed, a column for each setting; the first column is the base model's."""
        fields = varied(self.settings)
        rows = []
        for prompt in self.prompts:
            for seed in self.seeds:
                jobs = [Job(prompt=prompt, seed=seed, setting=setting) for setting in (None, *self.settings)]
                pictures = [self.drawings.picture(job) for job in jobs]
                rows.append((f"{prompt}, seed {seed}", pictures))
        best = self.recommended
        marked = None if best is None else 1 + self.settings.index(best.setting)
        return grid(
            rows, ["superclass", *(setting.label(fields) for setting in self.settings)], marked=marked
        )


def sweep(
    drawings: Drawings,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[Setting],
    scorer: Scorer | None = None,
    probes: Probes | None = None,
    subjects: Sequence[Sequence[Image.Image]] = (),
    report: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Draw what is missing and score everything.

    Args:
        drawings: where the pictures are kept, with the runtime that draws them.
        prompts: each names at least one concept.
        settings: what is compared.
        scorer: None: nothing is scored.
        probes: tell pictures of the superclass from texture, which is not recommended; None: nobody looks.
        subjects: for the scorer, pictures of each concept's subject; more than one list for several concepts.
        report: called with the pictures that are there, and how many there will be.

    Raises:
        RequestError: nothing to draw, or pictures that cannot be drawn or scored.
    """
    if not prompts or not seeds or not settings:
        raise RequestError(
            "There is no prompt, no seed or no setting to sweep over; give at least one of each."
        )
    for prompt in prompts:
        drawings.check(prompt)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    jobs = [Job(prompt=p, seed=s, setting=setting) for setting in (None, *settings) for p, s in pairs]
    total = len(set(jobs))
    drawings.draw(jobs, None if report is None else lambda done: report(done, total))
    pictures_alone = Sweep(
        prompts=tuple(prompts), seeds=tuple(seeds), settings=tuple(settings), points=(), drawings=drawings
    )
    if scorer is None or not subjects:
        return pictures_alone
    measured = _measured(drawings, pairs, settings, scorer, subjects)
    shown = None if probes is None else _shown(drawings, pairs, settings, probes)
    return replace(pictures_alone, points=points_of(measured, shown))


def _measured(
    drawings: Drawings, pairs: Sequence[tuple[str, int]], settings: Sequence[Setting], scorer: Scorer,
    subjects: Sequence[Sequence[Image.Image]],
) -> dict[Setting, Similarities]:  # fmt: skip
    """Similarities by setting; over several subjects, the mean of each picture's."""

    def embedded(setting: Setting | None) -> np.ndarray:
        jobs = [Job(prompt=prompt, seed=seed, setting=setting) for prompt, seed in pairs]
        return scorer.embed_pictures([drawings.picture(job) for job in jobs])

    texts = scorer.embed_texts([drawings.plain(prompt) for prompt, _ in pairs])
    plain, targets = embedded(None), [scorer.embed_pictures(subject) for subject in subjects]
    measured = {}
    for setting in settings:
        pictures = embedded(setting)
        by_subject = [similarities(pictures, plain, target, texts) for target in targets]
        measured[setting] = Similarities(
            image=np.mean([subject.image for subject in by_subject], 0),
            text=by_subject[0].text,
            cosine=np.mean([subject.cosine for subject in by_subject], 0),
        )
    return measured


def _shown(
    drawings: Drawings, pairs: Sequence[tuple[str, int]], settings: Sequence[Setting], probes: Probes
) -> dict[Setting, float]:
    """The share of each setting's pictures that show the superclasses in a scene."""
    plain = [drawings.plain(prompt) for prompt, _ in pairs]
    shares = {}
    for setting in settings:
        jobs = [Job(prompt=prompt, seed=seed, setting=setting) for prompt, seed in pairs]
        shares[setting] = probes([drawings.picture(job) for job in jobs], plain, drawings.superclasses).share
    return shares
