"""perfusion-convert on concept files and cards; files of other programs are in training/test_interchange.py."""

import numpy as np
import pytest
from PIL import Image

from perfusion import Concept
from perfusion.commands.convert import main
from perfusion.concept.card import extract


@pytest.fixture
def card(make_concept, tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    path = tmp_path / "cat.png"
    make_concept().save(path, picture=Image.fromarray(levels))
    return path


def pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened)


@pytest.mark.parametrize("name", ["other.png", "cat.png"])
def test_a_card_that_becomes_a_card_keeps_its_picture(card, tmp_path, name):
    picture = pixels(card)
    output = tmp_path / name
    assert main(["--concept", str(card), "--storage", "int8", "--output", str(output)]) == 0
    np.testing.assert_array_equal(pixels(output), picture)
    assert extract(output.read_bytes()) == Concept.load(card).to_bytes("int8")


def test_another_picture_takes_the_place_of_the_cards(card, tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    assert main(["--concept", str(card), "--picture", str(tmp_path / "red.png"), "--output", str(card)]) == 0
    assert pixels(card).shape == (4, 4, 3)


def test_a_jpeg_is_refused_in_either_place(card, tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "red.jpg")
    assert main(["--concept", str(tmp_path / "red.jpg"), "--output", str(tmp_path / "a.png")]) == 1
    assert "This is a JPEG picture, which carries no concept" in capsys.readouterr().err
    assert main(["--concept", str(card), "--output", str(tmp_path / "a.jpg")]) == 1
    assert "carries no concept: only a PNG can" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.png", "red.jpg"]


@pytest.mark.parametrize("storage", ["float16", "float32", "int8"])
def test_a_concept_gets_another_word_and_other_defaults_and_keeps_its_numbers_and_storage(
    make_concept, tmp_path, storage
):
    path = tmp_path / "cat.safetensors"
    make_concept().save(path, storage)
    before = Concept.load(path)
    assert (
        main(["--concept", str(path), "--token", "<style:ink>", "--bias", "-0.5", "--output", str(path)]) == 0
    )
    after = Concept.load(path)
    assert (after.token, after.bias, after.temperature) == ("<style:ink>", -0.5, before.temperature)
    np.testing.assert_array_equal(after.target_values, before.target_values)
    assert after.to_bytes(storage) == path.read_bytes()
    assert main(["--concept", str(path), "--temperature", "0.3", "--output", str(path)]) == 0
    assert (Concept.load(path).bias, Concept.load(path).temperature) == (-0.5, 0.3)
    assert main(["--concept", str(path), "--strength", "0.6", "--output", str(path)]) == 0
    assert (Concept.load(path).bias, Concept.load(path).strength) == (-0.5, 0.6)
    assert main(["--concept", str(path), "--strength", "1", "--output", str(path)]) == 0
    assert b'"strength"' not in path.read_bytes(), "older readers see the same file"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--token", "two words"], "The token is 'two words', expected a word in angle brackets"),
        (["--temperature", "0"], "The temperature is 0.0, expected a number above 0"),
        (["--bias", "nan"], "The bias is nan, expected a finite number"),
        (["--strength", "1.5"], "The strength is 1.5, expected 0 (the superclass) to 1"),
    ],
)
def test_a_word_or_a_default_that_no_concept_can_have_is_refused(card, capsys, arguments, message):
    before = card.read_bytes()
    assert main(["--concept", str(card), *arguments, "--output", str(card)]) == 1
    assert message in capsys.readouterr().err
    assert card.read_bytes() == before
