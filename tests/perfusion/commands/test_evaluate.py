"""perfusion-evaluate: own pictures and own concepts, in numbers and on a page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from perfusion import Concept
from perfusion.commands.evaluate import main
from perfusion.embedded import bundle_path

SUBJECTS = Path(__file__).parents[3] / "examples" / "subjects"
SAMPLES = bundle_path() / "concepts"


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    """Two folders of pictures with masks, one picture each, and beside them the concepts."""
    folder = tmp_path / "subjects"
    for name in ("pink-cake", "gold-hat"):
        (folder / name / "masks").mkdir(parents=True)
        for part in ("1.png", "masks/1.png"):
            shutil.copy(SUBJECTS / name / part, folder / name / part)
        shutil.copy(SAMPLES / f"{name}.safetensors", folder)
    return folder


def test_the_page_the_sheets_and_the_numbers_are_written(subjects, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    words = ["--subjects", str(subjects), "--count", "1", "--steps", "2", "--json", "--quiet"]
    assert main([*words, "--output", str(output)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((output / "scores.json").read_text(encoding="utf-8"))
    assert [subject["name"] for subject in facts["subjects"]] == ["gold-hat", "pink-cake"]
    assert all(subject["drift"] == 0 for subject in facts["subjects"])  # what names no concept keeps its bits
    assert all(subject["verdict"]["pictures"] == 6 for subject in facts["subjects"])
    assert facts["pairs"][0]["tokens"] == ["<gold-hat>", "<pink-cake>"]
    page = (output / "index.html").read_text(encoding="utf-8")
    for name in ("gold-hat.png", "pink-cake.png", "pair-1.png"):
        assert (output / name).is_file() and f'src="{name}"' in page
    assert f"{facts['subjects'][0]['likeness']:.3f}" in page


def test_a_subject_without_a_concept_is_named(subjects, tmp_path, capsys) -> None:
    (subjects / "gold-hat.safetensors").unlink()
    assert main(["--subjects", str(subjects), "--output", str(tmp_path / "out")]) == 1
    assert "no concept for gold-hat, expected gold-hat.safetensors" in capsys.readouterr().err


def test_two_concepts_of_one_token_are_refused_before_anything_is_drawn(subjects, tmp_path, capsys) -> None:
    path = subjects / "gold-hat.safetensors"
    replace(Concept.load(path), token="<pink-cake>").save(path)
    assert main(["--subjects", str(subjects), "--output", str(tmp_path / "out")]) == 1
    assert "have the same token, <pink-cake>" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nowhere", ""])
def test_a_folder_without_subjects_is_refused(tmp_path, capsys, name) -> None:
    assert main(["--subjects", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 1
    assert "pictures for each subject" in capsys.readouterr().err
