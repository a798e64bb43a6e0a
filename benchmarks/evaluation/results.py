"""Everything that was measured, as figures by method, setting and subject."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.drawing import BASES, base_drawn_by, drawing_path, read_drawings, same_drawings
from benchmarks.evaluation.figures import Interval, along, harmonic, interval, scaled_text
from benchmarks.evaluation.measuring import Measures, pair_path, read_measures, target_path
from benchmarks.evaluation.methods import Method, Setting, method_named
from benchmarks.evaluation.plan import Plan, subject_named
from benchmarks.evaluation.prompts import plain_text
from benchmarks.evaluation.training import trained_folder
from benchmarks.evaluation.units import Context
from perfusion.errors import RequestError

__all__ = ["Anchors", "Point", "Results", "anchors_of", "collect", "figures_of", "pair_figures"]

Array = NDArray[Any]
Figures = dict[str, float]
Embed = Callable[[list[str]], Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class Anchors:
    """What a subject's similarities are measured between."""

    noun: str
    start: Array
    """The base model's pictures of the plain noun, cut to the object: image similarity 0."""
    target: Array
    """The subject's five pictures: image similarity 1."""
    texts: Array
    """(prompts, dim), the noun in the gap."""
    floor: Array
    ceiling: Array
    """(prompts,) cosines of the subject's own pictures, and of the base model's, with each prompt: text similarity 0
    and 1, as means over the prompts that are looked at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """One method with one setting: its figures by subject, or by pair."""

    method: Method
    setting: Setting
    figures: Mapping[str, Figures]

    def of(self, key: str) -> Interval:
        """Over the subjects that have this figure."""
        return interval([row[key] for row in self.figures.values() if key in row])


@dataclass(kw_only=True, eq=False)
class Results:
    """What the report is made of."""

    points: list[Point] = field(default_factory=list)
    pairs: list[Point] = field(default_factory=list)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    """By method: `bytes`, `core_seconds`, `rate`, `steps`, means over the subjects."""
    base: dict[str, Figures] = field(default_factory=dict)
    base_pairs: dict[str, Figures] = field(default_factory=dict)
    truth_pairs: dict[str, float] = field(default_factory=dict)
    """In what share of true pictures of two subjects side by side both nouns are seen."""
    truth: dict[str, Figures] = field(default_factory=dict)
    """Of true pictures of each subject: `image`, `text`, `place`, `noun`; `overlap`, of found with true masks."""
    other_seed: float = float("nan")
    """How far two of the base model's pictures of one prompt are from each other: a scale for the drift."""
    selected: Point | None = None
    """Perfusion as shipped, on those of its pictures that the ablations, which have fewer seeds, have as well."""
    leakage: dict[str, Any] = field(default_factory=dict)
    engines: float = 0.0
    """The least peak signal-to-noise ratio, in dB, between the runtime's and the pipeline's base pictures."""

    def of(self, name: str) -> list[Point]:
        """A method with each of its settings, the default first."""
        return [point for point in self.points if point.method.name == name]

    def default(self, name: str) -> Point | None:
        """A method with its default setting."""
        return next(iter(self.of(name)), None)


def collect(context: Context, methods: Sequence[Method], subjects: Sequence[str], embed: Embed) -> Results:
    """Read what is there and make figures of it.

    Args:
        embed: text embeddings of length one.
    """
    plan, results = context.plan, Results()
    anchors = {name: anchors_of(context, name, embed) for name in subjects}
    for name, anchor in anchors.items():
        measures, extra = read_measures(context.work / target_path(name))
        results.truth[name] = {
            "image": float(along(measures.objects[:, 0], anchor.start, anchor.target).mean()),
            "image_exact": float(along(extra["exact"], anchor.start, anchor.target).mean()),
            "noun": _share([measures.seen(row)[0] == anchor.noun for row in range(len(measures.nouns))]),
            "overlap": float(extra["overlap"].mean()),
            **_followed(measures, anchor, plan),
        }
        base, _ = _read(context, "base-runtime", anchor.noun, "prompts")
        results.base[name] = figures_of(base, range(len(base.rows)), anchor, plan)
    pairs = plan.pairs_among(subjects)
    for pair in pairs:
        nouns = [anchors[name].noun for name in pair]
        shown, _ = read_measures(context.work / pair_path(*pair))
        results.truth_pairs["+".join(pair)] = _share(
            [set(shown.seen(row, 2)) == set(nouns) for row in range(len(shown.rows))]
        )
        base, _ = _read(context, "base-runtime", "+".join(nouns), "pairs")
        results.base_pairs["+".join(pair)] = pair_figures(
            base, range(len(base.rows)), [anchors[name] for name in pair]
        )
    for method in methods:
        results.points += _points(context, method, anchors)
        if method.combines and method.seeds(plan) == plan.seeds:
            results.pairs += _pair_points(context, method, pairs, anchors)
        results.facts[method.name] = _facts(context, method, subjects)
    if {"perfusion", "unselected"} <= {method.name for method in methods}:
        results.selected = _as_few(context, "perfusion", "unselected", anchors)
    results.leakage = {
        name: json.loads(path.read_text("utf-8"))
        for name in subjects
        if (path := context.work / "measure" / "leakage" / f"{name}.json").exists()
    }
    every = {anchor.noun for anchor in anchors.values()}
    results.engines, results.other_seed = _engines(context, every), _other_seed(context, every)
    return results


