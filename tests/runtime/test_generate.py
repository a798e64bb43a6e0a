"""perfusion-generate as it is typed: exit codes, files, sentences."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from perfusion import __version__
from perfusion.commands import generate as command
from perfusion.commands import provider_arguments
from perfusion.commands.generate import main
from perfusion.runtime import SCHEDULERS, Region, Runtime
from perfusion.runtime.compute.backend import PRECISIONS, PROVIDERS


@pytest.fixture
def generate(toy_bundle, tmp_path, monkeypatch):
    """The command on the toy bundle, in an empty folder, writing out.png."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, prompt="a cat", output="out.png"):
        return main(["--bundle", str(toy_bundle), "--prompt", prompt, "--output", output, *arguments])

    return run


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_one_picture_is_written_where_it_was_asked_for(generate, runtime, tmp_path, capsys):
    assert generate("--seed", "3", "--steps", "2") == 0
    expected = runtime.generate("a cat", seed=3, num_inference_steps=2)
    np.testing.assert_array_equal(read("out.png"), np.asarray(expected))
    out, err = capsys.readouterr()
    assert out == "out.png\n"
    assert "drawing 2/2" in err
    assert os.listdir(tmp_path) == ["out.png"]


def test_every_option_reaches_the_picture(generate, runtime, make_concept):
    make_concept().save("cat.safetensors")
    runtime.load_concept("cat.safetensors", bias=-0.5, temperature=0.2, strength=0.75, start=0.3)
    assert generate(
        "--concept", "cat.safetensors:bias=-0.5,temperature=0.2,strength=0.75,start=0.3", "--negative-prompt", "a dog",
        "--scheduler", "euler", "--steps", "3", "--guidance-scale", "2.5", "--seed", "9", "--width", "48",
        "--height", "24", "--lock", "global", "--provider", "cpu", "--threads", "1", prompt="a <cat>",
    ) == 0  # fmt: skip
    expected = runtime.generate(
        "a <cat>", seed=9, negative_prompt="a dog", scheduler="euler", num_inference_steps=3, guidance_scale=2.5,
        width=48, height=24, lock="global",
    )  # fmt: skip
    np.testing.assert_array_equal(read("out.png"), np.asarray(expected))


def test_the_kind_of_gates_reaches_the_picture(generate, runtime, make_concept):
    make_concept(rows=2).save("cat.safetensors")  # two directions that are not orthogonal
    runtime.load_concept("cat.safetensors")
    assert generate("--concept", "cat.safetensors", "--gates", "coordinates", prompt="a <cat>") == 0
    by_similarity, by_coordinates = (
        np.asarray(runtime.generate("a <cat>", gates=gates)) for gates in ("similarity", "coordinates")
    )
    np.testing.assert_array_equal(read("out.png"), by_coordinates)
    assert not np.array_equal(by_similarity, by_coordinates)


def test_the_providers_and_precisions_offered_are_those_there_are(generate, capsys):
    assert ("auto", *PROVIDERS) == provider_arguments.PROVIDERS
    assert provider_arguments.PRECISIONS == PRECISIONS
    assert generate("--provider", "cpu", "--precision", "bf16") == 1
    assert "Use the provider 'openvino'" in capsys.readouterr().err


def test_the_schedulers_offered_are_those_there_are():
    assert list(SCHEDULERS) == list(command._SCHEDULERS)


def test_a_picture_is_drawn_over_where_the_mask_is_light(generate, runtime):
    levels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(levels).save("in.png")
    Image.fromarray(levels[..., 0]).save("mask.png")
    assert generate(
        "--image", "in.png", "--mask", "mask.png", "--image-strength", "0.5", "--guidance-rescale", "0.7",
        "--scheduler", "dpmpp_2m_karras", "--memory", "low",
    ) == 0  # fmt: skip
    expected = runtime.generate(
        "a cat",
        image="in.png",
        mask="mask.png",
        image_strength=0.5,
        guidance_rescale=0.7,
        scheduler="dpmpp_2m_karras",
    )
    np.testing.assert_array_equal(read("out.png"), np.asarray(expected))


def test_a_prompt_is_explained_as_a_table_and_as_a_heat_map(generate, runtime, make_concept, capsys):
    make_concept().save("cat.safetensors")
    runtime.load_concept("cat.safetensors")
    assert generate("--concept", "cat.safetensors", "--explain", "heat.png", "--json", prompt="a <cat>") == 0
    out, err = capsys.readouterr()
    expected = runtime.explain("a <cat>")
    assert json.loads(out)["explanation"] == expected.as_dict()
    assert expected.text() in err
    np.testing.assert_array_equal(read("heat.png"), np.asarray(expected.picture()))


