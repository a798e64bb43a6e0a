"""The stage that draws: every method, subject and setting on the same prompts and seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.evaluation.artists import Job, PipelineArtist, RuntimeArtist, artist_for
from benchmarks.evaluation.methods import Method, Setting, method_named
from benchmarks.evaluation.models import base_model, pipeline_of
from benchmarks.evaluation.plan import Plan, subject_named
from benchmarks.evaluation.prompts import Prompt, plain_text
from benchmarks.evaluation.training import trained_folder
from benchmarks.evaluation.units import Context, Unit
from perfusion.files import writing

__all__ = [
    "BASES",
    "FIRST_SEEDS",
    "Drawings",
    "base_drawn_by",
    "draw_set",
    "drawing_path",
    "drawing_units",
    "jobs_of",
    "prompts_of",
    "read_drawings",
    "same_drawings",
    "write_drawings",
]

BASES = {"base-runtime": "runtime", "base-pipeline": "pipeline"}
"""The base model's own pictures, by whoever draws the method's: the difference of two engines is no drift."""
SETS = ("prompts", "plain", "pairs")
FIRST_SEEDS = {"prompts": 10_000, "plain": 10_000, "pairs": 20_000}
"""By pictures of these seeds nothing was chosen: not by tuning, nor by Perfusion's selection of a step (0 and 1)."""
SECONDS = {"runtime": 0.45, "pipeline": 0.6}


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawings:
    """Pictures with what each was asked to be."""

    pictures: np.ndarray
    """(n, height, width, 3) uint8."""
    rows: tuple[dict[str, Any], ...]
    """For each: `prompt`, its number in the set; `seed`; and what `Setting` has."""

    def images(self) -> list[Image.Image]:
        return [Image.fromarray(one) for one in self.pictures]


def drawing_units(methods: Sequence[Method], subjects: Sequence[str], plan: Plan) -> list[Unit]:
    """The base model's pictures first: everything else is compared with them."""
    units = []
    nouns = sorted({subject_named(name).noun for name in subjects})
    pairs = plan.pairs_among(subjects)
    for base, engine in BASES.items():
        cost = SECONDS[engine] * plan.seeds
        for noun in nouns:
            kinds = ("prompts", "plain") if base == "base-runtime" else ("plain",)
            units += [
                _unit(base, noun, kind, cost * len(prompts_of(plan, kind)), draw_base, (base, (noun,), kind))
                for kind in kinds
            ]
    for pair in pairs:
        both = tuple(subject_named(name).noun for name in pair)
        cost = SECONDS["runtime"] * plan.seeds * len(plan.pair_prompts)
        units.append(
            _unit("base-runtime", "+".join(both), "pairs", cost, draw_base, ("base-runtime", both, "pairs"))
        )
    for method in methods:
        targets: list[tuple[tuple[str, ...], str]] = [
            ((name,), kind) for name in subjects for kind in ("prompts", "plain")
        ]
        targets += [(pair, "pairs") for pair in pairs if method.combines and method.seeds(plan) == plan.seeds]
        for names, kind in targets:
            many = 1 if kind == "plain" else len(method.settings(plan))
            cost = SECONDS[method.artist] * many * method.seeds(plan) * len(prompts_of(plan, kind))
            arguments = (method.name, names, kind)
            units.append(_unit(method.name, "+".join(names), kind, cost, draw_method, arguments))
    return list({unit.path: unit for unit in units}.values())


def base_drawn_by(artist: str) -> str:
    """The one of `BASES` to hold against what this artist draws."""
    return next(base for base, engine in BASES.items() if engine == artist)


def prompts_of(plan: Plan, kind: str) -> tuple[Prompt, ...]:
    """The prompts of one of the three sets."""
    return {"prompts": plan.prompts, "plain": plan.plain, "pairs": plan.pair_prompts}[kind]


def drawing_path(name: str, whom: str, kind: str, stage: str = "draw") -> Path:
    """Relative to the work folder: of a method or a base, a subject, noun or pair, and a set."""
    return Path(stage) / name / f"{whom.replace(' ', '-')}.{kind}.npz"


