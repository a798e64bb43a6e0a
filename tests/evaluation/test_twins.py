"""Rivals in regions, against the product's runtime, which reads the same regions through its own engine."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.evaluation.artists import Job
from benchmarks.evaluation.baselines import train_baseline
from benchmarks.evaluation.methods import Setting, method_named
from benchmarks.evaluation.models import base_model, drawing_runtime
from benchmarks.evaluation.plan import SMALL, subject_named
from benchmarks.evaluation.twins import TwinArtist
from perfusion.base.attention import ConceptAttnProcessor

PLAN = replace(SMALL, num_inference_steps=3, checkpoints=(1,), batch_size=2, crops=1)


def decibels(first, second):
    error = np.square(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def untrained(name, folder):
    """A rival on the school bus, with weights that change nothing."""
    if name.startswith("lora"):
        pytest.importorskip("peft", reason="the LoRA baselines are peft's")
    subject = subject_named("school-bus")
    train_baseline(PLAN, folder, subject, name, 1e-12, 1, lambda step, save: save(folder / "weights"))
    return TwinArtist(method_named(name), {subject: folder / "weights"}, PLAN)


def job(text):
    return Job(text=text, seed=7, setting=Setting())


def test_a_word_that_has_learned_nothing_is_drawn_in_regions_as_the_runtime_draws_its_noun(tmp_path):
    texts = ["a <school-bus> and a {teapot} on a wooden table", "a photo of a <school-bus> at night"]
    artist = untrained("textual-inversion", tmp_path)
    try:
        theirs = artist.draw([job(text) for text in texts])
    finally:
        artist.close()
    plain = [text.replace("<school-bus>", "{bus}") for text in texts]
    ours = drawing_runtime().generate(plain, seed=[7, 7], num_inference_steps=3)
    assert min(decibels(a, b) for a, b in zip(ours, theirs, strict=True)) >= 40
    whole = drawing_runtime().generate(plain[0], seed=7, num_inference_steps=3, regions=None)
    assert decibels(ours[0], whole) < 30  # and regions make a difference
    assert not any(
        isinstance(one, ConceptAttnProcessor) for one in base_model().unet.attn_processors.values()
    )


def test_an_adapter_is_at_work_in_the_regions_of_other_things_too(tmp_path):
    """Its region is not its own: where no reading names the subject the adapter changes the picture all the same."""
    artist = untrained("lora-4", tmp_path)
    text = "a {cat} and a {teapot} on a wooden table"
    before = artist.draw([job(text)])[0]
    assert decibels(before, drawing_runtime().generate(text, seed=7, num_inference_steps=3)) >= 40
    with torch.no_grad():
        for name, weight in artist.pipeline.unet.named_parameters():
            if "lora_B" in name:
                weight += 0.1
    after = np.asarray(artist.draw([job(text)])[0], np.float64)
    moved = np.abs(after - np.asarray(before, np.float64)).mean((0, 2))
    assert moved[: len(moved) // 2].mean() > 2 and moved[len(moved) // 2 :].mean() > 2
