"""The whole evaluation, tiny, through its command; and the drawings of a method against a second engine."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.evaluation.artists import Job, PipelineArtist, RuntimeArtist, artist_for
from benchmarks.evaluation.baselines import train_baseline
from benchmarks.evaluation.methods import METHODS, Setting
from benchmarks.evaluation.models import base_model, pipeline_of
from benchmarks.evaluation.plan import SMALL, subject_named
from benchmarks.evaluation.training import train_method
from benchmarks.evaluation.tuning import MORE_RATES
from benchmarks.evaluation.units import Context
from perfusion import Concept
from perfusion.base.attention import key_projections
from perfusion.concept.edit import locked_keys

STEPS = 3
TINY = replace(SMALL, num_inference_steps=STEPS)
PLAIN = [Job(text="a photo of an owl at night", seed=seed, setting=Setting()) for seed in (0, 7)]
BY_NAME = {method.name: method for method in METHODS}


def decibels(first, second):
    error = np.square(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def test_both_engines_draw_the_base_models_picture_from_the_same_noise():
    ours = RuntimeArtist(None, {}, (), STEPS).draw(PLAIN)
    theirs = PipelineArtist(pipeline_of(base_model()), STEPS).draw(PLAIN)
    assert min(decibels(a, b) for a, b in zip(ours, theirs, strict=True)) >= 40
    assert decibels(ours[0], ours[1]) < 25  # and it is not a picture that any engine would draw


@pytest.mark.parametrize("name", ["textual-inversion", "lora-values-1", "custom-diffusion", "dreambooth"])
def test_weights_that_were_not_trained_draw_the_base_models_picture_after_saving_and_loading(name, tmp_path):
    """With a rate of nothing a method's file changes nothing, but for the rounding to float16."""
    if name.startswith("lora"):
        pytest.importorskip("peft", reason="the LoRA baselines are peft's")
    subject, plan = subject_named("school-bus"), replace(TINY, checkpoints=(1,), batch_size=2, crops=1)
    train_baseline(plan, tmp_path, subject, name, 1e-12, 1, lambda step, save: save(tmp_path / "weights"))
    method, setting = BY_NAME[name], Setting()
    folders = {subject: tmp_path / "weights"}
    job = Job(text="a photo of a bus at night", seed=3, setting=setting)
    base = PipelineArtist(pipeline_of(base_model()), STEPS).draw([job])[0]
    artist = artist_for(method, folders, (setting,), plan)
    assert decibels(artist.draw([job])[0], base) >= 40
    if name == "textual-inversion":  # its word began as the noun
        own = Job(text=f"a photo of a {subject.token} at night", seed=3, setting=setting)
        assert decibels(artist.draw([own])[0], base) >= 40


def test_the_adapters_of_a_pair_are_both_at_work(tmp_path):
    pytest.importorskip("peft", reason="the LoRA baselines are peft's")
    plan, trained = replace(TINY, checkpoints=(1,), batch_size=2, crops=1), {}
    for name in ("school-bus", "pink-cake"):
        subject = subject_named(name)
        trained[subject] = tmp_path / name
        save_there = lambda step, save, folder=trained[subject]: save(folder)  # noqa: E731
        train_baseline(plan, tmp_path, subject, "lora-values-1", 0.01, 1, save_there)
    artist = artist_for(BY_NAME["lora-values-1"], trained, (Setting(),), plan)
    assert isinstance(artist, PipelineArtist)
    assert set(artist.pipeline.get_active_adapters()) == {"school_bus", "pink_cake"}


def check_trained(work):
    """The pieces that variants are trained with make the product's own training; only trained keys have moved."""
    base, subject = base_model(), "school-bus"

    def concept(name):
        return Concept.load(work / "train" / name / subject / "concept.safetensors")

    projections = key_projections(base.unet).numpy()
    for name in ("unselected", "no-mask", "trained-keys"):
        found = concept(name)
        locked = locked_keys(projections, found.superclass_encoding)
        moved = np.abs(found.target_keys - locked).max() / np.abs(locked).max()
        assert (moved > 0.01) == (name == "trained-keys")
    again = work / "again"
    context = Context(plan=SMALL, work=work)
    keep = lambda step, save: save(again)  # noqa: E731
    train_method(context, BY_NAME["perfusion-tuned"], subject, 1.0, SMALL.steps, keep)
    ours, products = Concept.load(again / "concept.safetensors"), concept("unselected")
    np.testing.assert_allclose(ours.target_values, products.target_values, atol=2e-3)
    np.testing.assert_allclose(ours.direction, products.direction, atol=2e-3)