def jobs_of(
    prompts: Sequence[Prompt],
    words: Sequence[str],
    setting: Setting,
    seeds: int,
    first: int,
    plain: bool = False,
) -> tuple[list[Job], list[dict[str, Any]]]:
    """Every prompt with its own seeds, the same for all methods; and what the rows of `Drawings` say of them."""
    jobs, rows = [], []
    for number, prompt in enumerate(prompts):
        text = plain_text(prompt, *words) if plain else prompt.text.format(*words)
        for seed in range(seeds):
            jobs.append(Job(text=text, seed=first + 100 * number + seed, setting=setting))
            rows.append({"prompt": number, "seed": jobs[-1].seed, **asdict(setting)})
    return jobs, rows


def draw_base(context: Context, base: str, nouns: tuple[str, ...], kind: str) -> None:
    """The base model's pictures of one or two nouns."""
    plan, steps = context.plan, context.plan.num_inference_steps
    artist = (
        RuntimeArtist(None, {}, (), steps)
        if BASES[base] == "runtime"
        else PipelineArtist(pipeline_of(base_model()), steps)
    )
    jobs, rows = jobs_of(prompts_of(plan, kind), nouns, Setting(), plan.seeds, FIRST_SEEDS[kind], plain=True)
    write_drawings(context.work / drawing_path(base, "+".join(nouns), kind), artist.draw(jobs), rows)


def draw_method(context: Context, name: str, names: tuple[str, ...], kind: str) -> None:
    """One method's pictures of a subject or a pair, with every setting."""
    method = method_named(name)
    folders = {one: context.work / trained_folder(method, one) for one in names}
    pictures, rows = draw_set(context.plan, method, folders, kind)
    write_drawings(context.work / drawing_path(name, "+".join(names), kind), pictures, rows)


def draw_set(
    plan: Plan, method: Method, folders: dict[str, Path], kind: str, prompts: Sequence[Prompt] | None = None,
    settings: Sequence[Setting] | None = None, seeds: int | None = None, first: int | None = None,
) -> tuple[list[Image.Image], list[dict[str, Any]]]:  # fmt: skip
    """A set of prompts under a method's weights.

    Args:
        folders: of the weights, by subject.
        kind: `prompts`, `plain` (the superclass under these weights) or `pairs`.
        prompts, settings, seeds, first: in the place of the plan's: what is drawn, with what, how often, from where
            seeds are counted.
    """
    subjects = [subject_named(name) for name in folders]
    weights = {subject: folders[subject.name] for subject in subjects}
    used_settings = tuple(method.settings(plan) if settings is None else settings)
    used_settings = used_settings[:1] if kind == "plain" else used_settings
    start = FIRST_SEEDS[kind] if first is None else first
    jobs, rows = list[Job](), list[dict[str, Any]]()
    for setting in used_settings:
        words = [one.noun if kind == "plain" else method.word(one, setting) for one in subjects]
        setting_jobs = jobs_of(
            prompts_of(plan, kind) if prompts is None else prompts, words, setting, seeds or method.seeds(plan),
            start, plain=kind == "plain",
        )  # fmt: skip
        jobs, rows = jobs + setting_jobs[0], rows + setting_jobs[1]
    artist = artist_for(method, weights, used_settings, plan)
    try:
        return artist.draw(jobs), rows
    finally:
        artist.close()


def write_drawings(path: Path, pictures: Sequence[Image.Image], rows: Sequence[dict[str, Any]]) -> None:
    """A finished file of pictures."""
    with writing(path) as file:
        np.savez_compressed(
            file,
            pictures=np.stack([np.asarray(one, np.uint8) for one in pictures]),
            rows=np.array(json.dumps(rows)),
        )


def read_drawings(path: Path) -> Drawings:
    """What `write_drawings` wrote."""
    with np.load(path) as arrays:
        return Drawings(pictures=arrays["pictures"], rows=tuple(json.loads(str(arrays["rows"]))))


def same_drawings(rows: Sequence[dict[str, Any]], among: Sequence[dict[str, Any]]) -> list[int]:
    """For each row of `Drawings` the place, among those of another, of the picture of the same prompt and seed."""
    known = {(row["prompt"], row["seed"]): at for at, row in enumerate(among)}
    return [known[row["prompt"], row["seed"]] for row in rows]


def _unit(name: str, whom: str, kind: str, cost: float, call: Any, arguments: tuple[Any, ...]) -> Unit:
    return Unit(path=drawing_path(name, whom, kind), cost=cost, call=call, arguments=arguments)