def test_several_pictures_are_numbered_and_have_their_own_seeds(generate, runtime, capsys):
    assert generate("--count", "3", "--seed", "5") == 0
    assert capsys.readouterr().out == "out-0001.png\nout-0002.png\nout-0003.png\n"
    for index in range(3):
        expected = runtime.generate("a cat", seed=5 + index)
        np.testing.assert_array_equal(read(f"out-000{index + 1}.png"), np.asarray(expected))


def test_every_prompt_is_drawn_with_every_seed(generate, runtime, capsys):
    assert generate("--prompt", "two dogs", "--count", "2", "--seed", "5", "--json", "--steps", "2") == 0
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert [(each["prompt"], each["seed"]) for each in pictures] == [
        ("a cat", 5), ("a cat", 6), ("two dogs", 5), ("two dogs", 6),
    ]  # fmt: skip
    for each in pictures:
        expected = runtime.generate(each["prompt"], seed=each["seed"], num_inference_steps=2)
        np.testing.assert_array_equal(read(each["path"]), np.asarray(expected))


def test_numbers_go_on_behind_the_highest_that_is_there(generate, capsys):
    for name in ("out-0007.jpg", "out-12.txt", "out-old.png", "other-0050.png", "out-0003-1.png"):
        with open(name, "w") as file:
            file.write("somebody's")
    assert generate("--count", "2", "--steps", "1") == 0
    assert generate("--count", "2", "--steps", "1") == 0
    assert capsys.readouterr().out.split() == [f"out-{number:04}.png" for number in (8, 9, 10, 11)]


def test_a_random_seed_is_told_and_draws_the_picture_again(generate, capsys):
    assert generate("--seed", "random", "--steps", "1", "--quiet", output="random.png") == 0
    seed = re.fullmatch(r"perfusion-generate: seed (\d+)\n", capsys.readouterr().err)
    assert seed is not None
    assert generate("--seed", seed[1], "--steps", "1", output="again.png") == 0
    np.testing.assert_array_equal(read("random.png"), read("again.png"))


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.webp"])
def test_what_this_command_drew_may_be_drawn_again_and_nothing_else(generate, make_concept, capsys, name):
    assert generate("--steps", "1", output=name) == 0
    first = read(name)
    assert generate("--steps", "1", "--seed", "4", output=name) == 0
    assert (read(name) != first).any()
    Image.new("RGB", (4, 4)).save(name)  # somebody's
    assert generate("--steps", "1", output=name) == 1
    assert f"{name} is there and is no drawing of perfusion-generate" in capsys.readouterr().err
    assert read(name).shape == (4, 4, 3)
    assert generate("--steps", "1", "--force", output=name) == 0
    assert read(name).shape == (32, 32, 3)


def test_a_drawing_that_became_a_card_is_not_replaced(generate, make_concept, capsys):
    assert generate("--steps", "1") == 0
    make_concept().save("out.png", picture="out.png")
    before = read_bytes("out.png")
    assert generate("--steps", "1") == 1
    assert "out.png is there and is no drawing" in capsys.readouterr().err
    assert read_bytes("out.png") == before


@pytest.mark.parametrize("content, code", [(b"", 0), (b"notes", 1)])
def test_a_heat_map_replaces_an_empty_file_and_no_other(generate, make_concept, capsys, content, code):
    make_concept().save("cat.safetensors")
    with open("heat.png", "wb") as file:
        file.write(content)
    arguments = ["--concept", "cat.safetensors", "--explain", "heat.png", "--steps", "1"]
    assert generate(*arguments, prompt="a <cat>") == code
    assert os.path.exists("out.png") == (code == 0)


def test_the_program_that_drew_a_picture_is_in_its_file(generate):
    for name in ("out.png", "out.jpg", "out.webp"):
        assert generate("--steps", "1", output=name) == 0
        with Image.open(name) as opened:
            software = opened.info.get("Software") or opened.getexif()[305]
        assert software == f"perfusion-edge {__version__}"


def test_a_grid_holds_all_pictures(generate, runtime):
    assert generate("--count", "3", "--grid") == 0
    sheet = read("out.png")
    assert sheet.shape == (64, 64, 3)
    pictures = [np.asarray(one) for one in runtime.generate("a cat", seed=[0, 1, 2])]
    np.testing.assert_array_equal(sheet[:32, 32:], pictures[1])
    np.testing.assert_array_equal(sheet[32:, :32], pictures[2])
    assert (sheet[32:, 32:] == 255).all()