def test_a_lora_at_a_scale_of_nothing_draws_the_base_models_picture_and_at_one_its_own(tmp_path):
    pytest.importorskip("peft", reason="the LoRA baselines are peft's")
    subject, plan = subject_named("school-bus"), replace(TINY, checkpoints=(2,), batch_size=2, crops=1)
    train_baseline(plan, tmp_path, subject, "lora-4", 0.1, 2, lambda step, save: save(tmp_path / "weights"))
    scales = (1.0, 0.0, 0.5)
    jobs = [
        Job(text="a photo of a sks bus at night", seed=seed, setting=Setting(scale=scale))
        for scale in scales
        for seed in (3, 4)
    ]
    artist = artist_for(BY_NAME["lora-4"], {subject: tmp_path / "weights"}, (Setting(),), plan)
    full, none, half = (artist.draw(jobs)[at] for at in (0, 2, 4))
    base = PipelineArtist(pipeline_of(base_model()), STEPS).draw(jobs[:1])[0]
    assert decibels(none, base) >= 40
    assert decibels(full, base) < decibels(half, base) < 40


@pytest.mark.parametrize(
    ("name", "word", "rate"), [("lora-4", "sks bus", 0.1), ("textual-inversion", "<school-bus>", 0.3)]
)
def test_what_starts_late_draws_the_noun_first_and_leaves_nothing_behind(name, word, rate, tmp_path):
    if name.startswith("lora"):
        pytest.importorskip("peft", reason="the LoRA baselines are peft's")
    subject, plan = subject_named("school-bus"), replace(TINY, checkpoints=(2,), batch_size=2, crops=1)
    train_baseline(plan, tmp_path, subject, name, rate, 2, lambda step, save: save(tmp_path / "weights"))
    steps = 8
    method, folders = BY_NAME[name], {subject: tmp_path / "weights"}
    artist = artist_for(method, folders, (Setting(),), replace(plan, num_inference_steps=steps))
    jobs = [
        Job(text=f"a photo of a {word} at night", seed=3, setting=Setting(start=start))
        for start in (0.0, 0.4, 0.7)
    ]
    at_once, late, later = artist.draw(jobs)
    plain = [replace(jobs[0], text="a photo of a bus at night")]
    noun = PipelineArtist(pipeline_of(base_model()), steps).draw(plain)[0]
    assert decibels(at_once, noun) < decibels(late, noun) < decibels(later, noun) < 40
    assert decibels(artist.draw(jobs[:1])[0], at_once) >= 80


@pytest.mark.slow
def test_a_small_evaluation_runs_through_and_a_second_run_only_reports(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft", reason="the LoRA baselines are peft's")
    from benchmarks.evaluation import units
    from benchmarks.evaluation.__main__ import main

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["--small", "--work", str(tmp_path), "--processes", "1"]
    assert main(command) == 0
    tables = (tmp_path / "docs" / "tables.md").read_text()
    for method in METHODS:
        assert method.title in tables
    assert (tmp_path / "docs" / "pictures" / "evaluation-overview.png").exists()
    chosen = json.loads((tmp_path / "tune" / "chosen.json").read_text())
    for found in chosen.values():
        rates, wider = divmod(len(found["grid"]), len(SMALL.checkpoints))
        assert 3 + 1 <= rates <= 3 + MORE_RATES + 1 and wider == 0
        assert {entry["masks"] for entry in found["grid"]} == {True, False}

    check_trained(tmp_path)

    def nothing(unit, context):
        raise AssertionError(f"{unit.path} was done twice")

    monkeypatch.setattr(units, "_do", nothing)
    assert main(command) == 0
    assert (tmp_path / "docs" / "tables.md").read_text() == tables
