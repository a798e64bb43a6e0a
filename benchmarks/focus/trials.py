"""The trials: what is trained, how it is read, what it draws of one thing, of a second thing and of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation.ablations import as_kind
from benchmarks.evaluation.drawing import drawing_units, write_drawings
from benchmarks.evaluation.measuring import measuring_units
from benchmarks.evaluation.models import base_model, config_of, samples_of, threads
from benchmarks.evaluation.plan import FULL, SMALL, Plan, pictures_of, subject_named
from benchmarks.evaluation.regions import PROBE, Variant, jobs_of, measure_variant, teach_probe, variant_path
from benchmarks.evaluation.units import Context, Unit
from benchmarks.focus.edits import OtherReading, padding_hidden, prompts_known, reading_as
from perfusion.base.attention import installed
from perfusion.runtime import Runtime
from perfusion.training.initial_edit import initial_edit
from perfusion.training.placement import Placement
from perfusion.training.templates import check_superclass
from perfusion.training.trainer import as_concept
from perfusion.training.training_loop import Run, optimise

__all__ = ["TINY", "TRIALS", "WHOLE", "Trial", "concept_path", "train_trial", "trial_units", "variants_of"]

SUBJECTS = ("old-robot", "grey-penguin", "pink-cake", "school-bus")
PAIRS = (
    ("pink-cake", "grey-penguin"), ("grey-penguin", "old-robot"), ("old-robot", "school-bus"),
    ("school-bus", "pink-cake"),
)  # fmt: skip
SEED_OFFSET = 50
"""From the evaluation's seeds, so that nothing is chosen by its pictures."""
SECONDS = 0.5

WHOLE = replace(FULL, subjects=SUBJECTS, pairs=PAIRS)
TINY = replace(SMALL, steps=2, num_inference_steps=2)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A training, and how what it learned is drawn."""

    name: str
    title: str
    training: str = ""
    """Whose concepts are drawn, where it trains none of its own."""
    kind: str = "product"
    """How prompts are read, one of `edits.KINDS`; in training, too, where it has one."""
    lr_values: float | None = None
    """Of values that each layer learns for itself; None: what is learned, and how fast, is the base model's own."""
    hides: int = 0
    """Every so many samples of the training do not see padding."""
    bias: float = 0.6

    @property
    def source(self) -> str:
        return self.training or self.name

    @property
    def values(self) -> dict[str, Any]:
        """Options of the training."""
        return {} if self.lr_values is None else {"lr_values": self.lr_values, "values": "layers"}

    @property
    def lock(self) -> str:
        """What the runtime is asked for."""
        return "global" if self.kind == "context-lock" else "local"


TRIALS = (
    Trial(name="product", title="product"),
    Trial(
        name="shut-after", title="product, padding shut in drawing", training="product", kind="padding-shut"
    ),
    Trial(name="padding-shut", title="padding shut", kind="padding-shut"),
    Trial(name="padding-plain", title="padding of the superclass", kind="padding-plain"),
    Trial(name="padding-hidden", title="padding hidden from half of the samples", hides=2),
    Trial(name="context-lock", title="context lock, gates of all tokens", kind="context-lock", lr_values=0.1),
    Trial(name="context-lock-slow", title="context lock, rate 0.03", kind="context-lock", lr_values=0.03),
)


def variants_of(trial: Trial) -> tuple[Variant, Variant]:
    """Without regions and with them."""
    return (
        Variant(name=trial.name, title=trial.title, bias=trial.bias),
        Variant(
            name=f"{trial.name}-regions", title=f"{trial.title}, in regions", bias=trial.bias,
            options=(("regions", "auto"),),
        ),
    )  # fmt: skip


