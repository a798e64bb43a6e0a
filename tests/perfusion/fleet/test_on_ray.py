"""Real Ray on this machine, with workers and a driver that die at the worst moments. Slow, and only where Ray is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from perfusion.files import sha256_of
from perfusion.fleet.cluster import cluster
from perfusion.fleet.fleet_training import FleetOptions, train_fleet
from perfusion.fleet.fleet_worker import FleetWorker
from perfusion.training.training_job import run_job

ray_package = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow

ALL = (
    "pug", "gold-hat", "pink-cake", "old-robot", "grey-fish", "green-bus", "grey-penguin", "pink-mushroom",
    "purple-owl", "rainbow-umbrella", "school-bus", "tuxedo-cat",
)  # fmt: skip
LONGER = ("--steps", "12", "--save-every", "4")


class Dying(FleetWorker):
    """Dies once for every job whose name has a p in it, between the result and its answer."""

    def train(self, job):
        answer = super().train(job)
        mark = self._store.workplace(f"{job.name}.died", job.id)
        if "p" in job.name.partition(".")[0] and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


def expected(jobs, folder):
    """What perfusion-train makes of them, in this process with one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in jobs:
            training = replace(job.training, output=folder / job.name)
            run_job(training, None, resume=False, say=lambda line: None)
    finally:
        torch.set_num_threads(threads)
    return {job.name: sha256_of(folder / job.name) for job in jobs}


def test_workers_that_die_after_their_result_train_nothing_twice(make_jobs, tmp_path):
    jobs = make_jobs(*ALL)
    ray_package.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    out = tmp_path / "out"
    with cluster(None, cpus=2) as ray:
        outcomes = list(train_fleet(ray, jobs, str(out), FleetOptions(workers=2), Dying))
    assert len(outcomes) == len(ALL) and all(outcome.manifest for outcome in outcomes)
    dying = {name for name in ALL if "p" in name}
    assert {outcome.job.name.partition(".")[0] for outcome in outcomes if outcome.tries == 2} == dying
    hashes = {outcome.job.name: outcome.manifest.sha256 for outcome in outcomes if outcome.manifest}
    assert hashes == {job.name: sha256_of(out / job.name) for job in jobs}  # published once, and left so
    some = jobs[:3]
    (tmp_path / "alone").mkdir()
    assert expected(some, tmp_path / "alone") == {job.name: hashes[job.name] for job in some}


def test_a_worker_and_a_driver_that_are_killed_lose_nothing(make_jobs, tmp_path):
    jobs = make_jobs(*ALL[:4], arguments=LONGER)
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "perfusion.commands.fleet", "train", str(tmp_path / "jobs.csv"), "--output", str(out),
        "--workers", "2", "--steps", "12", "--save-every", "4", "--batch-size", "2", "--masks", "none", "--no-sheet",
        "--device", "cpu", "--json", "--quiet",
    ]  # fmt: skip
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    work = _wait_for(lambda: next(iter(out.glob("*.work/state.safetensors")), None))
    os.kill(int((work.parent / "lock").read_text().split()[0]), signal.SIGKILL)  # a worker, after a snapshot
    _wait_for(lambda: len(list(out.glob("*.json"))) >= 2 or driver.poll() is not None)
    driver.kill()
    driver.wait()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json") if path.name != "report.json"}
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    facts = json.loads(done.stdout)
    assert facts["failed"] == [] and facts["done"] == len(before)
    assert len(facts["trained"]) + facts["done"] == len(jobs)
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    (tmp_path / "alone").mkdir()
    assert expected(jobs, tmp_path / "alone") == {job.name: sha256_of(out / job.name) for job in jobs}
    assert not list(out.glob("*.work")) and not list(out.glob(".*.job"))
    report = json.loads((out / "report.json").read_text())
    assert {entry["state"] for entry in report["jobs"].values()} == {"done"}


def _wait_for(condition, seconds=600):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come")
