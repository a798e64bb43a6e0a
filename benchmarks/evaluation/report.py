"""The stage that reports: the record, and of docs/evaluation.md the tables, the plot and the sheets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evaluation.figures import Interval, interval
from benchmarks.evaluation.findings import sliders, verdicts
from benchmarks.evaluation.measuring import measuring_units
from benchmarks.evaluation.methods import DEFAULT_BIAS, METHODS, Method, Setting
from benchmarks.evaluation.models import text_scorer
from benchmarks.evaluation.plot import Mark, scatter
from benchmarks.evaluation.regions import Variant, region_results
from benchmarks.evaluation.results import Point, Results, collect
from benchmarks.evaluation.sheets import method_sheet, overview_sheet, save_sheet
from benchmarks.evaluation.tables import filled, region_tables, tables
from benchmarks.evaluation.training import CHOSEN, trained_folder
from benchmarks.evaluation.units import Context
from benchmarks.record import ROOT, write_record
from perfusion.errors import RequestError
from perfusion.files import writing

__all__ = ["finished_methods", "record_rows", "report", "report_regions"]


def finished_methods(
    context: Context, methods: Sequence[Method], subjects: Sequence[str]
) -> tuple[Method, ...]:
    """Those of the methods that everything is measured of, so that a run that is not done shows what it has.

    Raises:
        RequestError: not even what everything is compared with is there.
    """

    def lacking(some: Sequence[Method]) -> list[Path]:
        units = measuring_units(some, subjects, context.plan)
        return [unit.path for unit in units if not (context.work / unit.path).exists()]

    if first := lacking(()):
        raise RequestError(
            f"{context.work / first[0]} is not there yet, expected the measures of the base model for every subject; "
            "run the stages before, or name the --subjects that they were run for"
        )
    return tuple(method for method in methods if not lacking((method,)))


def report(context: Context, methods: Sequence[Method], subjects: Sequence[str], *, publish: bool) -> None:
    """Write tables, plot and sheets: into `docs`, with the record, or beside what was measured.

    Args:
        publish: whether it is the whole evaluation, which the page and the record are made from.
    """
    tuning = _chosen(context)
    _check_trained(context, methods, subjects, tuning)
    results = collect(context, methods, subjects, lambda texts: text_scorer().embed_texts(texts))
    docs, rows = ROOT / "docs" if publish else context.work / "docs", record_rows(results, tuning)
    _save_pictures(context, results, methods, subjects, docs / "pictures")
    if publish:
        page = docs / "evaluation.md"
        text = filled(page.read_text("utf-8"), tables(rows))
        print(write_record("evaluation", rows))
    else:
        page = docs / "tables.md"
        text = "\n".join(f"## {name}\n\n{table}\n" for name, table in tables(rows).items())
    with writing(page, "w") as file:
        file.write(text)


def report_regions(
    context: Context, subjects: Sequence[str], variants: Sequence[Variant], record: str | None
) -> None:
    """Write and print the tables of regions. With a record's name, "regions" or "rivals", the record and the page get
    them, too."""
    rows = region_results(context, subjects, variants)
    new_tables = region_tables(rows, record or "regions")
    text = "\n\n".join(new_tables.values())
    print(text)
    with writing(context.work / "docs" / "regions.md", "w") as file:
        file.write(text + "\n")
    if record:
        print(write_record(record, rows))
        page = ROOT / "docs" / "evaluation.md"
        new_page = filled(page.read_text("utf-8"), new_tables)
        with writing(page, "w") as file:
            file.write(new_page)


def _save_pictures(
    context: Context, results: Results, methods: Sequence[Method], subjects: Sequence[str], pictures: Path
) -> None:
    """The plot, and sheets of what was drawn."""
    with writing(pictures / "evaluation.svg", "w") as file:
        file.write(scatter(marks_of(results), across="image similarity", up="text similarity"))
    overview = [method for method in methods if method.group != "ablation"]
    save_sheet(pictures / "evaluation-overview.png", overview_sheet(context, overview, subjects, 0))
    for method in overview:
        sheet = method_sheet(context, method, subjects, method.settings(context.plan)[0])
        save_sheet(pictures / f"evaluation-{method.name}.png", sheet)


def marks_of(results: Results) -> list[Mark]:
    """The sliders of one Perfusion file, and the points of the base model and of everything else that was tuned."""
    base, truth = (
        (interval([row["image"] for row in rows.values()]), interval([row["text"] for row in rows.values()]))
        for rows in (results.base, results.truth)
    )
    marks = [
        Mark(title="base model, plain noun", points=(base,)),
        Mark(title="true pictures of the subject", points=(truth,)),
    ]
    for line in sliders(results):
        points, labels = tuple(map(_place, line.points)), line.labels
        default = [at for at, one in enumerate(line.points) if one.setting.bias == DEFAULT_BIAS]
        if line.from_base:
            points, labels, default = (base, *points), ("", *labels), []
        marks.append(
            Mark(
                title=f"Perfusion, {line.title}", points=points, labels=labels, dashed=line.lock == "global",
                barred=default[0] if default else -1,
            )
        )  # fmt: skip
    for method in METHODS:
        if method.group == "baseline" or method.name == "perfusion-tuned":
            marks += _marks_of(results.of(method.name), method)
    return marks


def _marks_of(points: Sequence[Point], method: Method) -> Iterator[Mark]:
    """A method's points: by scale, and for each scale those that start late."""
    at_once = sorted(
        (point for point in points if not point.setting.start), key=lambda point: point.setting.scale
    )
    if at_once:
        labels = tuple(f"×{point.setting.scale:g}" for point in at_once) if method.scales else ()
        default = next((at for at, point in enumerate(at_once) if point.setting == Setting()), 0)
        yield Mark(title=method.title, points=tuple(map(_place, at_once)), labels=labels, barred=default)
    late = [point for point in points if point.setting.start]
    for scale in sorted({point.setting.scale for point in late}):
        group = sorted(
            (point for point in late if point.setting.scale == scale), key=lambda point: -point.setting.start
        )
        yield Mark(
            title=f"{method.title}{f' ×{scale:g}' if scale != 1 else ''}, by start",
            points=tuple(map(_place, group)), labels=tuple(f"{point.setting.start:g}" for point in group), dashed=True,
            barred=-1, like=method.title,
        )  # fmt: skip


