"""The stage of regions: what they do for a second thing beside a subject, and for two subjects in one picture.

Every variant draws the prompts that ask for a second thing, two scenes, and the prompts of the pairs, from the
evaluation's own seeds. Two probes look at the pictures: the scorer's, which knows nouns, and the one that knows the
subjects. The concepts are those of the row `unselected`; where one has not been trained, the one that ships is taken.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation.artists import Artist, Job, PipelineArtist, loaded_pipeline
from benchmarks.evaluation.drawing import FIRST_SEEDS, drawing_units, read_drawings, write_drawings
from benchmarks.evaluation.figures import interval
from benchmarks.evaluation.measuring import (
    Measures,
    measure_pictures,
    measuring_units,
    read_measures,
    write_measures,
)
from benchmarks.evaluation.methods import DEFAULT_BIAS, Setting, method_named
from benchmarks.evaluation.models import drawing_runtime, text_scorer
from benchmarks.evaluation.plan import Plan, subject_named
from benchmarks.evaluation.prompts import Prompt, plain_text
from benchmarks.evaluation.results import Anchors, anchors_of, figures_of, pair_figures
from benchmarks.evaluation.subject_probe import (
    Question,
    SubjectProbe,
    pair_question,
    questions_of,
    second_thing_question,
)
from benchmarks.evaluation.training import trained_folder
from benchmarks.evaluation.twins import TwinArtist
from benchmarks.evaluation.units import Context, Unit
from perfusion.embedded import model_path
from perfusion.errors import RequestError
from recipes.pocket.subjects import Subject

__all__ = [
    "PROBE",
    "RIVALS",
    "VARIANTS",
    "Variant",
    "answer_shares",
    "chosen_variants",
    "jobs_of",
    "measure_variant",
    "record_of",
    "region_results",
    "region_units",
    "teach_probe",
    "text_of",
    "variant_path",
]

SCENES = 2
"""So many prompts of one thing are drawn beside those of two, for likeness and text."""
SECONDS = 0.5
PROBE = Path("regions") / "probe.npz"
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to draw: the plain nouns or the concepts, and options of the runtime."""

    name: str
    title: str
    learned: bool = True
    method: str = ""
    """Whose weights diffusers draws with; empty: the product's."""
    bias: float = DEFAULT_BIAS
    options: tuple[tuple[str, Any], ...] = (("regions", None),)
    """Of the runtime, whose own default is regions for two concepts without any mark."""

    @property
    def marks(self) -> bool:
        """Whether plain words are marked as things in the prompt."""
        return dict(self.options).get("regions") is not None


_NONE, _AUTO = (("regions", None),), (("regions", "auto"),)
VARIANTS = (
    Variant(name="nouns", title="the base model, plain nouns", learned=False),
    Variant(name="nouns-regions", title="the base model in regions", learned=False, options=_AUTO),
    Variant(name="concepts", title="concepts, bias 0.75"),
    Variant(name="concepts-regions", title="concepts in regions, bias 0.75", options=_AUTO),
    Variant(name="concepts-0.6", title="concepts, bias 0.6", bias=0.6),
    Variant(name="concepts-0.6-regions", title="concepts in regions, bias 0.6", bias=0.6, options=_AUTO),
)


RIVALS = tuple(
    Variant(name=method + suffix, title=method_named(method).title + words, method=method, options=options)
    for method in ("textual-inversion", "lora-values-1", "lora-4")
    for suffix, words, options in (("", "", _NONE), ("-regions", ", in regions", _AUTO))
)  # fmt: skip
"""Drawn when they are asked for: they need weights of their own, from the stage train."""


def chosen_variants(names: Iterable[str] | None) -> tuple[Variant, ...]:
    """The product's and the base model's, or those of these names, rivals too. Raises `RequestError` for others."""
    if names is None:
        return VARIANTS
    known, wanted = {variant.name: variant for variant in (*VARIANTS, *RIVALS)}, list(names)
    if unknown := [name for name in wanted if name not in known]:
        raise RequestError(f"There is no variant {unknown[0]!r}; choose among {', '.join(known)}.")
    return tuple(variant for name, variant in known.items() if name in wanted)


