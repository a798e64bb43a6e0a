"""perfusion-train --jobs: a list of trainings, one after another or on several devices at once."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfusion.commands import Progress, clock, say
from perfusion.commands.train import NAME, ask_to_resume
from perfusion.errors import PerfusionError, TrainingError
from perfusion.training.job_list import list_defaults, read_job_list
from perfusion.training.job_pool import JobRunner, Outcome, train_on_devices
from perfusion.training.training_job import TrainingJob

__all__ = ["train_list"]


def train_list(args: argparse.Namespace) -> int:
    """Train every row of the list. A row that fails does not stop the others; the exit code tells of it."""
    if args.output.is_file() or args.output.suffix.lower() in (".safetensors", ".png"):
        raise TrainingError(f"{args.output} is a file's name, expected a folder for the concepts of --jobs.")
    jobs = read_job_list(args.jobs, args.output, list_defaults(args))
    for job in jobs:
        job.check_outputs()
    finished = [job for job in jobs if _is_finished(job, args)]
    left = [job for job in jobs if job not in finished]
    resume = args.resume or ask_to_resume(left, args)
    for job in finished:
        _say(args, f"{job.output} is done")
    if again := sum(map(_is_there, left)):
        _say(args, f"{again} of the files are there and are trained anew; --skip-existing leaves them out")
    began, outcomes = time.monotonic(), []
    for outcome in _outcomes(left, args, resume):
        outcomes.append(outcome)
        _tell(args, outcome, len(outcomes), len(left), time.monotonic() - began)
    failed = [outcome for outcome in outcomes if outcome.report is None]
    _print(args, outcomes, finished, time.monotonic() - began)
    return int(bool(failed))


def _is_finished(job: TrainingJob, args: argparse.Namespace) -> bool:
    if args.skip_existing and _is_there(job):
        return True
    return bool(args.resume and job.is_done())


def _is_there(job: TrainingJob) -> bool:
    """Whether its file is there, and nothing is kept of a training that would go on."""
    return job.output.is_file() and job.kept_step() is None


def _devices(args: argparse.Namespace, jobs: Sequence[TrainingJob]) -> list[str]:
    """The devices that were named, each looked for before anything is trained."""
    from perfusion.training.placement import Placement

    devices = [name.strip() for name in args.devices.split(",")] if args.devices else []
    if devices and any(job.config.device != args.device for job in jobs):
        raise TrainingError("The list has a column device, and --devices was given. Leave one of them out.")
    for name in dict.fromkeys(devices):
        Placement.pick(name, args.precision)
    return devices


def _outcomes(jobs: Sequence[TrainingJob], args: argparse.Namespace, resume: bool) -> Iterator[Outcome]:
    if not jobs:  # nothing that would be worth opening torch for
        return
    devices = _devices(args, jobs)
    if len(devices) < 2:
        jobs = (
            [replace(job, config=replace(job.config, device=devices[0])) for job in jobs] if devices else jobs
        )
        yield from _one_after_another(jobs, args, resume)
        return
    yield from train_on_devices(jobs, devices, resume=resume, say=lambda line: _say(args, line))


def _one_after_another(
    jobs: Sequence[TrainingJob], args: argparse.Namespace, resume: bool
) -> Iterator[Outcome]:
    """In this process, with a bar for each; the base model stays open between them."""
    with JobRunner() as runner:
        for number, job in enumerate(sorted(jobs, key=lambda job: str(job.base_key)), 1):
            label = f"training {job.config.token} ({number} of {len(jobs)})"
            try:
                with Progress(job.config.steps, label, args.quiet) as progress:
                    report = runner(
                        job, resume=resume, say=lambda line: _say(args, line),
                        report=lambda step, loss: progress.update(step, loss=f"{loss:.4f}"),
                    )  # fmt: skip
                yield Outcome(job=job, device=job.config.device, report=report)
            except (PerfusionError, OSError) as error:
                yield Outcome(job=job, device=job.config.device, error=str(error))
            except (KeyboardInterrupt, SystemExit):
                say(f"{NAME}: what is done stays; the same command with --resume goes on with {job.output}")
                raise


def _say(args: argparse.Namespace, line: str) -> None:
    if not args.quiet:
        say(f"{NAME}: {line}")


def _tell(args: argparse.Namespace, outcome: Outcome, number: int, count: int, seconds: float) -> None:
    """A line as soon as a training ends; what fails is told however quiet it is to be."""
    if outcome.report is None:
        say(f"{NAME}: {outcome.job.output}: {outcome.error}")
    elif not args.json:
        rest = f", {clock(seconds / number * (count - number))} left" if number < count else ""
        print(f"{number} of {count}{rest}", *outcome.report.lines, sep="\n", flush=True)


def _print(
    args: argparse.Namespace, outcomes: Sequence[Outcome], finished: Sequence[TrainingJob], seconds: float
) -> None:
    trained = [outcome.report.facts for outcome in outcomes if outcome.report is not None]
    failed = [
        {"output": str(outcome.job.output), "error": outcome.error}
        for outcome in outcomes
        if outcome.report is None
    ]
    if args.json:
        facts: dict[str, Any] = {
            "trained": trained, "failed": failed, "done": [str(job.output) for job in finished],
            "seconds": round(seconds, 2),
        }  # fmt: skip
        print(json.dumps(facts))
        return
    grades = [facts["verdict"]["grade"] for facts in trained if "verdict" in facts]
    counts = [f"{grades.count(grade)} {grade}" for grade in dict.fromkeys(grades)]
    parts = [f"{len(trained)} trained", *counts, f"{len(failed)} failed", f"{len(finished)} done before"]
    print(f"{Path(args.output)}: {', '.join(parts)}; {seconds:.0f} s")
