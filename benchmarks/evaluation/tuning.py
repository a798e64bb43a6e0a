"""The stage that tunes: every method the same grid, on subjects and prompts of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation.cutting import as_array
from benchmarks.evaluation.drawing import draw_set
from benchmarks.evaluation.figures import along, harmonic, scaled_text
from benchmarks.evaluation.measuring import measure_pictures, own_embeddings
from benchmarks.evaluation.methods import Method, method_named
from benchmarks.evaluation.models import drawing_runtime, text_scorer
from benchmarks.evaluation.plan import TUNING_SUBJECTS, Plan, subject_named
from benchmarks.evaluation.prompts import plain_text
from benchmarks.evaluation.training import CHOSEN, train_method
from benchmarks.evaluation.units import Context, Unit
from perfusion.files import writing
from recipes.pocket.subjects import Subject

__all__ = ["MORE_RATES", "choose", "tuning_units", "unmasking_units", "widening_units"]

FIRST_SEED = 40_000
MORE_RATES = 2
"""So many rates are tried beyond a method's grid while the best is at its edge."""
UNMASKED = "-unmasked"
Save = Callable[[Path], None]


def tuning_units(methods: Sequence[Method], plan: Plan) -> list[Unit]:
    """One for each method, rate and tuning subject; the steps are tried within it."""
    return [
        unit
        for method in methods
        if method.tuned
        for rate in method.rates
        for unit in _units(method, rate, plan)
    ]


def widening_units(methods: Sequence[Method], context: Context) -> list[Unit]:
    """For every method whose best rate is at the edge of what was tried, the next rate beyond it."""
    choices, units = choose(methods, context), list[Unit]()
    for method in (method for method in methods if method.tuned):
        rates = _tried(method, context)
        if choices[method.name]["at_edge"] and len(rates) < len(method.rates) + MORE_RATES:
            low = choices[method.name]["rate"] == rates[0]
            edge, inner = rates[:2] if low else rates[:-3:-1]
            units += _units(method, float(f"{edge * edge / inner:.2g}"), context.plan)
    return units


def unmasking_units(methods: Sequence[Method], context: Context) -> list[Unit]:
    """Every method's best rate once more, with an error that counts in the whole picture."""
    choices = choose(methods, context)
    return [
        unit
        for method in methods
        if method.tuned
        for unit in _units(method, choices[method.name]["rate"], context.plan, masks=False)
    ]


def tune_unit(context: Context, name: str, subject_name: str, rate: float, masks: bool) -> None:
    """Train once, draw and score at every checkpoint; the weights are not kept."""
    method, subject = method_named(name), subject_named(subject_name)
    scores: dict[int, dict[str, float]] = {}

    def keep(step: int, save: Save) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            scores[step] = score(context, method, subject, Path(folder))

    train_method(context, method, subject_name, rate, context.plan.steps, keep, masks)
    with writing(context.work / _path(name, subject_name, rate, masks), "w") as file:
        file.write(json.dumps({"rate": rate, "scores": scores}))


def score(context: Context, method: Method, subject: Subject, weights: Path) -> dict[str, float]:
    """Image and text similarity between the anchors of `figures`, and their harmonic mean."""
    plan, noun = context.plan, subject.noun
    prompts = plan.tuning_prompts
    pictures, rows = draw_set(
        plan, method, {subject.name: weights}, "prompts", prompts, method.settings(plan)[:1], plan.tuning_seeds,
        FIRST_SEED,
    )  # fmt: skip
    plain = drawing_runtime().generate(
        [plain_text(prompts[row["prompt"]], noun) for row in rows], seed=[row["seed"] for row in rows],
        num_inference_steps=plan.num_inference_steps,
    )  # fmt: skip
    drawn_measures, base_measures = (
        measure_pictures(as_array(part), rows, [noun]) for part in (pictures, plain)
    )
    own, own_whole = own_embeddings(context, subject)
    texts = text_scorer().embed_texts([plain_text(prompts[row["prompt"]], noun) for row in rows])
    ignoring = (own_whole @ texts.T).mean()
    image = float(
        along(drawn_measures.objects[:, 0], base_measures.objects[:, 0].mean(0), own.mean(0)).mean()
    )
    cosines = (drawn_measures.whole * texts).sum(-1)
    text = float(
        scaled_text(cosines, float(ignoring), float((base_measures.whole * texts).sum(-1).mean())).mean()
    )
    return {"image": image, "text": text, "score": harmonic(image, text)}


def choose(methods: Sequence[Method], context: Context) -> dict[str, Any]:
    """Each method's best rate, step and use of masks by the mean score of the tuning subjects; written beside what it
    rests on."""
    choices: dict[str, Any] = {}
    path = context.work / CHOSEN
    if path.exists():
        choices = json.loads(path.read_text("utf-8"))
    for method in (method for method in methods if method.tuned):
        grid, rates = [], _tried(method, context)
        for rate, masks in ((rate, masks) for masks in (True, False) for rate in rates):
            paths = [
                context.work / _path(method.name, subject.name, rate, masks) for subject in TUNING_SUBJECTS
            ]
            if not all(path.exists() for path in paths):
                continue
            parts = [json.loads(path.read_text("utf-8"))["scores"] for path in paths]
            for step in parts[0]:
                means = {key: float(np.mean([part[step][key] for part in parts])) for key in parts[0][step]}
                grid.append({"rate": rate, "masks": masks, "steps": int(step), **means})
        best = max(grid, key=lambda entry: entry["score"])
        at_edge = len(rates) > 1 and best["rate"] in (rates[0], rates[-1])
        taken = {key: best[key] for key in ("rate", "masks", "steps")}
        choices[method.name] = taken | {"at_edge": at_edge, "grid": grid}
    with writing(path, "w") as file:
        file.write(json.dumps(choices, indent=1))
    return choices


def _units(method: Method, rate: float, plan: Plan, masks: bool = True) -> list[Unit]:
    """One rate on every tuning subject."""
    pictures = len(plan.checkpoints) * plan.tuning_seeds * len(plan.tuning_prompts)
    return [
        Unit(
            path=_path(method.name, subject.name, rate, masks),
            cost=method.seconds_per_step * plan.steps + 0.7 * pictures,
            call=tune_unit,
            arguments=(method.name, subject.name, rate, masks),
        )
        for subject in TUNING_SUBJECTS
    ]


def _tried(method: Method, context: Context) -> list[float]:
    """The rates that were tried on every tuning subject, rising."""
    folders = [(context.work / _path(method.name, subject.name, 1)).parent for subject in TUNING_SUBJECTS]
    named = ([path.stem for path in one.glob("*.json")] for one in folders)
    return sorted(set.intersection(*({float(stem) for stem in one if UNMASKED not in stem} for one in named)))


def _path(method: str, subject: str, rate: float, masks: bool = True) -> Path:
    return Path("tune") / method / subject / f"{rate:g}{'' if masks else UNMASKED}.json"
