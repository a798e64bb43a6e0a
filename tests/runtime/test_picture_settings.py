"""Settings that a picture file carries, and the programs that read them."""

import json

import numpy as np
import pytest
from PIL import Image

from perfusion.commands.generate import main
from perfusion.commands.inspect import main as inspect
from perfusion.concept.concept_file import Concept
from perfusion.concept.settings import ConceptSettings
from perfusion.errors import PictureError
from perfusion.runtime.picture_settings import concept_hash, parameters_text, read_settings, save, settings_of

PROMPT = "a (red) bus, 小さい: \\{x\\}"


@pytest.fixture
def settings(runtime):
    return settings_of(runtime, PROMPT, 7, negative_prompt="blurry, dark", num_inference_steps=3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_file_gives_its_settings_back_and_equal_pictures_are_equal_files(settings, tmp_path, suffix):
    picture = Image.new("RGB", (16, 16), "red")
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        save(picture, path, settings)
    assert read_settings(paths[0]) == settings
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_another_program_reads_prompt_seed_and_sampler(settings, tmp_path, suffix):
    import sd_parsers

    path = tmp_path / f"x{suffix}"
    save(Image.new("RGB", (16, 16)), path, settings)
    info = sd_parsers.ParserManager().parse(path)
    assert info is not None
    assert [prompt.value for prompt in info.prompts] == [PROMPT]
    assert [prompt.value for prompt in info.negative_prompts] == ["blurry, dark"]
    assert info.samplers[0].parameters["seed"] == "7"


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_piexif_reads_the_comment_as_a1111_and_sd_prompt_reader_do(settings, tmp_path, suffix):
    import piexif
    import piexif.helper

    path = tmp_path / f"x{suffix}"
    save(Image.new("RGB", (16, 16)), path, settings)
    with Image.open(path) as picture:
        comment = piexif.load(picture.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
    assert piexif.helper.UserComment.load(comment) == parameters_text(settings)


@pytest.mark.parametrize("changes", [{"bias": 0.4}, ConceptSettings(bias=0.4)])
def test_settings_of_a_call_are_told_whether_named_or_as_one_object(runtime, make_concept, changes):
    runtime.load_concept(make_concept())
    told = settings_of(runtime, "a <cat>", concept_settings={"<cat>": changes})
    assert told["concepts"]["<cat>"]["bias"] == 0.4


def test_a_picture_without_settings_says_nothing(tmp_path):
    save(Image.new("RGB", (8, 8)), tmp_path / "x.png")
    assert read_settings(tmp_path / "x.png") is None
    assert PROMPT.encode() not in (tmp_path / "x.png").read_bytes()


def test_damaged_settings_and_no_picture_are_refused(settings, tmp_path):
    save(Image.new("RGB", (8, 8)), tmp_path / "x.png", settings | {"format": 99})
    with pytest.raises(PictureError, match="format 99"):
        read_settings(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match="cannot be read"):
        read_settings(tmp_path / "y.png")


def test_the_text_names_the_size_and_steps(settings):
    last = parameters_text(settings).splitlines()[-1]
    assert last.startswith("Steps: 3, Sampler: ")
    assert f"Size: {settings['width']}x{settings['height']}" in last


def test_like_draws_the_same_pixels_with_a_concept_of_the_library(
    tmp_path, toy_bundle, runtime, make_concept
):
    concept = make_concept()
    (tmp_path / "library").mkdir()
    concept.save(tmp_path / "library/any-name.safetensors", storage="float32")
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    common = ["--quiet", "--bundle", str(toy_bundle)]
    drawing = ["--prompt", f"a {concept.token}", "--seed", "3", "--steps", "2"]
    file = f"{tmp_path}/library/any-name.safetensors:bias=0.5"
    assert main([*common, *drawing, "--concept", file, "--output", str(first)]) == 0
    assert (
        main([*common, "--like", str(first), "--library", str(tmp_path / "library"), "--output", str(again)])
        == 0
    )
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))
    assert first.read_bytes() == again.read_bytes()
    assert main([*common, "--like", str(first), "--output", str(tmp_path / "none.png")]) != 0


def test_no_settings_leaves_the_prompt_out(tmp_path, toy_bundle):
    path = tmp_path / "x.png"
    prompt = ["--prompt", "a secret bus", "--steps", "1", "--no-settings", "--output", str(path)]
    assert main(["--quiet", "--bundle", str(toy_bundle), *prompt]) == 0
    assert b"secret" not in path.read_bytes()


def test_a_concept_is_known_under_another_token_and_storage(make_concept, tmp_path):
    from dataclasses import replace

    concept = make_concept()
    path = concept.save(tmp_path / "x.safetensors", storage="float32") or tmp_path / "x.safetensors"
    assert concept_hash(Concept.load(path)) == concept_hash(replace(concept, token="<other>"))


def test_inspect_shows_how_a_picture_was_drawn(settings, tmp_path, capsys):
    save(Image.new("RGB", (8, 8)), tmp_path / "x.png", settings)
    assert inspect(["--json", str(tmp_path / "x.png")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"] == settings
    assert facts["parameters"] == parameters_text(settings)
    assert inspect([str(tmp_path / "x.png")]) == 0
    assert "blurry, dark" in capsys.readouterr().out


@pytest.mark.parametrize("syntax", [[], ["--plain-prompts"]])
def test_like_reads_the_prompt_as_the_picture_was_drawn(tmp_path, toy_bundle, make_concept, syntax):
    make_concept().save(tmp_path / "cat.safetensors", storage="float32")
    prompt = "a (<cat>:1.4) BREAK on a [beach] <lora:cat:0.5>"
    common = ["--quiet", "--bundle", str(toy_bundle), "--concept", str(tmp_path / "cat.safetensors")]
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    assert main([*common, *syntax, "--prompt", prompt, "--steps", "2", "--output", str(first)]) == 0
    settings = read_settings(first)
    assert settings is not None and settings["prompt"] == prompt
    assert settings["prompt_syntax"] == ("plain" if syntax else "weights")
    assert settings["concepts"]["<cat>"]["strength"] == (1 if syntax else 0.5)
    assert main([*common, "--like", str(first), "--output", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
