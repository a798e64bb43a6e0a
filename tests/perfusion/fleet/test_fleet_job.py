"""A job's id says what is learned, and nothing else."""

from __future__ import annotations

import shutil

import pytest

from perfusion.errors import TrainingError
from perfusion.fleet.fleet_job import read_jobs
from tests.perfusion.fleet.conftest import SUBJECTS, options_of


def test_an_id_is_that_of_pictures_and_settings_and_not_of_the_device(make_jobs):
    (job,) = make_jobs("pug")
    assert make_jobs("pug")[0].id == job.id == make_jobs("pug", "gold-hat")[0].id
    assert make_jobs("pug", arguments=("--device", "cuda:3"))[0].id == job.id
    for arguments in (
        ("--steps", "3"),
        ("--seed", "1"),
        ("--rows", "2"),
        ("--no-keys",),
        ("--no-flip",),
        ("--clip-skip", "2"),
    ):
        assert make_jobs("pug", arguments=arguments)[0].id != job.id


def test_another_vae_makes_another_job_by_what_is_in_it_and_not_by_its_name(make_jobs, tmp_path):
    ids = []
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        ids.append(make_jobs("pug", arguments=("--vae", str(path)))[0].id)
    assert ids[0] == ids[1] != ids[2]


def test_another_picture_makes_another_job(tmp_path):
    folder = shutil.copytree(SUBJECTS / "pug", tmp_path / "all" / "pug")
    options = options_of("--superclass", "dog")
    (before,) = read_jobs(tmp_path / "all", options)
    assert before.name == "pug.safetensors" and before.training.config.token == "<pug>"
    shutil.copy(next((SUBJECTS / "gold-hat").glob("*.png")), folder / "new.png")
    assert read_jobs(tmp_path / "all", options)[0].id != before.id


def test_a_folder_of_folders_needs_a_superclass_and_folders(tmp_path):
    with pytest.raises(TrainingError, match="has no folders"):
        read_jobs(tmp_path, options_of())
    (tmp_path / "pug").mkdir()
    with pytest.raises(TrainingError, match="--superclass"):
        read_jobs(tmp_path, options_of())
    with pytest.raises(TrainingError, match="no pictures"):
        read_jobs(tmp_path, options_of("--superclass", "dog"))


def test_the_list_of_examples_has_every_subject():
    jobs = read_jobs(SUBJECTS.parent / "jobs.csv", options_of())
    assert [job.name for job in jobs] == sorted(f"{folder.name}.safetensors" for folder in SUBJECTS.iterdir())
    assert all(f"<{job.training.images.name}>" == job.training.config.token for job in jobs)
