"""Which job runs next, how often it is tried, and what is published, whoever dies."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import pytest

from perfusion.errors import TrainingError
from perfusion.files import sha256_of
from perfusion.fleet.fleet_training import FleetOptions, FleetOutcome, split_done, train_fleet
from perfusion.fleet.fleet_worker import Answer, FleetWorker
from perfusion.fleet.result_store import Manifest, ResultStore
from perfusion.locking import lock
from tests.perfusion.fleet.conftest import RayActorError, RayTaskError

NAMES = ("pug", "gold-hat", "pink-cake", "old-robot", "grey-fish")


def worker_that(answer):
    """A worker whose answer to a job is that of a function of its name and how often it was tried."""
    calls = Counter[str]()

    class Worker(FleetWorker):
        def __init__(self, url, threads=None):
            self.url = url

        def train(self, job):
            calls[job.name] += 1
            return answer(job, calls[job.name])

    return Worker, calls


def done(job):
    return Answer(manifest=Manifest(name=job.name, id=job.id, sha256="0" * 64, worker="here:1"))


def test_every_job_is_done_once_and_no_more_are_out_than_there_are_workers(ray, make_jobs):
    worker, calls = worker_that(lambda job, tries: done(job))
    jobs = make_jobs(*NAMES)
    outcomes = list(train_fleet(ray, jobs, "memory://a", FleetOptions(workers=2), worker))
    assert sorted(outcome.job.name for outcome in outcomes) == sorted(job.name for job in jobs)
    assert set(calls.values()) == {1} and ray.most_out == ray.workers == 2 == len(ray.killed)


def test_a_job_whose_worker_dies_is_begun_again_by_a_new_one(ray, make_jobs):
    def answer(job, tries):
        if job.name == "pug.safetensors" and tries == 1:
            raise RayActorError
        return done(job)

    worker, calls = worker_that(answer)
    outcomes = list(train_fleet(ray, make_jobs(*NAMES), "memory://a", FleetOptions(workers=2), worker))
    assert all(outcome.manifest for outcome in outcomes) and len(outcomes) == len(NAMES)
    assert calls["pug.safetensors"] == 2 and ray.workers == 3
    assert {outcome.tries for outcome in outcomes if outcome.job.name == "pug.safetensors"} == {2}


def test_a_job_that_kills_its_workers_ends_after_its_tries_and_stops_nobody(ray, make_jobs):
    def answer(job, tries):
        if job.name == "pug.safetensors":
            raise RayActorError
        return done(job)

    worker, calls = worker_that(answer)
    options = FleetOptions(workers=1, tries=3)
    outcomes = list(train_fleet(ray, make_jobs(*NAMES), "memory://a", options, worker))
    (poison,) = [outcome for outcome in outcomes if outcome.manifest is None]
    assert poison.job.name == "pug.safetensors" and "died" in poison.error and calls["pug.safetensors"] == 3
    assert len(outcomes) == len(NAMES)


def test_a_worker_that_fails_as_nobody_foresaw_is_replaced_and_stops_nobody(ray, make_jobs):
    def answer(job, tries):
        if job.name == "pug.safetensors":
            raise RayTaskError("ray::FleetWorker.train()\n  File ...\nRuntimeError: CUDA error")
        return done(job)

    worker, calls = worker_that(answer)
    outcomes = list(
        train_fleet(ray, make_jobs(*NAMES), "memory://a", FleetOptions(workers=1, tries=2), worker)
    )
    (poison,) = [outcome for outcome in outcomes if outcome.manifest is None]
    assert poison.error == "Its worker failed: RuntimeError: CUDA error" and calls["pug.safetensors"] == 2
    assert len(outcomes) == len(NAMES) and ray.workers == 3


def test_a_worker_that_does_not_start_says_why(ray, make_jobs):
    def answer(job, tries):
        raise RayActorError(
            "The actor died because of an error raised in its creation task\nImportError: s3fs"
        )

    worker, _ = worker_that(answer)
    (outcome,) = train_fleet(ray, make_jobs("pug"), "memory://a", FleetOptions(tries=1), worker)
    assert outcome.error == "Its worker did not start: ImportError: s3fs"


def test_what_is_wrong_with_a_job_itself_is_not_tried_again(ray, make_jobs):
    worker, calls = worker_that(lambda job, tries: Answer(error="There is no dog in them."))
    (outcome,) = train_fleet(ray, make_jobs("pug"), "memory://a", FleetOptions(tries=5), worker)
    assert outcome.error == "There is no dog in them." and calls["pug.safetensors"] == 1


def test_a_full_disk_is_tried_again(ray, make_jobs):
    worker, _ = worker_that(
        lambda job, tries: done(job) if tries == 2 else Answer(error="OSError: full", may_pass=True)
    )
    (outcome,) = train_fleet(ray, make_jobs("pug"), "memory://a", FleetOptions(), worker)
    assert outcome.manifest and outcome.tries == 2


def test_more_failures_than_may_be_end_it_and_the_workers(ray, make_jobs):
    worker, _ = worker_that(lambda job, tries: Answer(error="No."))
    outcomes: list[FleetOutcome] = []
    with pytest.raises(TrainingError, match="2 trainings failed, and --max-failures allows 1"):
        outcomes.extend(
            train_fleet(ray, make_jobs(*NAMES), "memory://a", FleetOptions(workers=1, max_failures=1), worker)
        )
    assert len(ray.killed) == 1


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"cpus": 0}, {"tries": 0}, {"max_failures": -1}])
def test_numbers_that_no_fleet_has_are_refused(numbers):
    with pytest.raises(TrainingError, match=r"expected \d or more"):
        FleetOptions(**numbers)


def test_a_store_that_is_no_folder_gets_whole_results_and_nothing_else(make_jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    (job,) = make_jobs("pug")
    url = f"memory://{tmp_path.name}"
    answer = FleetWorker(url).train(job)
    store = ResultStore(url)
    assert answer.manifest is not None and store.manifest(job.name) == answer.manifest
    assert store.concept(job.name) is not None
    FleetWorker(str(tmp_path / "out")).train(job)
    assert (tmp_path / "out" / job.name).read_bytes() == store.concept(job.name)
    assert not list((tmp_path / "cache" / "fleet").rglob("*.safetensors"))
    assert {"loss", "seconds"} <= answer.manifest.facts.keys()


def test_the_memory_of_one_process_is_refused_before_anything_starts(tmp_path, capsys):
    from perfusion.commands.fleet import main

    assert main(["train", str(tmp_path / "jobs.csv"), "--output", "memory://here"]) == 1
    assert "which the workers do not see" in capsys.readouterr().err


def test_a_worker_publishes_and_a_result_that_is_there_is_not_trained_again(make_jobs, tmp_path):
    """Also where its answer was lost: the manifest decides."""
    (job,) = make_jobs("pug")
    worker = FleetWorker(str(tmp_path / "out"))
    first = worker.train(job)
    assert first.error == "" and first.manifest is not None and first.manifest.id == job.id
    concept = tmp_path / "out" / "pug.safetensors"
    assert sha256_of(concept) == first.manifest.sha256
    assert sorted(path.name for path in concept.parent.iterdir()) == [concept.name, f"{concept.name}.json"]
    written = concept.stat().st_mtime_ns
    assert FleetWorker(str(tmp_path / "out")).train(job).manifest == first.manifest
    assert concept.stat().st_mtime_ns == written
    store = ResultStore(str(tmp_path / "out"))
    assert split_done([job], store) == ([(job, first.manifest)], [])
    other = make_jobs("pug", arguments=("--steps", "3"))
    assert split_done(other, store) == (
        [],
        list(other),
    )  # other settings: the file of that name is trained anew


def test_a_worker_that_died_between_the_concept_and_its_manifest_has_lost_nothing(make_jobs, tmp_path):
    (job,) = make_jobs("pug")
    out = tmp_path / "out"
    store = ResultStore(str(out))
    FleetWorker(str(out)).train(job)
    expected = (out / "pug.safetensors").read_bytes()
    (out / "pug.safetensors.json").unlink()
    store.claim(job.name, job.id)
    assert split_done([job], store) == ([], [job])
    assert FleetWorker(str(out)).train(job).manifest and (out / "pug.safetensors").read_bytes() == expected


def test_a_file_that_no_fleet_made_is_refused(make_jobs, tmp_path):
    (job,) = make_jobs("pug")
    (tmp_path / "pug.safetensors").write_bytes(b"somebody's")
    with pytest.raises(TrainingError, match="no manifest says that a fleet trained it"):
        split_done([job], ResultStore(str(tmp_path)))


def test_a_file_that_a_process_of_a_killed_fleet_still_writes_is_waited_for(make_jobs, tmp_path):
    (job,) = make_jobs("pug")
    work = tmp_path / "out" / f"{job.name}.work"
    work.mkdir(parents=True)
    with ExitStack() as other:
        other.enter_context(lock(work / "lock"))
        Timer(1.0, other.pop_all().close).start()
        assert FleetWorker(str(tmp_path / "out")).train(job).manifest is not None


def test_a_file_that_somebody_goes_on_writing_fails_with_the_process(make_jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(FleetWorker, "patience", 0.0)
    (job,) = make_jobs("pug")
    work = tmp_path / "out" / f"{job.name}.work"
    work.mkdir(parents=True)
    with lock(work / "lock"):
        answer = FleetWorker(str(tmp_path / "out")).train(job)
    assert (
        answer.manifest is None and f"another training is writing it (process {os.getpid()})" in answer.error
    )


def test_what_cannot_be_trained_is_answered_with_its_sentence(make_jobs, tmp_path):
    (job,) = make_jobs("pug")
    pictures = shutil.copytree(job.training.images, tmp_path / "pictures")
    for path in pictures.glob("*.png"):
        path.write_bytes(b"no picture")
    broken = type(job)(training=_with_images(job.training, pictures), id=job.id)
    answer = FleetWorker(str(tmp_path / "out")).train(broken)
    assert answer.manifest is None and not answer.may_pass and "cannot be read" in answer.error


def _with_images(training, images: Path):
    from dataclasses import replace

    return replace(training, images=images)