def trial_units(
    context: Context, trials: Sequence[Trial], subjects: Sequence[str]
) -> list[tuple[str, list[Unit]]]:
    """In groups, each of which needs the ones before."""
    plan = context.plan
    training, drawing, measuring = list[Unit](), list[Unit](), list[Unit]()
    whom = [*((name,) for name in subjects), *plan.pairs_among(subjects)]
    for trial in trials:
        if not trial.training:
            training += [
                Unit(path=concept_path(trial, name), cost=plan.steps / 2, call=train_trial, arguments=(trial, name))
                for name in subjects
            ]  # fmt: skip
        for variant in variants_of(trial):
            for names in whom:
                cost = SECONDS * len(jobs_of(variant, plan, names)[0])
                paths = [variant_path(stage, variant, names) for stage in ("draw", "measure")]
                drawing.append(
                    Unit(path=paths[0], cost=cost, call=draw_trial, arguments=(trial, variant, names))
                )
                measuring.append(
                    Unit(path=paths[1], cost=cost / 4, call=measure_variant, arguments=(variant, names))
                )
    return [
        ("the base model's pictures", drawing_units((), subjects, plan)),
        ("their measures", measuring_units((), subjects, plan)),
        ("the probe that knows the subjects", [Unit(path=PROBE, cost=60, call=teach)]),
        ("training", training),
        ("drawing", drawing),
        ("measuring", measuring),
    ]


def concept_path(trial: Trial, subject: str) -> Path:
    """Of the concept that a trial draws with, relative to the work folder."""
    return Path("train") / trial.source / subject / "concept.safetensors"


def teach(context: Context) -> None:
    """The evaluation's own probe of the subjects, which knows all of them."""
    teach_probe(context if context.plan == TINY else replace(context, plan=FULL))


def train_trial(context: Context, trial: Trial, subject_name: str) -> None:
    """As `perfusion.training.train` does, with the trial's edit; the last step is taken."""
    base, plan, subject = base_model(), context.plan, subject_named(subject_name)
    config = config_of(plan, subject, pictures_of(context.work, subject), select="last", **trial.values)
    edit, encoding = initial_edit_of(trial, plan, subject_name)
    samples = samples_of(plan, context.work, subject)
    run = Run.begin(edit.train(), config, Placement.pick("cpu"))
    with installed(base.unet), prompts_known(edit, config.superclass), padding_hidden(trial.hides):
        optimise(base, run, samples.latents, samples.masks, config, lambda loss: None)
    concept = as_concept(base, edit, encoding, config, {"steps": str(run.step), "trial": trial.name})
    concept.save(context.work / concept_path(trial, subject_name))


def initial_edit_of(trial: Trial, plan: Plan, subject_name: str) -> tuple[OtherReading, torch.Tensor]:
    """The trial's edit before the first step, and the superclass's encoding."""
    subject = subject_named(subject_name)
    config = config_of(plan, subject, Path(), **trial.values)
    words = check_superclass(base_model(), config.superclass)
    edit, encoding = initial_edit(base_model(), words, config, lambda line: None)
    targets = {}
    if trial.kind == "context-lock":
        # what is learned is a difference of values, and nothing is added to keys
        targets = {name: torch.zeros_like(getattr(edit, name)) for name in ("target_keys", "target_values")}
    edit = as_kind(edit, OtherReading, **targets)
    edit.kind = trial.kind
    return edit, encoding


def draw_trial(context: Context, trial: Trial, variant: Variant, names: tuple[str, ...]) -> None:
    """A subject's or a pair's pictures, by a runtime that reads prompts as the trial does."""
    rows, texts = jobs_of(variant, context.plan, names)
    rows = [row | {"seed": row["seed"] + SEED_OFFSET} for row in rows]
    with Runtime(threads=threads()) as runtime, reading_as(trial.kind):
        for name in names:
            runtime.load_concept(
                context.work / concept_path(trial, name), token=subject_named(name).token, bias=variant.bias
            )
        pictures = runtime.generate(
            texts, seed=[row["seed"] for row in rows], num_inference_steps=context.plan.num_inference_steps,
            lock=trial.lock, **dict(variant.options),
        )  # fmt: skip
    write_drawings(context.work / variant_path("draw", variant, names), pictures, rows)
