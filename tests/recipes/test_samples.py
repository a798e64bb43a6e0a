"""The command that trains the sample concepts."""

import shutil
from pathlib import Path

from perfusion import Concept
from perfusion.embedded import model_path
from perfusion.runtime import read_bundle
from recipes.pocket.samples import BY_EYE, SAMPLES, train_samples
from recipes.pocket.subjects import SUBJECTS


def test_samples_are_trained_into_their_models_folder(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_path(), model, ignore=shutil.ignore_patterns("concepts"))
    (file,) = train_samples(model, names=["pink-cake"], steps=1)
    concept = Concept.load(file)
    assert (concept.token, concept.superclass, concept.training["steps"]) == ("<pink-cake>", "cake", "1")
    assert read_bundle(model).samples == {"pink-cake": file}


def test_samples_are_subjects_that_come_with_the_repository() -> None:
    samples = read_bundle(model_path()).samples
    assert {subject.name for subject in SUBJECTS} >= set(SAMPLES) == set(samples)
    assert {name: Concept.load(samples[name]).strength for name in BY_EYE} == BY_EYE
