"""Which scorer chooses among the snapshots, and what it is shown."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perfusion.embedded import scorer_path
from perfusion.errors import ModelError, TrainingError
from perfusion.judging.scorer import OnnxScorer
from perfusion.training import TrainingConfig
from perfusion.training.samples import Samples
from perfusion.training.snapshot_choice import POCKET_PROMPTS, find_scorer, object_pictures, open_scorer

CPU = torch.device("cpu")


def test_the_embedded_model_has_a_scorer_and_others_say_that_they_have_none(tiny_base) -> None:
    lines: list[str] = []
    options = TrainingConfig(superclass="cat", steps=100)
    assert isinstance(find_scorer(tiny_base, options, CPU, lines.append), OnnxScorer)
    other = replace(tiny_base, family="sd15")
    assert find_scorer(other, options, CPU, lines.append) is None
    assert lines == ["no scorer for the snapshots (--scorer DIR, a CLIP model), so the last step is taken"]


@pytest.mark.parametrize("change", [{"select": "last"}, {"steps": 50}])
def test_no_scorer_is_opened_where_there_is_nothing_to_choose(tiny_base, change) -> None:
    options = TrainingConfig(**({"superclass": "cat", "steps": 100} | change))
    assert find_scorer(tiny_base, options, CPU, pytest.fail) is None


def test_a_scorer_that_was_asked_for_in_vain_is_told(tiny_base) -> None:
    lines: list[str] = []
    options = TrainingConfig(superclass="cat", steps=50, scorer=Path("no"))
    assert find_scorer(tiny_base, options, CPU, lines.append) is None
    assert lines == ["nothing to choose from: 50 steps with a snapshot every 50 make one (--save-every)"]


def test_a_folder_without_a_scorer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no scorer of pictures, expected a CLIP model's folder"):
        open_scorer(tmp_path, CPU)
    assert isinstance(open_scorer(scorer_path(), CPU), OnnxScorer)


def test_options_that_need_or_exclude_each_other_are_refused() -> None:
    with pytest.raises(TrainingError, match="with --select last nothing is scored"):
        TrainingConfig(superclass="cat", select="last", scorer=Path("x"))
    for change in ({"masks": "clipseg"}, {"segmenter": Path("x")}):
        with pytest.raises(TrainingError, match="--masks clipseg and --segmenter DIR"):
            TrainingConfig(superclass="cat", **change)


def test_the_validation_prompts_are_in_the_embedded_models_words() -> None:
    from perfusion.pocket.vocabulary import words

    for prompt in POCKET_PROMPTS:
        assert set(prompt.replace("{}", "").split()) <= {*words(), "a"}


def test_the_scorer_sees_the_first_variant_of_each_picture_cut_to_its_object() -> None:
    images = torch.full((4, 3, 40, 40), -1.0)
    images[2, 0, 20:36, 20:36] = 1.0
    masks = torch.ones(4, 1, 10, 10)
    masks[2] = 0
    masks[2, :, 5:9, 5:9] = 1
    samples = Samples(latents=torch.zeros(4, 4, 10, 10), masks=masks, images=images)
    whole, cut = object_pictures(samples, crops=2)
    assert whole.size == (40, 40)
    assert 16 <= cut.width <= 24
    assert np.asarray(cut)[cut.height // 2, cut.width // 2].tolist() == [255, 0, 0]
