"""One training with everything around it: what is read, what is written, and what is said of it at the end."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.base.model_arguments import model_options
from perfusion.concept.concept_file import Concept
from perfusion.errors import TrainingError
from perfusion.files import check_writable, writing
from perfusion.pocket.vocabulary import article
from perfusion.training.config import TrainingConfig
from perfusion.training.loss_log import losses_path, open_loss_log
from perfusion.training.training_options import config_of

if TYPE_CHECKING:
    from perfusion.base.base_model import BaseModel
    from perfusion.base.model_options import ModelOptions
    from perfusion.training.trainer import Report, TrainingResult
    from perfusion.training.work_folder import WorkFolder

__all__ = ["TrainingJob", "TrainingReport", "finish", "run_job"]

_SWITCHES = {name: name for name in ("--masks", "--superclass", "--steps", "--model", "--scorer")}

SUFFIXES = ("", ".safetensors", ".png")


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to learn, how, and where it is written."""

    images: Path
    output: Path
    config: TrainingConfig
    model: Path | None = None
    """None: the embedded model."""
    model_config: Path | None = None
    model_options: ModelOptions | None = None
    storage: str = "float16"
    keys: bool = True
    keep_snapshots: bool = False
    keep_state: bool = False
    log_losses: str = ""
    """One of `loss_log.KINDS`, or nothing."""
    sheet: bool = True

    def __post_init__(self) -> None:
        if self.output.suffix.lower() not in SUFFIXES:
            raise TrainingError(
                f"{self.output} is neither a .safetensors file nor a .png picture with the concept inside; name one."
            )

    @classmethod
    def of(cls, args: argparse.Namespace) -> TrainingJob:
        """The job that parsed options of `add_training_options` ask for.

        Raises:
            TrainingError: a value that no training can have, or an output of another kind.
        """
        return cls(
            images=args.images, output=args.output, config=config_of(args), model=args.model, model_config=args.config,
            model_options=model_options(args), storage=args.storage, keys=not args.no_keys,
            keep_snapshots=args.keep_snapshots, keep_state=args.keep_state, log_losses=args.log_losses or "",
            sheet=args.sheet,
        )  # fmt: skip

    @property
    def sheet_path(self) -> Path | None:
        """cat.sheet.png for cat.safetensors and for cat.png; None where no sheet is wanted."""
        if not self.sheet:
            return None
        return self.output.with_name(
            f"{self.output.stem if self.output.suffix else self.output.name}.sheet.png"
        )

    @property
    def losses_path(self) -> Path | None:
        """cat.losses.csv or the folder cat.losses; None where no losses are wanted."""
        return losses_path(self.output, self.log_losses) if self.log_losses else None

    @property
    def written(self) -> tuple[Path, ...]:
        """All that the job writes: the concept first."""
        return tuple(path for path in (self.output, self.sheet_path, self.losses_path) if path is not None)

    @property
    def base_key(self) -> tuple[object, ...]:
        """Jobs with equal keys, on one device, may train on one opened base model."""
        config = self.config
        return (
            self.model,
            self.model_config,
            self.model_options,
            config.precision,
            config.weights,
            config.checkpointing,
        )

    def check_outputs(self) -> None:
        """Refuse outputs that cannot be written.

        Raises:
            PerfusionError: which, and why.
        """
        for path in self.written:
            if path != self.losses_path or self.log_losses == "csv":
                check_writable(path)

    def kept_step(self) -> int | None:
        """The step of a training of this output that was interrupted; None where there is none."""
        from perfusion.training.work_folder import WorkFolder

        work = WorkFolder(self.output)
        return work.last_step() if work.state_path.exists() else None

    def is_done(self) -> bool:
        """Whether the output is there, finished, and that of this very job.

        Raises:
            TrainingError: it is that of other settings, so there is nothing to resume.
            ConceptError: it is damaged.
        """
        if not self.output.is_file() or self.kept_step() is not None:
            return False
        concept, config = Concept.load(self.output), self.config
        facts = {"token": concept.token, "superclass": concept.superclass, **concept.training}
        expected = {
            "token": config.token, "superclass": config.superclass, "steps": str(config.steps),
            "seed": str(config.seed), "batch_size": str(config.batch_size),
        }  # fmt: skip
        differing = [name for name, value in expected.items() if facts.get(name, value) != value]
        if differing:
            changes = ", ".join(f"{name} ({facts[name]} then, {expected[name]} now)" for name in differing)
            raise TrainingError(
                f"{self.output} is finished, with other settings: {changes}; its state is not kept. Train it anew "
                "without --resume, or choose another --output."
            )
        return True


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What was done, in what JSON can hold and in lines for people."""

    facts: dict[str, Any]
    lines: tuple[str, ...]
    table: str = ""
    """Of the snapshots that were chosen from."""


def run_job(
    job: TrainingJob, base: BaseModel | None, *, resume: bool, say: Callable[[str], None], report: Report | None = None
) -> TrainingReport:  # fmt: skip
    """Train, write the file and its sheet, and clear up.

    Args:
        base: opened for `TrainingJob.base_key`; None: it is opened here.

    Raises:
        PerfusionError: as `train`; or an output cannot be written.
    """
    from perfusion.training.trainer import train
    from perfusion.training.work_folder import WorkFolder

    began, work = time.monotonic(), WorkFolder(job.output)
    with work.locked(), open_loss_log(job.losses_path, job.log_losses) as losses:
        result = train(
            job.images, job.config, model=base or job.model, model_config=job.model_config,
            model_options=job.model_options, say=say, report=report, work=work, resume=resume,
            picture=job.output.suffix.lower() == ".png", trial=job.sheet, losses=losses,
        )  # fmt: skip
        return finish(job, result, work, time.monotonic() - began)


def finish(job: TrainingJob, result: TrainingResult, work: WorkFolder, seconds: float) -> TrainingReport:
    """Write what was learned, drop the state, and say what was done."""
    result.concept.save(job.output, job.storage, keys=job.keys, picture=result.picture)
    if job.sheet_path is not None and result.trial is not None:
        with writing(job.sheet_path) as file:
            result.trial.sheet.save(file, "PNG", optimize=True)
    work.finish(keep=job.keep_snapshots, keep_state=job.keep_state)
    return _report(job, result, seconds)


def _report(job: TrainingJob, result: TrainingResult, seconds: float) -> TrainingReport:
    concept, steps, size = result.concept, job.config.steps, job.output.stat().st_size
    facts: dict[str, Any] = {
        "output": str(job.output), "bytes": size, "token": concept.token, "superclass": concept.superclass,
        "base": concept.base, "strength": concept.strength, "steps": steps, "seconds": round(seconds, 2),
        "loss": round(result.loss, 5),
    }  # fmt: skip
    chosen, table = "", ""
    if result.selection:
        facts |= {"chosen_step": result.selection.best.step, "choice": result.selection.why}
        facts["snapshots"] = json.loads(result.selection.to_json())
        chosen, table = f"step {result.selection.best.step} of {steps}, ", result.selection.table()
    weaker = "" if concept.strength == 1 else f"strength {concept.strength:g}, "
    summary = f"{concept.token} is {article(concept.superclass)}; {chosen}{weaker}{size / 1000:.1f} kB, {seconds:.0f} s"
    lines = [f"{job.output}: {summary}"]
    if job.losses_path is not None:
        facts["losses"] = str(job.losses_path)
    if result.trial:
        facts |= {"verdict": result.trial.as_dict(), "sheet": str(job.sheet_path)}
        lines.append(f"{job.sheet_path}: {result.trial.tell(_SWITCHES)}")
    return TrainingReport(facts=facts, lines=tuple(lines), table=table)