def figures_of(measures: Measures, rows: Sequence[int], anchor: Anchors, plan: Plan) -> Figures:
    """One subject's figures from some of its pictures."""
    numbers = [int(measures.rows[row]["prompt"]) for row in rows]
    likeness = [
        (row, number) for row, number in zip(rows, numbers, strict=True) if plan.prompts[number].keeps_look
    ]
    look_rows, look_numbers = [row for row, _ in likeness], [number for _, number in likeness]
    objects = measures.objects[look_rows, 0]
    cosines = (measures.whole[look_rows] * anchor.texts[look_numbers]).sum(-1)
    image = float(along(objects, anchor.start, anchor.target).mean())
    text = float(
        scaled_text(cosines, anchor.floor[look_numbers].mean(), anchor.ceiling[look_numbers].mean()).mean()
    )
    figures = {
        "image": image, "text": text, "harmonic": harmonic(image, text), "text_cosine": float(cosines.mean()),
        "image_cosine": float((objects @ anchor.target / np.linalg.norm(anchor.target)).mean()),
        "place": _share([measures.places[row] == plan.prompts[n].place for row, n in zip(rows, numbers, strict=True)]),
    }  # fmt: skip
    answers: dict[str, list[bool]] = {}
    for row, number in zip(rows, numbers, strict=True):
        prompt = plan.prompts[number]
        if prompt.only_place:
            answers.setdefault("noun", []).append(measures.seen(row)[0] == anchor.noun)
        elif prompt.kind == "relation":
            answers.setdefault("both", []).append(set(measures.seen(row, 2)) == {anchor.noun, prompt.other})
        else:
            answers.setdefault("colour", []).append(measures.colours[row] == prompt.colour)
    return figures | {name: _share(some) for name, some in answers.items()}


def pair_figures(measures: Measures, rows: Sequence[int], anchors: Sequence[Anchors]) -> Figures:
    """Of pictures of two subjects: whether both nouns are seen, how alike the two are on average and at the least."""
    nouns = {anchor.noun for anchor in anchors}
    likeness = [
        along(measures.objects[list(rows), at], anchor.start, anchor.target).mean()
        for at, anchor in enumerate(anchors)
    ]
    return {
        "both": _share([set(measures.seen(row, 2)) == nouns for row in rows]),
        "image": float(np.mean(likeness)), "lesser": float(min(likeness)),
    }  # fmt: skip


def anchors_of(context: Context, name: str, embed: Embed) -> Anchors:
    """A subject's, from the base model's drawings of its noun and from its own pictures."""
    plan, subject = context.plan, subject_named(name)
    base, _ = _read(context, "base-runtime", subject.noun, "prompts")
    _, own_measures = read_measures(context.work / target_path(name))
    texts = embed([plain_text(prompt, subject.noun) for prompt in plan.prompts])
    numbers = np.array([row["prompt"] for row in base.rows])
    looks = np.array([plan.prompts[number].keeps_look for number in numbers])
    cosines = (base.whole * texts[numbers]).sum(-1)
    return Anchors(
        noun=subject.noun, start=base.objects[looks, 0].mean(0), target=own_measures["own"].mean(0), texts=texts,
        floor=(own_measures["own_whole"] @ texts.T).mean(0),
        ceiling=np.array([cosines[numbers == number].mean() for number in range(len(plan.prompts))]),
    )  # fmt: skip


def _points(context: Context, method: Method, anchors: Mapping[str, Anchors]) -> list[Point]:
    """One for each setting, with the drift of the plain superclass at the default one."""
    plan, points = context.plan, []
    files = {name: _read(context, method.name, name, "prompts")[0] for name in anchors}
    plain = {name: _read(context, method.name, name, "plain")[0] for name in anchors}
    for at, setting in enumerate(method.settings(plan)):
        figures = {}
        for name, measures in files.items():
            figures[name] = figures_of(measures, _rows_of(measures, setting), anchors[name], plan)
            if at == 0:
                figures[name] |= _drift(context, method, plain[name], anchors[name])
        points.append(Point(method=method, setting=setting, figures=figures))
    return points