def test_json_names_files_seeds_and_settings(generate, make_concept, capsys):
    make_concept().save("cat.safetensors")
    given = ("--concept", "cat.safetensors:token=<dog>,bias=1")
    assert generate("--count", "2", "--json", "--quiet", *given, prompt="a <dog>") == 0
    out, err = capsys.readouterr()
    assert err == ""
    facts = json.loads(out)
    assert facts["pictures"] == [
        {"path": f"out-000{number + 1}.png", "prompt": "a <dog>", "seed": number} for number in (0, 1)
    ]
    assert facts["concepts"] == {"<dog>": {"bias": 1.0, "temperature": 0.3, "strength": 1.0, "start": 0.0}}
    assert facts["provider"] == "cpu" and facts["seconds"] > 0


@pytest.mark.parametrize("name, kind", [("out.jpg", "JPEG"), ("out.JPEG", "JPEG"), ("out.webp", "WEBP")])
def test_the_files_name_says_its_format(generate, name, kind):
    assert generate(output=name) == 0
    with Image.open(name) as picture:
        assert picture.format == kind and picture.size == (32, 32)


def test_a_missing_folder_is_made(generate):
    assert generate(output="new/folder/out.png") == 0
    assert read("new/folder/out.png").shape == (32, 32, 3)


@pytest.mark.parametrize(
    "spec, path, settings",
    [
        ("cat.safetensors", "cat.safetensors", {}),
        ("cat.safetensors:bias=0.6", "cat.safetensors", {"bias": 0.6}),
        ("a:b.safetensors:strength=1,token=<x>", "a:b.safetensors", {"strength": 1.0, "token": "<x>"}),
        (r"C:\cats\cat.safetensors", r"C:\cats\cat.safetensors", {}),
        (r"C:\cats\cat.safetensors:bias=-.5", r"C:\cats\cat.safetensors", {"bias": -0.5}),
        (r"C:\a=b\cat.safetensors", r"C:\a=b\cat.safetensors", {}),
        (r"C:a=b\cat.safetensors", r"C:a=b\cat.safetensors", {}),
        ("C:/a=b,c=d/cat.safetensors", "C:/a=b,c=d/cat.safetensors", {}),
        ("cat.safetensors:bias=0,5,start=0,25", "cat.safetensors", {"bias": 0.5, "start": 0.25}),
        ("cat.safetensors:", "cat.safetensors:", {}),
        ("cat.png:token=<style:ink>", "cat.png", {"token": "<style:ink>"}),
        ("a:b.png:token=<a,b=1/2\\c>,bias=0.5", "a:b.png", {"token": "<a,b=1/2\\c>", "bias": 0.5}),
    ],
)
def test_a_concept_is_a_path_and_perhaps_settings(generate, monkeypatch, spec, path, settings):
    seen = []

    def load(self, concept, **given):
        seen.append((str(concept), given))

    monkeypatch.setattr(Runtime, "load_concept", load)
    assert generate("--concept", spec) == 0
    assert seen == [(path, settings)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--concept", "cat:hue=3"],
            "'hue' is no setting in 'cat:hue=3'; use bias, temperature, strength, start or token",
        ),
        (["--concept", "cat:bias=1,bias=2"], "'bias' is given twice"),
        (["--concept", "cat:bias=high"], "bias is 'high', expected a number"),
        (["--concept", "cat:bias=1,2,3"], "bias is '1,2,3', expected a number"),
        (["--count", "0"], "'0' is no whole number from 1 on"),
        (["--count", "two"], "'two' is no whole number"),
        (["--output", "out.bmp"], "'out.bmp' does not end in one of .png, .jpg, .jpeg, .webp"),
        (["--output", "out"], "'out' does not end in"),
        (["--scheduler", "dpm"], "invalid choice: 'dpm'"),
        (["--provider", "rocm"], "'rocm' is none of auto, cpu"),
        (["--memory", "much"], "'much' is neither auto nor low nor a number of gigabytes"),
        (["--explain", "heat.txt"], "'heat.txt' does not end in .png"),
        (["--seed", "1.5"], "'1.5' is neither a whole number nor random"),
        (["--stpes", "3"], "unrecognized arguments: --stpes 3; did you mean --steps?"),
        (["--guidance-scale", "1,000"], "'1,000' may be 1.000 or 1000, write one of them"),
    ],
)
def test_a_wrong_command_line_is_2_and_one_line(generate, capsys, arguments, message):
    assert generate(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert not os.listdir()


def test_help_and_version_are_0(capsys):
    assert main(["--help"]) == 0
    assert "--guidance-scale" in capsys.readouterr().out
    assert main(["--version"]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bundle", "nowhere"], "nowhere is not a folder, so it is not a bundle"),
        (["--concept", "nothing.safetensors"], "nothing.safetensors cannot be read: no such file"),
        (["--concept", "broken.safetensors"], "broken.safetensors: "),
        (["--concept", "other.safetensors"], "<cat> was trained for sd15, this bundle is pocket"),
        (["--concept", "cat.safetensors", "--concept", "cat.safetensors"], "<cat> is loaded already"),
        (["--concept", "cat.safetensors:temperature=0"], "temperature is 0.0, expected a finite number above 0"),
        (["--concept", "cat.safetensors:strength=nan"], "strength is nan"),
        (["--prompt", "cat " * 1300], "has 1300 tokens, expected at most 1200"),
        (["--width", "33"], "width is 33, expected a multiple of 8"),
        (["--width", str(8 * 10**30)], "expected at most 16384 pixels"),
        (["--height", str(2**63)], "expected at most 16384 pixels"),
        (["--threads", "100000000"], "threads is 100000000, expected a whole number from 1 to 1024"),
        (["--steps", "0"], "number of steps is 0"),
        (["--image", "nothing.png"], "nothing.png cannot be read as a picture: no such file"),
        (["--mask", "nothing.png"], "nothing.png cannot be read as a picture"),
        (["--image-strength", "0.5"], "an image strength and no image"),
        (["--guidance-rescale", "2"], "guidance rescale is 2.0, expected a number from 0 to 1"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", str(2**32 - 1), "--count", "2"], f"seed is {2**32}"),
        (["--output", "folder.png"], "folder.png is a folder, expected the name of a file"),
        (["--output", "cat.safetensors/out.png"], "out.png cannot be written"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_1_and_one_line(generate, make_concept, capsys, arguments, message):
    make_concept().save("cat.safetensors")
    make_concept(base="sd15").save("other.safetensors")
    with open("broken.safetensors", "wb") as file:
        file.write(make_concept().to_bytes()[:1000])
    os.mkdir("folder.png")
    before = sorted(os.listdir())
    assert generate(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1 and err.startswith("perfusion-generate: ")
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--count", "1001", "--grid"], "1001 pictures are too many for one sheet, at most 1000"),
        (["--prompt", "a dog", "--explain", "heat.png"], "--explain shows one prompt, and there are 2"),
        (["--prompt", "cat " * 1300], "has 1300 tokens, expected at most 1200"),
    ],
)
def test_what_cannot_be_done_for_all_pictures_is_refused_before_the_first(
    generate, capsys, arguments, message
):
    assert generate(*arguments) == 1
    assert message in capsys.readouterr().err
    assert not os.listdir()


def test_more_pictures_than_can_be_checked_are_a_wrong_command_line(generate, capsys):
    assert generate("--count", "1000000000") == 2
    assert "1000000000 pictures are too many at once, at most 10000" in capsys.readouterr().err


def test_a_warning_about_every_picture_is_told_once(generate, capsys):
    assert generate("--count", "3", "--steps", "1", "--quiet", prompt="a <dog>") == 0
    assert capsys.readouterr().err.count("no concept named <dog> is loaded") == 1


def test_json_is_ascii_whatever_the_names(generate, capsys):
    assert generate("--json", "--steps", "1", prompt="a \u732b", output="\xe9.png") == 0
    out = capsys.readouterr().out
    assert out.isascii()
    facts = json.loads(out)
    assert facts["pictures"] == [{"path": "\xe9.png", "prompt": "a \u732b", "seed": 0}]


def test_a_file_changed_in_the_bundle_is_1(generate, bundle_copy, capsys):
    data = bytearray((bundle_copy / "unet.onnx").read_bytes())
    data[1000] ^= 1
    (bundle_copy / "unet.onnx").write_bytes(data)
    assert generate("--bundle", str(bundle_copy)) == 1
    assert "unet.onnx does not have the checksum" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(generate, monkeypatch, capsys, tmp_path):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert generate() == 1
    assert "no space left" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_an_unloaded_concept_in_the_prompt_is_a_warning(generate, capsys):
    assert generate(prompt="a <dog>") == 0
    assert "perfusion-generate: warning: no concept named <dog> is loaded" in capsys.readouterr().err


def test_a_concept_that_the_prompt_does_not_name_is_a_warning_and_not_among_those_used(
    generate, make_concept, capsys
):
    make_concept().save("cat.safetensors")
    assert generate("--json", "--concept", "cat.safetensors", prompt="a cat on a beach") == 0
    out, err = capsys.readouterr()
    assert "warning: no prompt names <cat>, so it is not drawn; did you mean <cat> by 'cat'?" in err
    assert json.loads(out)["concepts"] == {}
    assert (
        generate("--concept", "cat.safetensors", "--concept", "cat.safetensors:token=<dog>", prompt="a <dog>")
        == 0
    )
    assert "warning: the prompt does not name <cat>, so nothing of it is drawn" in capsys.readouterr().err


def test_a_concept_that_one_of_several_prompts_names_is_no_warning(generate, make_concept, capsys):
    make_concept().save("cat.safetensors")
    arguments = ["--concept", "cat.safetensors", "--prompt", "a <cat>", "--steps", "1", "--quiet", "--json"]
    assert generate(*arguments, prompt="a dog") == 0
    out, err = capsys.readouterr()
    assert err == "" and list(json.loads(out)["concepts"]) == ["<cat>"]


def test_what_other_programs_replace_and_brackets_that_stand_alone_are_warnings(generate, capsys):
    assert generate("--negative-prompt", "blur]", prompt="a ([red|blue] cake:1.4) BREAK a hat") == 0
    error = capsys.readouterr().err
    assert "warning: the prompt has [red|blue], which other programs replace by other words" in error
    assert "warning: the prompt has a ']' without its partner, so it is read as text" in error


def test_weights_change_the_picture_and_plain_prompts_do_not_read_them(generate):
    def picture(*arguments, prompt):
        assert generate("--no-settings", "--steps", "2", *arguments, prompt=prompt) == 0
        return read_bytes("out.png")

    plain = picture(prompt="a cake on a table")
    weighted = picture(prompt="a (cake:1.4) on a table")
    letters = picture("--plain-prompts", prompt="a (cake:1.4) on a table")
    assert len({plain, weighted, letters}) == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_is_130_and_leaves_what_was_done(toy_bundle, tmp_path):
    command = [sys.executable, "-m", "perfusion.commands.generate", "--bundle", str(toy_bundle), "--prompt", "a cat",
               "--steps", "200", "--count", "1000", "--output", str(tmp_path / "out.png")]  # fmt: skip
    root = toy_bundle.parents[2]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out-0002.png").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "perfusion-generate: interrupted"
    assert time.monotonic() - began < 30
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    assert 2 <= len(files) < 1000
    assert files[: len(out.splitlines())] == out.splitlines()
    assert len(files) - len(out.splitlines()) <= 1  # one may be there and not yet on the list
    assert all(read(path).shape == (32, 32, 3) for path in tmp_path.iterdir())


def test_regions_are_bands_boxes_masks_or_none_as_the_command_line_says(generate, runtime, make_concept):
    make_concept().save("cat.safetensors")
    runtime.load_concept("cat.safetensors")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    mask.save("mask.png")
    prompt = "a <cat> and a teapot on grass"
    for arguments, options in (
        ([], {}),
        (["--region", "teapot"], {"regions": [Region("teapot")]}),
        (["--region", "<cat>=0,0,0.5,1"], {"regions": [Region("<cat>", box=(0, 0, 0.5, 1))]}),
        (
            ["--region", "teapot=mask.png", "--whole", "0.2"],
            {"regions": [Region("teapot", mask=mask)], "whole": 0.2},
        ),
        (["--no-regions"], {"regions": None}),
    ):
        assert generate("--concept", "cat.safetensors", *arguments, prompt=prompt) == 0
        np.testing.assert_array_equal(read("out.png"), np.asarray(runtime.generate(prompt, **options)))


def test_regions_that_make_no_sense_are_one_sentence(generate, capsys):
    for arguments, sentence in (
        (["--region", "dog=0,0,1,1"], "asked for 'dog', and the prompt does not hold it"),
        (["--region", "cat=0,0,2,1"], "expected left, top, right, bottom"),
        (["--region", "cat", "--no-regions"], "--no-regions goes with neither"),
    ):
        assert generate(*arguments, "--quiet") == 1
        assert sentence in capsys.readouterr().err