def record_of(variants: Collection[Variant]) -> str | None:
    """The record that some variants make: "regions" with all of the product's, "rivals" of rivals alone."""
    if set(VARIANTS) <= set(variants):
        return "regions"
    return "rivals" if set(variants) <= set(RIVALS) else None


def region_units(
    context: Context, subjects: Sequence[str], variants: Sequence[Variant] = VARIANTS
) -> list[tuple[str, list[Unit]]]:
    """In groups, each of which needs the ones before: the base model's pictures, what every variant draws, measures.

    Raises:
        RequestError: a subject has neither been trained nor does its concept ship.
    """
    plan = context.plan
    for variant in variants:
        for name in subjects if variant.learned else ():
            weights_of(context.work, variant, name)
    whom = [(name,) for name in subjects] + [tuple(pair) for pair in plan.pairs_among(subjects)]
    drawing, measuring = list[Unit](), list[Unit]()
    for variant in variants:
        for names in whom:
            cost = SECONDS * plan.seeds * len(_prompts(plan, names))
            paths = [variant_path(stage, variant, names) for stage in ("draw", "measure")]
            drawing.append(Unit(path=paths[0], cost=cost, call=draw_variant, arguments=(variant, names)))
            measuring.append(
                Unit(path=paths[1], cost=cost / 4, call=measure_variant, arguments=(variant, names))
            )
    return [
        ("the base model's pictures", drawing_units((), subjects, plan)),
        ("their measures", measuring_units((), subjects, plan)),
        ("the probe that knows the subjects", [Unit(path=PROBE, cost=60, call=teach_probe)]),
        ("drawing", drawing),
        ("measuring", measuring),
    ]


def concept_path(work: Path, subject: str) -> Path:
    """The file of a subject's concept, trained or shipped."""
    own_file = work / "train" / "unselected" / subject / "concept.safetensors"
    shipped_file = model_path() / "concepts" / f"{subject}.safetensors"
    if own_file.exists() or shipped_file.exists():
        return own_file if own_file.exists() else shipped_file
    raise RequestError(f"{own_file} is not there yet; run the stage train with --methods unselected first.")


def weights_of(work: Path, variant: Variant, subject: str) -> Path:
    """What the variant knows a subject by: the file of its concept, or the folder of a rival's weights.

    Raises:
        RequestError: it has not been trained.
    """
    if not variant.method:
        return concept_path(work, subject)
    folder = work / trained_folder(method_named(variant.method), subject)
    if not any(folder.glob("*.safetensors")):
        raise RequestError(f"{folder} is empty; run the stage train with --methods {variant.method} first.")
    return folder


def text_of(variant: Variant, prompt: Prompt, names: Sequence[str]) -> str:
    """A prompt in the variant's words: concepts or plain nouns, with plain things in braces where it has regions."""
    subjects = [subject_named(name) for name in names]
    nouns = [subject.noun for subject in subjects]
    text = plain_text(prompt, *nouns)
    plain = [*nouns, prompt.other]
    if variant.learned:
        words = [_word(variant, subject) for subject in subjects]
        unmarked = [word for word in words if not word.startswith("<")]
        text, plain = prompt.text.format(*words), [*unmarked, prompt.other]
    if variant.marks and len([*names, *filter(None, [prompt.other])]) > 1:
        for word in filter(None, plain):
            text = re.sub(rf"\b{word}\b", f"{{{word}}}", text, count=1)
    return text


def teach_probe(context: Context) -> None:
    """The probe that knows the subjects, for all questions of the plan."""
    seconds, pairs = questions_of(context.plan)
    SubjectProbe.taught([*seconds, *pairs], context.plan.probe_scenes).save(context.work / PROBE)


