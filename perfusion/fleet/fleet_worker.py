"""What a worker of a fleet does: it holds a base model open, and trains one job after another.

It may die at any moment. What it has kept of a training is found by the next one, and what it has published is not
trained again.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from perfusion.errors import PerfusionError
from perfusion.files import sha256_of
from perfusion.fleet.fleet_job import FleetJob
from perfusion.fleet.result_store import Manifest, ResultStore
from perfusion.locking import HeldError
from perfusion.training.job_pool import JobRunner
from perfusion.training.training_job import TrainingJob

__all__ = ["Answer", "FleetWorker"]

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker says of a job: its manifest, or the sentence of an error."""

    manifest: Manifest | None = None
    error: str = ""
    may_pass: bool = False
    """Whether the error may be another one's or the machine's, so that trying again may help."""


class FleetWorker:
    """One process; on a cluster a Ray actor.

    Args:
        url: of the store.
        threads: of the processor; None: torch's own choice.
    """

    patience: ClassVar[float] = 120.0
    """Seconds that a job waits for another process that writes the same file: the worker of a command that was killed
    may live on for some, and publish it."""

    def __init__(self, url: str, threads: int | None = None) -> None:
        self._store = ResultStore(url)
        self._runner = JobRunner()
        if threads is not None:
            import torch

            torch.set_num_threads(threads)

    def train(self, job: FleetJob) -> Answer:
        """Train a job, or go on with what was kept of it, and publish the result."""
        ends = time.monotonic() + self.patience
        while True:
            try:
                manifest = self._store.manifest(job.name)
                if manifest is not None and manifest.id == job.id:  # published, and the answer was lost
                    return Answer(manifest=manifest)
                return Answer(manifest=self._train(job))
            except PerfusionError as error:
                if not isinstance(error.__cause__, HeldError) or time.monotonic() >= ends:
                    return Answer(error=str(error))
            except (OSError, MemoryError) as error:
                return Answer(error=f"{type(error).__name__}: {error}", may_pass=True)
            time.sleep(_POLL_SECONDS)

    def _train(self, job: FleetJob) -> Manifest:
        training = self._placed(job)
        report = self._runner(training, resume=training.kept_step() is not None, say=lambda line: None)
        manifest = Manifest(
            name=job.name, id=job.id, sha256=sha256_of(training.output), worker=f"{socket.gethostname()}:{os.getpid()}",
            facts={name: value for name, value in report.facts.items() if name not in ("output", "sheet", "losses")},
        )  # fmt: skip
        self._store.publish(manifest, training.output.parent, _files(training))
        if not self._store.is_local:
            shutil.rmtree(training.output.parent, ignore_errors=True)
        return manifest

    def _placed(self, job: FleetJob) -> TrainingJob:
        """The training with the place where its files are written, a state of another job of that name dropped."""
        output = self._store.workplace(job.name, job.id)
        output.parent.mkdir(parents=True, exist_ok=True)
        training = replace(job.training, output=output)
        if training.kept_step() is not None and self._store.claimant(job.name) != job.id:
            shutil.rmtree(output.with_name(f"{output.name}.work"), ignore_errors=True)
        self._store.claim(job.name, job.id)
        return training


def _files(training: TrainingJob) -> list[Path]:
    """What the training has written, a folder's files one by one."""
    return [
        path
        for written in training.written
        for path in (sorted(written.rglob("*")) if written.is_dir() else [written])
        if path.is_file()
    ]
