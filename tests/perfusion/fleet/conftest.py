"""Lists of trainings, and a double of Ray that runs its actors in this process."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfusion.commands.fleet import fleet_parser
from perfusion.fleet.fleet_job import FleetJob, read_jobs
from perfusion.training.job_list import list_defaults

SUBJECTS = Path(__file__).parents[3] / "examples" / "subjects"
SUPERCLASSES = {"pug": "dog"}  # else a subject's name ends in its own
SHORT = ("--steps", "2", "--batch-size", "2", "--masks", "none", "--no-sheet", "--device", "cpu")


def options_of(*arguments: str) -> Namespace:
    """What perfusion-fleet takes for its rows' defaults."""
    return list_defaults(fleet_parser().parse_args(["train", "jobs.csv", *SHORT, *arguments]))


@pytest.fixture
def make_jobs(tmp_path: Path) -> Callable[..., tuple[FleetJob, ...]]:
    """The jobs of a list with these names of examples' subjects."""

    def jobs(*names: str, arguments: tuple[str, ...] = ()) -> tuple[FleetJob, ...]:
        path = tmp_path / "jobs.csv"
        rows = [f"{SUBJECTS / name},{SUPERCLASSES.get(name, name.split('-')[-1])},<{name}>" for name in names]
        path.write_text("\n".join(["images,superclass,token", *rows]), "utf-8")
        return read_jobs(path, options_of(*arguments))

    return jobs


class RayActorError(Exception):
    """What Ray raises where an actor has died."""


class RayTaskError(Exception):
    """What Ray raises where an actor's call has."""


class RayDouble:
    """Ray's part that a fleet uses, in this process: a call is done when its answer is waited for.

    `workers` counts the actors that were made; a worker that raises `RayActorError` counts as dead.
    """

    class exceptions:  # noqa: N801, as Ray spells it
        RayActorError, RayTaskError = RayActorError, RayTaskError

    def __init__(self) -> None:
        self.workers = 0
        self.killed: list[Any] = []
        self.most_out = 0

    def remote(self, worker: type[Any]) -> _Remote:
        return _Remote(self, worker)

    def wait(self, references: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        self.most_out = max(self.most_out, len(references))
        return references[:num_returns], references[num_returns:]

    def get(self, reference: Callable[[], Any]) -> Any:
        return reference()

    def kill(self, worker: Any) -> None:
        self.killed.append(worker)


class _Remote:
    def __init__(self, ray: RayDouble, worker: type[Any]) -> None:
        self._ray, self._worker = ray, worker

    def options(self, **_: Any) -> _Remote:
        return self

    def remote(self, *arguments: Any) -> Namespace:
        self._ray.workers += 1
        worker = self._worker(*arguments)
        return Namespace(train=Namespace(remote=lambda job: lambda: worker.train(job)))


@pytest.fixture
def ray() -> RayDouble:
    return RayDouble()
