"""The trials of benchmarks.focus: a prompt is read in drawing as it is in training, and hidden padding is not seen."""

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.evaluation.models import base_model
from benchmarks.focus.__main__ import table_of
from benchmarks.focus.edits import padding_hidden, prompts_known, reading_as
from benchmarks.focus.trials import TINY, TRIALS, initial_edit_of, variants_of
from benchmarks.record import ROOT
from perfusion.base.attention import installed
from perfusion.concept.weighted_text import WeightedText
from perfusion.runtime import Runtime
from perfusion.training import training_loop as loop
from perfusion.training.initial_edit import concept_prompt
from perfusion.training.templates import TEMPLATES
from perfusion.training.trainer import as_concept
from perfusion.training.training_loop import Conditions

BIAS, TEMPERATURE = 0.75, 0.1
BY_KIND = {trial.kind: trial for trial in TRIALS if not trial.training}


def edit_of(kind):
    """An edit whose word is no longer the superclass's, and its encoding."""
    edit, encoding = initial_edit_of(BY_KIND[kind], TINY, "pink-cake")
    with torch.no_grad():
        noise = torch.randn(edit.embeddings[0].shape, generator=torch.Generator().manual_seed(1))
        edit.embeddings[0] += 0.02 * noise
    return edit.eval(), encoding


@pytest.mark.parametrize("kind", list(BY_KIND))
def test_a_prompt_is_read_in_drawing_as_in_training(kind, tmp_path):
    base, (edit, encoding) = base_model(), edit_of(kind)
    prompts = [concept_prompt(base, template, 1) for template in TEMPLATES]
    with prompts_known(edit, "cake"):
        trained = loop.condition_batch(base, edit, prompts, [2], torch.device("cpu"))
    config = SimpleNamespace(token="<pink-cake>", superclass="cake")
    as_concept(base, edit, encoding, config, {}).save(tmp_path / "cake.safetensors")
    with Runtime() as runtime, reading_as(kind):
        runtime.load_concept(tmp_path / "cake.safetensors", bias=BIAS, temperature=TEMPERATURE)
        bank, text = runtime._bank.adjusted(), WeightedText(TEMPLATES[2].format("<pink-cake>"))
        prompt = runtime._prompts.encode_prompt(text, bank, BY_KIND[kind].lock, "similarity")
        assert prompt is not None
        drawn = prompt.row(bank.rows(prompt.active)).state.conditioning
    np.testing.assert_allclose(drawn.value_states, trained.states[0].detach(), atol=2e-4)
    np.testing.assert_allclose(drawn.key_states, trained.states[0].detach(), atol=2e-4)
    np.testing.assert_allclose(drawn.value_gate, trained.gate[0].detach(), atol=2e-3)
    word = prompts[2].last
    assert drawn.value_gate[word] > 0.5
    assert (drawn.value_gate[word + 1 :].max() == 0) == kind.startswith("padding")
    # keys of a context lock are the superclass's alone; else they are opened as the values are
    assert np.all(drawn.key_gate == (0 if kind == "context-lock" else drawn.value_gate))


def test_the_kinds_of_reading_differ():
    prompts = [concept_prompt(base_model(), template, 1) for template in TEMPLATES]
    states = []
    for kind in BY_KIND:
        edit, _ = edit_of(kind)
        with prompts_known(edit, "cake"):
            states.append(loop.condition_batch(base_model(), edit, prompts, [0], torch.device("cpu")).states)
    assert all((first - second).abs().max() > 0.01 for first, second in pairwise(states))


def test_every_second_sample_does_not_see_its_padding_and_the_others_do():
    base, (edit, _) = base_model(), edit_of("product")
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 77, base.text_dim, generator=generator).expand(2, -1, -1).clone()
    edit.padding = (torch.arange(77) > 5).expand(2, -1)
    noisy = torch.randn(1, base.unet.config.in_channels, 16, 16, generator=generator).expand(2, -1, -1, -1)
    times = torch.tensor([500, 500])

    def predicted(changed_from: int | None) -> torch.Tensor:
        read = states.clone()
        if changed_from is not None:
            read[:, changed_from:] = 0
        conditions = Conditions(
            states=read, gate=torch.zeros(2, 77, 1), pooled=None, where=torch.tensor([0, 1])
        )
        with torch.no_grad(), installed(base.unet), padding_hidden(2):
            return loop.unet_output(base, edit, conditions, slice(0, 2), noisy, times)

    whole, without_padding, without_end = (predicted(start) for start in (None, 7, 6))
    torch.testing.assert_close(without_padding[0], whole[0])
    assert (without_padding[1] - whole[1]).abs().max() > 1e-3
    assert (without_end[0] - whole[0]).abs().max() > 1e-3  # the end token is seen


def test_the_table_has_a_line_a_variant():
    keys = ("image", "alone", "text", "both", "second_seen", "subjects", "lesser")
    figures = {key: [0.5, 0.4, 0.6] for key in keys}
    titles = [variant.title for variant in variants_of(TRIALS[0])]
    rows = [{"title": title, "subjects": figures, "pairs": figures} for title in titles]
    head, rule, *lines = table_of(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| product", "| product, in regions"]
    assert len({line.count("|") for line in (head, rule, *lines)}) == 1 and "| 50 % | 0.50 |" in lines[0]


def test_the_pages_table_is_that_of_the_record():
    (path,) = (ROOT / "benchmarks" / "records").glob("focus-*.json")
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert table_of(rows) in (ROOT / "docs" / "evaluation.md").read_text("utf-8")
