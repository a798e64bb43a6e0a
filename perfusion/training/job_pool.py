"""Many trainings on one machine: a process for each device, which opens the base model once and takes the next job."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from perfusion.errors import PerfusionError
from perfusion.training.training_job import TrainingJob, TrainingReport, run_job

if TYPE_CHECKING:
    from perfusion.base.base_model import BaseModel
    from perfusion.training.trainer import Report

__all__ = ["JobRunner", "Outcome", "train_on_devices"]

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one job: a report, or the sentence of an error."""

    job: TrainingJob
    device: str
    report: TrainingReport | None = None
    error: str = ""


class JobRunner:
    """Trains one job after another, in this process, and keeps the base model open while the jobs agree on it."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._base: BaseModel | None = None
        self._placed = ExitStack()

    def __enter__(self) -> JobRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(
        self, job: TrainingJob, *, resume: bool, say: Say, report: Report | None = None
    ) -> TrainingReport:
        """Train one job; see `run_job`."""
        return run_job(job, self._open(job), resume=resume, say=say, report=report)

    def _open(self, job: TrainingJob) -> BaseModel:
        """The base model for a job, on its device and frozen."""
        from perfusion.training.placement import Placement, frozen_on_device, open_base

        placement = Placement.pick(job.config.device, job.config.precision)
        key = (*job.base_key, placement)
        if self._base is None or key != self._key:
            self._close()
            base = open_base(job.model, job.model_config, job.config, placement, job.model_options)
            placed = frozen_on_device(base, placement.device, checkpointing=job.config.checkpointing)
            self._placed.enter_context(placed)
            self._base, self._key = base, key
        return self._base

    def _close(self) -> None:
        self._placed.close()
        self._base = self._key = None


def train_on_devices(
    jobs: Sequence[TrainingJob], devices: Sequence[str], *, resume: bool, say: Say
) -> Iterator[Outcome]:
    """Train all jobs, each on the device that is free first. Jobs that share a base model come together.

    A job that fails does not stop the others, nor does a process that dies: its device goes on with a new one. The
    processes end with this generator.

    Args:
        devices: "cpu", "cuda:0", ...; one that is named twice trains two jobs at once.
        say: told what the trainings say, with the device and the file in front.

    Yields:
        Outcomes, in the order in which the jobs end.
    """
    waiting = sorted(jobs, key=lambda job: str(job.base_key))
    workers = [_Worker(device, resume) for device in list(devices)[: len(jobs)]]
    try:
        for worker in workers:
            worker.begin(waiting.pop(0))
        while busy := {worker.connection: worker for worker in workers if worker.job}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                message = worker.receive()
                if isinstance(message, str):
                    say(f"{worker.device}, {worker.job.output.name}: {message}" if worker.job else message)
                    continue
                yield message
                worker.job = None
                if waiting:
                    worker.begin(waiting.pop(0))
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process on one device, as seen from the one that gives it jobs."""

    def __init__(self, device: str, resume: bool) -> None:
        self.device, self.resume = device, resume
        self.job: TrainingJob | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.device, self.resume), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, job: TrainingJob) -> None:
        """Hand it a job."""
        self.job = replace(job, config=replace(job.config, device=self.device))
        with suppress(OSError):  # it has died: `receive` will find out
            self.connection.send(self.job)

    def receive(self) -> str | Outcome:
        """A line that the training says, or what became of it."""
        assert self.job is not None
        try:
            message: str | Outcome = self.connection.recv()
            return message
        except (EOFError, OSError):
            self._process.join()
            code, job = self._process.exitcode, self.job
            self._start()
            error = f"Its process ended with the code {code}, as when memory runs out. Train fewer at once."
            return Outcome(job=job, device=self.device, error=error)

    def end(self) -> None:
        """End the process, also in the middle of a training: its state is kept."""
        self.connection.close()
        if self.job is not None:
            self._process.terminate()
        self._process.join()


class _Forwarding(logging.Handler):
    """Sends warnings on to the process that speaks."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        super().__init__(logging.WARNING)
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(f"{record.levelname.lower()}: {record.getMessage()}")


def _serve(connection: Connection[Any, Any], device: str, resume: bool) -> None:
    """What a worker's process does: train what it is sent, until nothing more comes."""
    logging.getLogger("perfusion").addHandler(_Forwarding(connection))
    with JobRunner() as runner:
        while True:
            try:
                job: TrainingJob = connection.recv()
            except (EOFError, KeyboardInterrupt):
                return
            try:
                report = runner(job, resume=resume, say=connection.send)
                connection.send(Outcome(job=job, device=device, report=report))
            except (PerfusionError, OSError) as error:
                connection.send(Outcome(job=job, device=device, error=str(error)))
            except KeyboardInterrupt:
                return