def record_rows(results: Results, tuning: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure with its interval, for programs."""
    rows: list[dict[str, Any]] = []
    kinds = [("prompts", results.points), ("pairs", results.pairs)]
    if results.selected is not None:
        kinds.append(("prompts, with the seeds of the ablations", [results.selected]))
    for kind, points in kinds:
        for point in points:
            keys = list(dict.fromkeys(key for figures in point.figures.values() for key in figures))
            rows.append(
                {
                    "what": kind, "method": point.method.name, "setting": point.setting.label,
                    **{key: point.of(key).numbers() for key in keys},
                    "subjects": {
                        name: {key: round(value, 4) for key, value in figures.items()}
                        for name, figures in point.figures.items()
                    },
                }
            )  # fmt: skip
    for verdict in verdicts(results):
        rows.append(
            {
                "what": "front", "method": verdict.point.method.name, "setting": verdict.point.setting.label,
                "times_bytes": round(verdict.times_bytes, 2), "counts": verdict.counts,
                "is_below": verdict.is_below, "stands": verdict.stands,
                "confidence": round(verdict.confidence, 3),
                "margin": None if math.isinf(verdict.margin) else round(verdict.margin, 4),
            }
        )  # fmt: skip
    return [
        *rows,
        {"what": "trainings", **results.facts}, {"what": "tuning", **tuning}, {"what": "leakage", **results.leakage},
        {"what": "base", **results.base}, {"what": "base pairs", **results.base_pairs},
        {"what": "truth", **results.truth}, {"what": "truth pairs", **results.truth_pairs},
        {"what": "engines", "least_decibels": round(results.engines, 1)},
        {"what": "another seed", "levels": round(results.other_seed, 2)},
    ]  # fmt: skip


def _place(point: Point) -> tuple[Interval, Interval]:
    return point.of("image"), point.of("text")


def _check_trained(
    context: Context, methods: Sequence[Method], subjects: Sequence[str], tuning: Mapping[str, Any]
) -> None:
    """Refuse weights that were trained before the tuning chose otherwise."""
    for method in (method for method in methods if method.tuned):
        for subject in subjects:
            folder = trained_folder(method, subject)
            facts = json.loads((context.work / folder / "facts.json").read_text("utf-8"))
            for key in ("rate", "masks", "steps"):
                # there were masks before there was a choice
                used, wanted = facts.get(key, True), tuning[method.name][key]
                if used != wanted:
                    raise RequestError(
                        f"{folder} was trained with {key} {used}, and the tuning has chosen {wanted} since; delete "
                        f"{method.name} in train, draw and measure, and run these stages again"
                    )


def _chosen(context: Context) -> dict[str, Any]:
    path = context.work / CHOSEN
    tuning: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return tuning
