"""The stages in their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.evaluation.drawing import drawing_units
from benchmarks.evaluation.leakage import leakage_units
from benchmarks.evaluation.measuring import measuring_units
from benchmarks.evaluation.methods import Method, chosen_methods, trainings
from benchmarks.evaluation.plan import FULL, SMALL, TUNING_SUBJECTS, open_work, subject_named
from benchmarks.evaluation.prior import prior_units
from benchmarks.evaluation.regions import VARIANTS, Variant, chosen_variants, record_of, region_units
from benchmarks.evaluation.report import finished_methods, report, report_regions
from benchmarks.evaluation.training import training_units
from benchmarks.evaluation.tuning import choose, tuning_units, unmasking_units, widening_units
from benchmarks.evaluation.units import Context, Unit, duration, run_units
from benchmarks.record import ROOT

__all__ = ["run", "units_of"]


def run(
    stages: Sequence[str], *, work: Path | None, small: bool, processes: int, subjects: tuple[str, ...] | None,
    methods: tuple[str, ...] | None, variants: tuple[str, ...] | None = None, estimate: bool = False,
) -> None:  # fmt: skip
    """Do some stages for some subjects and methods; None: all of them. `variants` are those of the stage regions.

    Raises:
        RequestError: a name that is nobody's, or a work folder of another plan.
        PerfusionError: a stage could not be done.
    """
    plan = SMALL if small else FULL
    folder = work or ROOT / "build" / ("evaluation-small" if small else "evaluation")
    context = Context(plan=plan, work=folder)
    named_subjects, named_methods = subjects or plan.subjects, chosen_methods(methods)
    named_variants = chosen_variants(variants)
    for name in named_subjects:
        subject_named(name)
    open_work(folder, plan)
    partial = small or subjects is not None or methods is not None
    for stage in stages:
        if stage == "report":
            if not estimate:
                finished = finished_methods(context, named_methods, named_subjects)
                report(context, finished, named_subjects, publish=finished == named_methods and not partial)
            continue
        for title, units in units_of(stage, named_methods, named_subjects, context, named_variants):
            _do(title, units, context, processes, estimate)
        if stage == "regions" and not estimate:
            record = None if small or subjects else record_of(named_variants)
            report_regions(context, named_subjects, named_variants, record)
        if stage == "tune" and not estimate:
            while units := widening_units(named_methods, context):
                _do("tuning beyond the grid", units, context, processes, estimate)
            _do("tuning without masks", unmasking_units(named_methods, context), context, processes, estimate)
            choose(named_methods, context)


def _do(title: str, units: Sequence[Unit], context: Context, processes: int, estimate: bool) -> None:
    """Say what there is to do and, unless only the estimate was asked for, do it."""
    waiting = [unit for unit in units if not (context.work / unit.path).exists()]
    cost = sum(unit.cost for unit in waiting)
    print(f"{title}: {len(waiting)} of {len(units)} to do, about {duration(cost / processes)}", flush=True)
    if not estimate:
        run_units(units, context, processes, lambda line: print(line, flush=True))


def units_of(
    stage: str, methods: Sequence[Method], subjects: Sequence[str], context: Context,
    variants: Sequence[Variant] = VARIANTS,
) -> list[tuple[str, list[Unit]]]:  # fmt: skip
    """The units of a stage in groups, each of which needs the ones before."""
    plan = context.plan
    if stage == "regions":
        return region_units(context, subjects, variants)
    if stage == "tune":
        return [
            ("prior pictures for tuning", prior_units({subject.noun for subject in TUNING_SUBJECTS}, plan)),
            ("tuning", tuning_units(methods, plan)),
        ]
    if stage == "train":
        return [
            ("prior pictures", prior_units({subject_named(name).noun for name in subjects}, plan)),
            ("training", training_units(trainings(methods), subjects, plan)),
        ]
    if stage == "draw":
        return [("drawing", drawing_units(methods, subjects, plan))]
    return [
        ("measuring", measuring_units(methods, subjects, plan)),
        ("attention", leakage_units(methods, subjects, plan)),
    ]