def jobs_of(variant: Variant, plan: Plan, names: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the rows of `Drawings` say of a subject's or a pair's pictures, with the evaluation's seeds, and their
    prompts."""
    first = FIRST_SEEDS["pairs" if len(names) > 1 else "prompts"]
    rows, texts = list[dict[str, Any]](), list[str]()
    for number, prompt in _prompts(plan, names).items():
        for seed in range(plan.seeds):
            rows.append({"prompt": number, "seed": first + 100 * number + seed})
            texts.append(text_of(variant, prompt, names))
    return rows, texts


def draw_variant(context: Context, variant: Variant, names: tuple[str, ...]) -> None:
    """A subject's or a pair's pictures."""
    rows, texts = jobs_of(variant, context.plan, names)
    draw = _drawn_by_rival if variant.method else _drawn
    pictures = draw(context, variant, names, texts, [row["seed"] for row in rows])
    write_drawings(context.work / variant_path("draw", variant, names), pictures, rows)


def _drawn(
    context: Context, variant: Variant, names: Sequence[str], texts: Sequence[str], seeds: Sequence[int]
) -> list[Any]:
    runtime = drawing_runtime()
    tokens = [subject_named(name).token for name in names] if variant.learned else []
    for token, name in zip(tokens, names, strict=False):
        runtime.load_concept(concept_path(context.work, name), token=token, bias=variant.bias)
    try:
        return runtime.generate(
            list(texts), seed=list(seeds), num_inference_steps=context.plan.num_inference_steps,
            lock="local" if variant.learned else None, **dict(variant.options),
        )  # fmt: skip
    finally:
        for token in tokens:
            runtime.unload_concept(token)


def _drawn_by_rival(
    context: Context, variant: Variant, names: Sequence[str], texts: Sequence[str], seeds: Sequence[int]
) -> list[Any]:
    """By diffusers' pipeline, with twin readings where the variant has regions."""
    weights = {subject_named(name): weights_of(context.work, variant, name) for name in names}
    method = method_named(variant.method)
    artist: Artist = (
        TwinArtist(method, weights, context.plan)
        if variant.marks
        else PipelineArtist(loaded_pipeline(method, weights), context.plan.num_inference_steps)
    )
    try:
        jobs = zip(texts, seeds, strict=True)
        return artist.draw([Job(text=text, seed=seed, setting=Setting()) for text, seed in jobs])
    finally:
        artist.close()


def measure_variant(context: Context, variant: Variant, names: tuple[str, ...]) -> None:
    """What the scorer sees in them."""
    drawings = read_drawings(context.work / variant_path("draw", variant, names))
    nouns = [subject_named(name).noun for name in names]
    write_measures(
        context.work / variant_path("measure", variant, names),
        measure_pictures(drawings.pictures, drawings.rows, nouns),
    )


def region_results(
    context: Context, subjects: Sequence[str], variants: Sequence[Variant] = VARIANTS
) -> list[dict[str, Any]]:
    """For the record: every variant's figures by subject and by pair, with their means and intervals."""
    plan, probe = context.plan, SubjectProbe.load(context.work / PROBE)
    anchors = {name: anchors_of(context, name, text_scorer().embed_texts) for name in subjects}
    rows: list[dict[str, Any]] = []
    for variant in variants:
        singles = {name: _of_subject(context, variant, name, anchors[name], probe) for name in subjects}
        pairs = {
            "+".join(pair): _of_pair(context, variant, pair, [anchors[name] for name in pair], probe)
            for pair in plan.pairs_among(subjects)
        }
        rows.append(
            {
                "what": "variant", "name": variant.name, "title": variant.title,
                "subjects": _with_intervals(singles), "pairs": _with_intervals(pairs),
            }
        )  # fmt: skip
    return rows


def answer_shares(question: Question, answers: Sequence[tuple[str, str]]) -> Figures:
    """What the halves of pictures show of a question.

    `subjects`: share with the expected things, `ordinary`: with ordinary things in the subjects' places, `in_order`: of
    both those that stand in the order of mention; not there where no picture has two of either.
    """
    complete = [
        answer for answer in answers if set(answer) in (set(question.expected), set(question.ordinary))
    ]
    ordered = [answer in (question.expected, question.ordinary) for answer in complete]
    shares = {
        "subjects": float(np.mean([set(answer) == set(question.expected) for answer in answers])),
        "ordinary": float(np.mean([set(answer) == set(question.ordinary) for answer in answers])),
    }
    return shares | ({"in_order": float(np.mean(ordered))} if ordered else {})


def _of_subject(
    context: Context, variant: Variant, name: str, anchor: Anchors, probe: SubjectProbe
) -> Figures:
    """Likeness, text, place and nouns over all prompts, `alone` likeness where the subject is alone; second things over
    the prompts that ask for one."""
    plan, (pictures, measures) = context.plan, _read(context, variant, (name,))
    figures = figures_of(measures, range(len(measures.rows)), anchor, plan)
    alone = [at for at, row in enumerate(measures.rows) if not plan.prompts[row["prompt"]].other]
    figures["alone"] = figures_of(measures, alone, anchor, plan)["image"]
    answers, seconds = list[Figures](), list[bool]()
    for number, prompt in _prompts(plan, (name,)).items():
        if prompt.other:
            own = [at for at, row in enumerate(measures.rows) if row["prompt"] == number]
            question = second_thing_question(name, prompt)
            answers.append(answer_shares(question, probe(pictures[own], question)))
            seconds += [prompt.other in measures.seen(at, 2) for at in own]
    return figures | _means(answers) | {"second_seen": float(np.mean(seconds))}


def _of_pair(
    context: Context, variant: Variant, pair: tuple[str, str], anchors: Sequence[Anchors], probe: SubjectProbe
) -> Figures:
    prompts, (pictures, measures) = context.plan.pair_prompts, _read(context, variant, pair)
    question = pair_question(pair, prompts)
    places = [
        seen == prompts[row["prompt"]].place for seen, row in zip(measures.places, measures.rows, strict=True)
    ]
    figures = pair_figures(measures, range(len(measures.rows)), anchors)
    return figures | answer_shares(question, probe(pictures, question)) | {"place": float(np.mean(places))}


def _read(context: Context, variant: Variant, names: tuple[str, ...]) -> tuple[Any, Measures]:
    drawings = read_drawings(context.work / variant_path("draw", variant, names))
    return drawings.pictures, read_measures(context.work / variant_path("measure", variant, names))[0]


def _prompts(plan: Plan, names: Sequence[str]) -> dict[int, Prompt]:
    """By their numbers in the plan, which their seeds follow: those with a second thing and the first scenes, or the
    prompts of a pair."""
    if len(names) > 1:
        return dict(enumerate(plan.pair_prompts))
    numbered = list(enumerate(plan.prompts))
    scenes = [number for number, prompt in numbered if prompt.kind == "scene"][:SCENES]
    return {number: prompt for number, prompt in numbered if prompt.other or number in scenes}


def variant_path(stage: str, variant: Variant, names: Sequence[str]) -> Path:
    """Of a variant's drawings (`draw`) or measures (`measure`), relative to the work folder."""
    return Path(stage) / f"regions-{variant.name}" / f"{'+'.join(names)}.npz"


def _word(variant: Variant, subject: Subject) -> str:
    """What stands for a subject in a prompt."""
    return method_named(variant.method).word(subject, Setting()) if variant.method else subject.token


def _means(figures: Sequence[Mapping[str, float]]) -> Figures:
    """Of every figure over those that have it."""
    keys = dict.fromkeys(key for one in figures for key in one)
    return {key: float(np.mean([one[key] for one in figures if key in one])) for key in keys}


def _with_intervals(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """The figures by name, rounded, and of each its mean and 95 % interval."""
    keys = dict.fromkeys(key for row in figures.values() for key in row)
    intervals = {key: interval([row[key] for row in figures.values() if key in row]) for key in keys}
    return {
        **{key: share.numbers() for key, share in intervals.items()},
        "by_name": {name: {key: round(value, 4) for key, value in row.items()} for name, row in figures.items()},
    }  # fmt: skip