def _drift(context: Context, method: Method, plain: Measures, anchor: Anchors) -> Figures:
    """How far the plain superclass has moved: in levels of 255, and towards the subject."""
    before, _ = _read(context, base_drawn_by(method.artist), anchor.noun, "plain")
    same = same_drawings(plain.rows, before.rows)
    moved = along(plain.objects[:, 0], anchor.start, anchor.target)
    stood = along(before.objects[same, 0], anchor.start, anchor.target)
    return {"drift": float(plain.distance.mean()), "drift_image": float((moved - stood).mean())}


def _pair_points(
    context: Context, method: Method, pairs: Sequence[tuple[str, str]], anchors: Mapping[str, Anchors]
) -> list[Point]:
    files = {pair: _read(context, method.name, "+".join(pair), "pairs")[0] for pair in pairs}
    return [
        Point(
            method=method,
            setting=setting,
            figures={
                "+".join(pair): pair_figures(
                    found, _rows_of(found, setting), [anchors[name] for name in pair]
                )
                for pair, found in files.items()
            },
        )
        for setting in method.settings(context.plan)
        if pairs
    ]


def _as_few(context: Context, name: str, reference: str, anchors: Mapping[str, Anchors]) -> Point:
    """A method with its default setting, on the prompts and seeds that another one was drawn with."""
    method = method_named(name)
    setting, figures = method.settings(context.plan)[0], {}
    for subject, anchor in anchors.items():
        measures, fewer_measures = (_read(context, one, subject, "prompts")[0] for one in (name, reference))
        common = {(row["prompt"], row["seed"]) for row in fewer_measures.rows}
        rows = [
            at
            for at in _rows_of(measures, setting)
            if (measures.rows[at]["prompt"], measures.rows[at]["seed"]) in common
        ]
        figures[subject] = figures_of(measures, rows, anchor, context.plan)
    return Point(method=method, setting=setting, figures=figures)


def _rows_of(measures: Measures, setting: Setting) -> list[int]:
    rows = [at for at, row in enumerate(measures.rows) if setting.drew(row)]
    if not rows:
        raise RequestError(
            f"nothing was drawn with {setting.label or 'the default setting'} of what was measured before the settings "
            "changed; delete that method's folders in draw and measure, and run these stages again"
        )
    return rows


def _followed(measures: Measures, anchor: Anchors, plan: Plan) -> Figures:
    """Text similarity and place of true pictures, each held against the prompt of its place."""
    numbers = plan.numbers_by_place
    numbers_of_rows = [numbers[row["place"]] for row in measures.rows]
    cosines = (measures.whole * anchor.texts[numbers_of_rows]).sum(-1)
    places = [seen == row["place"] for seen, row in zip(measures.places, measures.rows, strict=True)]
    text = scaled_text(
        cosines, anchor.floor[numbers_of_rows].mean(), anchor.ceiling[numbers_of_rows].mean()
    ).mean()
    return {"text": float(text), "place": _share(places)}


def _other_seed(context: Context, nouns: set[str]) -> float:
    """See `Results.other_seed`."""
    distances = list[float]()
    for noun in nouns:
        drawings = read_drawings(context.work / drawing_path("base-pipeline", noun, "plain"))
        pictures = drawings.pictures.astype(np.float64)
        distances += [
            float(np.sqrt(np.square(pictures[a] - pictures[b]).mean()))
            for (a, one), (b, other) in itertools.combinations(enumerate(drawings.rows), 2)
            if one["prompt"] == other["prompt"]
        ]
    return float(np.mean(distances)) if distances else float("nan")


def _facts(context: Context, method: Method, subjects: Sequence[str]) -> dict[str, float]:
    source = method_named(method.source)
    rows = [
        json.loads((context.work / trained_folder(source, name) / "facts.json").read_text("utf-8"))
        for name in subjects
    ]
    return {
        key: float(np.mean([row[key] for row in rows])) for key in ("bytes", "core_seconds", "rate", "steps")
    }


def _engines(context: Context, nouns: set[str]) -> float:
    """See `Results.engines`."""
    least = np.inf
    for noun in nouns:
        first, second = (
            read_drawings(context.work / drawing_path(base, noun, "plain")).pictures.astype(np.float64)
            for base in BASES
        )
        error = np.square(first - second).mean((1, 2, 3)).max()
        least = min(least, 10 * np.log10(255**2 / max(error, 1e-9)))
    return float(least)


def _read(context: Context, name: str, whom: str, kind: str) -> tuple[Measures, dict[str, Any]]:
    return read_measures(context.work / drawing_path(name, whom, kind, "measure"))


def _share(answers: Sequence[bool]) -> float:
    return float(np.mean(answers)) if len(answers) else float("nan")
