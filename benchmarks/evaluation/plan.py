"""What one evaluation consists of, and where its files lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.evaluation.prompts import PAIR_PROMPTS, PAIRS, PLAIN, PROMPTS, TUNING_PROMPTS, Prompt
from benchmarks.record import ROOT
from perfusion.errors import RequestError
from perfusion.files import writing
from recipes.pocket.subjects import SUBJECTS, Subject, save

__all__ = ["FULL", "SMALL", "TUNING_SUBJECTS", "Plan", "open_work", "pictures_of", "subject_named"]

TUNING_SUBJECTS = (
    Subject(name="tuning-rabbit", noun="rabbit", style="emojione"),
    Subject(name="tuning-house", noun="house", style="fxemoji"),
)
"""Rates and steps are chosen on these two; none of the twelve is looked at for it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of an evaluation."""

    subjects: tuple[str, ...] = tuple(subject.name for subject in SUBJECTS)
    steps: int = 300
    checkpoints: tuple[int, ...] = (100, 200, 300)
    """Of these steps each method's own best is taken, by tuning."""
    save_every: int = 50
    """Between the snapshots that Perfusion's own selection chooses from."""
    batch_size: int = 16
    crops: int = 8
    prior_pictures: int = 48
    """Of the superclass, drawn by the base model, for methods that train against forgetting it."""
    seeds: int = 4
    ablation_seeds: int = 2
    tuning_seeds: int = 2
    num_inference_steps: int = 20
    biases: tuple[float, ...] = (0.5, 0.6, 0.75, 0.9, 1.05)
    global_biases: tuple[float, ...] = (0.4, 0.5, 0.6, 0.75, 0.9)
    late: tuple[tuple[str, float], ...] = (("local", 0.6), ("global", 0.6))
    """Locks and biases, each among those above, that are drawn with every one of `starts` too."""
    starts: tuple[float, ...] = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
    prompts: tuple[Prompt, ...] = PROMPTS
    plain: tuple[Prompt, ...] = PLAIN
    tuning_prompts: tuple[Prompt, ...] = TUNING_PROMPTS
    pair_prompts: tuple[Prompt, ...] = PAIR_PROMPTS
    pairs: tuple[tuple[str, str], ...] = PAIRS
    renders: int = 8
    """True pictures of each subject that nothing was trained on: what a perfect method would draw."""
    leakage_levels: int = 10
    """Noise levels at which the attention is read."""
    probe_scenes: int = 2600
    """True pictures that the probe of subjects learns from."""

    @property
    def numbers_by_place(self) -> dict[str, int]:
        """For every place the number of the prompt that asks for it and nothing else: what true pictures stand for."""
        return {prompt.place: number for number, prompt in enumerate(self.prompts) if prompt.only_place}

    def pairs_among(self, subjects: Sequence[str]) -> list[tuple[str, str]]:
        """The pairs of which both are there."""
        return [pair for pair in self.pairs if set(pair) <= set(subjects)]


FULL = Plan()
SMALL = Plan(
    subjects=("school-bus", "pink-cake"), steps=6, checkpoints=(3, 6), save_every=3, batch_size=4, crops=2,
    prior_pictures=4, seeds=1, ablation_seeds=1, tuning_seeds=1, num_inference_steps=4, biases=(0.6, 0.75),
    global_biases=(0.6,), late=(("local", 0.6),), starts=(0.5,),
    prompts=(PROMPTS[0], PROMPTS[2], PROMPTS[12]), plain=PLAIN[:1], tuning_prompts=TUNING_PROMPTS[:1],
    pair_prompts=PAIR_PROMPTS[:1], pairs=(("school-bus", "pink-cake"),), renders=2, leakage_levels=2,
    probe_scenes=40,
)  # fmt: skip
"""The whole machinery in minutes; its numbers mean nothing."""


def subject_named(name: str) -> Subject:
    """One of the twelve, or of the two for tuning."""
    for subject in (*SUBJECTS, *TUNING_SUBJECTS):
        if subject.name == name:
            return subject
    known = ", ".join(subject.name for subject in SUBJECTS)
    raise RequestError(f"there is no subject {name!r}; choose among {known}")


def pictures_of(work: Path, subject: Subject) -> Path:
    """The folder of a subject's five pictures and their masks; those for tuning are composed when first asked for."""
    if subject not in TUNING_SUBJECTS:
        return ROOT / "examples" / "subjects" / subject.name
    folder = work / "pictures" / subject.name
    if not (folder / "masks" / "5.png").exists():
        save(subject.noun, subject.style, folder)
    return folder


def open_work(work: Path, plan: Plan) -> None:
    """Make the folder this plan's, or refuse one that holds another plan's results.

    Raises:
        RequestError: the folder belongs to another plan.
    """
    path, text = work / "plan.json", json.dumps(asdict(plan), indent=1)
    if path.exists() and path.read_text("utf-8") != text:
        raise RequestError(
            f"{work} holds the results of another plan (plan.json differs); give another --work folder, or delete it"
        )
    with writing(path, "w") as file:
        file.write(text)
