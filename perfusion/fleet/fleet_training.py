"""Jobs go out to workers and results come back, whoever dies on the way.

Ray starts the workers, sees them die and says so; which job runs next, and how often it is tried, is decided here. A
worker has one job at a time. What is out at any moment is bounded by the number of workers.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from perfusion.errors import TrainingError
from perfusion.fleet.cluster import last_line
from perfusion.fleet.fleet_job import FleetJob
from perfusion.fleet.fleet_worker import Answer, FleetWorker
from perfusion.fleet.result_store import Manifest, ResultStore

__all__ = ["FleetOptions", "FleetOutcome", "split_done", "train_fleet"]

POLL_SECONDS = 1.0  # between two looks at the workers, so that Ctrl-C is heard


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """How the jobs are spread.

    Raises:
        TrainingError: numbers that no fleet can have.
    """

    workers: int = 1
    cpus: int = 1
    """Cores of a worker, which are also its threads."""
    gpus: float = 0.0
    """Graphics cards of a worker."""
    tries: int = 3
    """How often a job is begun whose worker dies."""
    max_failures: int | None = None
    """So many jobs may fail before the rest is left undone; None: any number."""

    def __post_init__(self) -> None:
        for name in ("workers", "cpus", "tries"):
            if getattr(self, name) < 1:
                raise TrainingError(f"The fleet is to have {getattr(self, name)} {name}, expected 1 or more.")
        if self.max_failures is not None and self.max_failures < 0:
            raise TrainingError(f"--max-failures is {self.max_failures}, expected 0 or more.")


@dataclass(frozen=True, kw_only=True)
class FleetOutcome:
    """What became of one job."""

    job: FleetJob
    manifest: Manifest | None = None
    error: str = ""
    tries: int = 1


def split_done(
    jobs: Sequence[FleetJob], store: ResultStore
) -> tuple[list[tuple[FleetJob, Manifest]], list[FleetJob]]:
    """The jobs whose results are there already, and the others.

    Raises:
        TrainingError: a file that no fleet made has the name of a result.
    """
    done, left = [], []
    for job in jobs:
        manifest = store.manifest(job.name)
        if manifest is not None and manifest.id == job.id:
            done.append((job, manifest))
        else:
            store.refuse_foreign(job.name)
            left.append(job)
    return done, left


def train_fleet(
    ray: Any,
    jobs: Sequence[FleetJob],
    url: str,
    options: FleetOptions,
    worker: type[FleetWorker] = FleetWorker,
) -> Iterator[FleetOutcome]:
    """Train all jobs on a cluster; jobs that share a base model come together.

    Args:
        ray: what `cluster` gives.
        url: of the store.
        worker: what each of Ray's actors is.

    Yields:
        Outcomes, in the order in which the jobs end.

    Raises:
        TrainingError: more jobs fail than may.
    """
    waiting = deque(sorted(jobs, key=lambda job: str(job.training.base_key)))
    failures, tries = 0, Counter[str]()
    crew = _Crew(ray, url, options, worker, count=min(options.workers, len(waiting)))
    try:
        while waiting or crew.busy:
            crew.hand_out(waiting, tries)
            for job, answer in crew.answers():
                if answer.manifest is None and answer.may_pass and tries[job.id] < options.tries:
                    waiting.append(job)  # behind the others: what it failed for may be over then
                    continue
                failures += answer.manifest is None
                yield FleetOutcome(job=job, manifest=answer.manifest, error=answer.error, tries=tries[job.id])
            if options.max_failures is not None and failures > options.max_failures:
                raise TrainingError(
                    f"{failures} trainings failed, and --max-failures allows {options.max_failures}. What is done "
                    "stays; the same command goes on."
                )
    finally:
        crew.dismiss()


class _Crew:
    """The workers, each with the job that it has."""

    def __init__(
        self, ray: Any, url: str, options: FleetOptions, worker: type[FleetWorker], *, count: int
    ) -> None:
        self._ray, self._url, self._options, self._worker = ray, url, options, worker
        self._idle = [self._hire() for _ in range(count)]
        self._answers: dict[Any, tuple[Any, FleetJob]] = {}

    @property
    def busy(self) -> bool:
        """Whether a job is out."""
        return bool(self._answers)

    def hand_out(self, waiting: deque[FleetJob], tries: Counter[str]) -> None:
        """Give every idle worker the next job."""
        while waiting and self._idle:
            worker, job = self._idle.pop(), waiting.popleft()
            tries[job.id] += 1
            self._answers[worker.train.remote(job)] = worker, job

    def answers(self) -> Iterator[tuple[FleetJob, Answer]]:
        """What has come back; a worker that died is replaced."""
        ready, _ = self._ray.wait(list(self._answers), num_returns=1, timeout=POLL_SECONDS)
        for reference in ready:
            worker, job = self._answers.pop(reference)
            try:
                answer: Answer = self._ray.get(reference)
            except self._ray.exceptions.RayActorError as error:
                worker, answer = self._hire(), Answer(error=_death(error), may_pass=True)
            except self._ray.exceptions.RayTaskError as error:  # what a graphics card or a store may raise
                self._ray.kill(worker)  # after it the process, too, may be good for nothing
                worker = self._hire()
                answer = Answer(error=f"Its worker failed: {last_line(error)}", may_pass=True)
            self._idle.append(worker)
            yield job, answer

    def dismiss(self) -> None:
        """End all workers; what they have kept of their trainings stays."""
        for worker in (*self._idle, *(worker for worker, _ in self._answers.values())):
            self._ray.kill(worker)

    def _hire(self) -> Any:
        options = self._options
        placed = self._ray.remote(self._worker).options(
            num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=0, max_task_retries=0,
            runtime_env={"env_vars": _environment(options)},
        )  # fmt: skip
        return placed.remote(self._url, options.cpus)


def _death(error: Exception) -> str:
    """Why a worker died, as far as Ray knows."""
    if "creation task" in str(error):
        return f"Its worker did not start: {last_line(error)}"
    return "Its worker died, as when memory runs out. Use fewer workers."


def _environment(options: FleetOptions) -> dict[str, str]:
    """What the libraries of a worker read at their import."""
    own = {name: os.environ[name] for name in ("PERFUSION_CACHE",) if name in os.environ}
    return own | {"OMP_NUM_THREADS": str(options.cpus)}
