"""The stage that trains: every method on every subject, at the rate and step that its tuning found."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.evaluation.ablations import train_variant
from benchmarks.evaluation.baselines import LEARNERS, train_baseline
from benchmarks.evaluation.methods import Method, method_named
from benchmarks.evaluation.models import base_model, config_of
from benchmarks.evaluation.plan import Plan, pictures_of, subject_named
from benchmarks.evaluation.units import Context, Unit
from perfusion.files import writing
from perfusion.training import train
from perfusion.training.work_folder import WorkFolder

__all__ = ["CHOSEN", "saved_bytes", "train_method", "trained_folder", "training_units"]

CHOSEN = Path("tune") / "chosen.json"
"""For each method its best rate and step."""

Save = Callable[[Path], None]


def training_units(methods: Sequence[Method], subjects: Sequence[str], plan: Plan) -> list[Unit]:
    """One for each training and subject."""
    return [
        Unit(
            path=trained_folder(method, name) / "facts.json",
            cost=method.seconds_per_step * plan.steps + 10,
            call=train_unit,
            arguments=(method.name, name),
        )
        for name in subjects
        for method in methods
    ]


def trained_folder(method: Method, subject: str) -> Path:
    """Where a method's weights for a subject lie, relative to the work folder, also if another training left them."""
    return Path("train") / method.name / subject


def train_unit(context: Context, name: str, subject_name: str) -> None:
    """Train, and keep what its users would keep; facts.json comes last and says that all is there."""
    method = method_named(name)
    folder = context.work / trained_folder(method, subject_name)
    folder.mkdir(parents=True, exist_ok=True)
    rate, steps, masks = method.factor, context.plan.steps, True
    if method.tuned:
        tuned = json.loads((context.work / CHOSEN).read_text("utf-8"))[name]
        rate, steps, masks = tuned["rate"], tuned["steps"], tuned["masks"]
    start_time, start_work = time.perf_counter(), time.process_time()
    if method.name == "perfusion":
        _train_as_shipped(context, subject_name, folder)
    else:

        def keep(step: int, save: Save) -> None:
            if step == steps:
                save(folder)

        train_method(context, method, subject_name, rate, steps, keep, masks)
    facts = {
        "rate": rate, "steps": steps, "masks": masks, "seconds": round(time.perf_counter() - start_time, 1),
        "core_seconds": round(time.process_time() - start_work, 1), "bytes": saved_bytes(folder),
    }  # fmt: skip
    with writing(folder / "facts.json", "w") as file:
        file.write(json.dumps(facts))


def train_method(
    context: Context,
    method: Method,
    subject_name: str,
    rate: float,
    steps: int,
    keep: Callable[[int, Save], None],
    masks: bool = True,
) -> None:
    """Train one method on one subject; `keep` is called at every checkpoint. Without `masks` the error counts in the
    whole picture."""
    subject, plan = subject_named(subject_name), context.plan
    if method.name in LEARNERS:
        train_baseline(plan, context.work, subject, method.name, rate, steps, keep, masks)
        return
    options = dict(method.options) | ({} if masks else {"masks": "none"}) | {"steps": steps}
    config = config_of(plan, subject, pictures_of(context.work, subject), select="last", **options)
    lr_values = base_model().lr_values * rate
    config = replace(config, lr_embedding=config.lr_embedding * rate, lr_values=lr_values)
    train_variant(plan, context.work, subject, config, method.name, keep)


def saved_bytes(folder: Path) -> int:
    """Of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _train_as_shipped(context: Context, subject_name: str, folder: Path) -> None:
    """`perfusion-train` with its defaults, but for the steps, which are everybody's; and beside the concept that it
    chooses the one of the last step."""
    subject, plan = subject_named(subject_name), context.plan
    pictures = pictures_of(context.work, subject)
    with tempfile.TemporaryDirectory() as kept:
        work = WorkFolder(Path(kept) / "concept.safetensors")
        result = train(pictures, config_of(plan, subject, pictures), model=base_model(), work=work)
        last = work.concepts(up_to=plan.steps)[plan.steps]
    unselected = folder.parent.parent / "unselected" / subject_name
    shutil.rmtree(unselected, ignore_errors=True)
    last.save(unselected / "concept.safetensors")
    result.concept.save(folder / "concept.safetensors")
