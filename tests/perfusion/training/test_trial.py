"""A trained concept tried out: a verdict, and a sheet beside the file."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.commands import train as command
from perfusion.concept.concept_file import Concept
from perfusion.embedded import scorer_path
from perfusion.errors import ModelError
from perfusion.judging.verdict import Evidence
from perfusion.training import TrainingConfig, train, trial
from perfusion.training.draw import draw
from perfusion.training.samples import Samples
from perfusion.training.snapshot_choice import variant_pictures
from perfusion.training.trial import PROMPTS


def options(**changes) -> TrainingConfig:
    usual = {"superclass": "cat", "steps": 2, "batch_size": 2, "crops": 2, "masks": "none", "select": "last"}
    return TrainingConfig(**(usual | changes))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SEEDS", 1)
    monkeypatch.setattr(trial, "STEPS", 2)


def test_a_model_of_random_weights_has_learned_nothing_and_says_so(tiny_base, pictures) -> None:
    result = train(pictures, options(), model=tiny_base, trial=True)
    assert result.trial is not None and result.trial.verdict is not None
    assert result.trial.verdict.grade == "not learned"
    assert result.trial.verdict.evidence.pictures == len(PROMPTS)
    assert result.trial.sheet.width >= 6 * tiny_base.resolution


def evidence(noun: float, nearer: float = 1.0) -> Evidence:
    """Of 24 pictures with the noun in such a share of them, by a model that draws it always."""
    return Evidence(
        pictures=24, nearer=nearer, scene=1.0, noun=noun, place=1.0, plain_noun=1.0, plain_place=1.0
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "strength", "grade"),
    [
        ([evidence(0.92)], 1.0, "learned"),
        ([evidence(0.08), evidence(0.95)], 0.8, "learned"),
        ([evidence(0.75), evidence(1.0)], 0.8, "learned"),
        ([evidence(0.08), evidence(0.42), evidence(0.58)], 0.6, "learned"),
        ([evidence(0.7), evidence(0.8), evidence(0.8)], 0.8, "learned"),
        ([evidence(0.7), evidence(0.8), evidence(1.0, nearer=0.5)], 0.8, "learned"),
        ([evidence(0.79), evidence(0.83, nearer=0.96), evidence(0.85, nearer=0.75)], 0.8, "learned"),
        ([evidence(0.08), evidence(0.3), evidence(0.4)], 1.0, "colours only"),
        ([evidence(0.08), evidence(0.95, nearer=0.5)], 1.0, "colours only"),
    ],
    ids=["seen", "seen when weaker", "seen more when weaker", "learned only when weakest", "no better when weakest",
         "weakest is another thing", "weakest is less the subject's", "never", "weaker is another thing"],
)  # fmt: skip
def test_a_concept_is_as_strong_as_the_thing_is_still_seen(
    tiny_base, pictures, monkeypatch, seen, strength, grade
) -> None:
    answers = iter(seen)
    monkeypatch.setattr(trial, "gather", lambda *_: next(answers))
    lines: list[str] = []
    result = train(pictures, options(), model=tiny_base, trial=True, picture=True, say=lines.append)
    assert result.trial is not None
    assert result.concept.strength == result.trial.strength == strength
    assert result.trial.as_dict()["grade"] == grade
    assert next(answers, None) is None, "every strength up to the one that shows it, and no further"
    assert any(f"strength is {strength:g} from now on" in line for line in lines) == (strength != 1)


def test_each_strength_is_drawn_and_the_file_and_the_words_say_the_chosen_one(
    tiny_model, pictures, tmp_path, monkeypatch, capsys
) -> None:
    answers, drawn = iter([evidence(0.08), evidence(0.95)]), []

    def recorded(base, concept, prompts, *args, **options):
        drawn.append((concept.token in prompts[0], concept.strength))
        return draw(base, concept, prompts, *args, **options)

    monkeypatch.setattr(trial, "gather", lambda *_: next(answers))
    monkeypatch.setattr(trial, "draw", recorded)
    output = tmp_path / "cat.safetensors"
    arguments = ["--images", str(pictures), "--superclass", "cat", "--model", str(tiny_model), "--steps", "1"]
    arguments += ["--batch-size", "1", "--masks", "none", "--output", str(output)]
    assert command.main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["strength"] == facts["verdict"]["strength"] == Concept.load(output).strength == 0.8
    assert drawn == [(False, 1.0), (True, 1.0), (True, 0.8)]
    answers = iter([evidence(0.08), evidence(0.95)])
    assert command.main([*arguments, "--start-over"]) == 0
    assert "; strength 0.8, " in capsys.readouterr().out


def test_no_weaker_one_is_tried_where_the_base_does_not_draw_its_own_word(
    tiny_base, pictures, monkeypatch
) -> None:
    answers = iter([replace(evidence(0.2), plain_noun=0.3)])
    monkeypatch.setattr(trial, "gather", lambda *_: next(answers))
    result = train(pictures, options(), model=tiny_base, trial=True)
    assert result.concept.strength == 1 and next(answers, None) is None


def test_the_picture_of_a_weaker_concept_is_drawn_at_its_strength(tiny_base, pictures, monkeypatch) -> None:
    answers = iter([evidence(0.08), evidence(0.95)])
    monkeypatch.setattr(trial, "gather", lambda *_: next(answers))
    weak = train(pictures, options(precision="fp32"), model=tiny_base, trial=True, picture=True)
    assert weak.picture is not None
    (again,) = draw(tiny_base, weak.concept, ["a photo of a <cat>"], [0], num_inference_steps=20)
    assert np.array_equal(np.asarray(weak.picture), np.asarray(again))


def test_nobody_judges_a_base_without_probes_unless_a_scorer_is_given(tiny_base, pictures) -> None:
    other = replace(tiny_base, family="sd15")
    result = train(pictures, options(), model=other, trial=True)
    assert result.trial is not None
    facts = result.trial.as_dict()
    assert (result.trial.verdict, facts["grade"]) == (None, "not judged")
    assert facts["sentence"].startswith(
        "not judged: nobody has looked at the pictures. Try a look at the sheet"
    )
    judged = train(pictures, options(select="auto", scorer=scorer_path()), model=other, trial=True).trial
    assert judged is not None and judged.verdict is not None


def test_a_scorer_that_cannot_be_opened_is_told_and_the_sheet_is_made(
    tiny_base, pictures, monkeypatch
) -> None:
    def broken(*_: object) -> None:
        raise ModelError("It is broken.")

    monkeypatch.setattr(trial, "open_scorer", broken)
    lines: list[str] = []
    result = train(pictures, options(), model=tiny_base, trial=True, say=lines.append)
    assert result.trial is not None and result.trial.verdict is None
    assert "the concept cannot be judged: It is broken." in lines


def test_the_sheet_shows_what_does_not_count_faded() -> None:
    samples = Samples(
        latents=torch.zeros(2, 4, 8, 8), masks=torch.zeros(2, 1, 8, 8), images=torch.full((2, 3, 64, 64), -1.0)
    )  # fmt: skip
    samples.masks[:, :, :, :4] = 1
    (whole,), (faded,) = variant_pictures(samples, crops=2)
    assert np.asarray(whole).max() == 0
    assert np.asarray(faded)[:, :24].max() == 0
    assert np.asarray(faded)[:, 40:].min() > 200


@pytest.mark.parametrize("name", ["cat.safetensors", "cat.png", "cat"])
def test_the_command_writes_the_sheet_beside_the_file(tiny_model, pictures, tmp_path, capsys, name) -> None:
    output = tmp_path / name
    arguments = ["--images", str(pictures), "--superclass", "cat", "--model", str(tiny_model), "--steps", "1"]
    arguments += ["--batch-size", "1", "--masks", "none", "--output", str(output), "--quiet"]
    assert command.main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"]["grade"] == "not learned"
    assert facts["sheet"] == str(tmp_path / "cat.sheet.png")
    with Image.open(facts["sheet"]) as sheet:
        assert sheet.format == "PNG"
    Path(facts["sheet"]).unlink()
    assert command.main([*arguments, "--start-over"]) == 0
    named = re.findall(r"\(--[a-z-]+\)", capsys.readouterr().out)
    assert named and {name.strip("()") for name in named} <= set(command._parser()._option_string_actions)
    Path(facts["sheet"]).unlink()
    assert command.main([*arguments, "--no-sheet"]) == 0
    assert not Path(facts["sheet"]).exists()
    assert "learned" not in capsys.readouterr().out


def test_the_prompts_are_tried_with_other_seeds_than_the_snapshots_were_chosen_by() -> None:
    from perfusion.training import snapshot_choice

    assert max(snapshot_choice.SEEDS) < trial.FIRST_SEED
