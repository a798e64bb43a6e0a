"""perfusion-sweep on the embedded model, with as few steps as there can be."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from perfusion import Concept
from perfusion.commands.inspect import main as inspect
from perfusion.commands.sweep import main
from perfusion.embedded import bundle_path
from perfusion.runtime import Runtime

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "examples" / "subjects" / "gold-hat"
PROMPT = "a <gold-hat> in the snow"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def concept(tmp_path):
    return shutil.copy(bundle_path() / "concepts" / "gold-hat.safetensors", tmp_path / "hat.safetensors")


@pytest.fixture
def sweep(concept):
    """The command with one prompt, one seed, one step."""

    def run(*options):
        shortest = ["--count", "1", "--steps", "1", "--quiet", "--prompt", PROMPT]
        return main(["--concept", str(concept), *shortest, *map(str, options)])

    return run


def test_writes_the_grid_the_plot_and_the_table(sweep, tmp_path, capsys, cache, windows_text):
    grid, plot, table = tmp_path / "grid.png", tmp_path / "plot.png", tmp_path / "front.csv"
    wanted = ["--bias", "0.5:0.9:3", "--lock", "both", "--images", IMAGES, "--masks", IMAGES / "masks"]
    assert sweep(*wanted, "--steps", "6", "--grid", grid, "--plot", plot, "--csv", table, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert b"\r" not in table.read_bytes()
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == len(facts["points"]) == 6
    assert [float(row["image"]) for row in rows] == [point["image"] for point in facts["points"]]
    assert sum(point["recommended"] for point in facts["points"]) == 1
    assert {(row["bias"], row["lock"]) for row in rows} >= {("0.5", "local"), ("0.9", "global")}
    assert {row["strength"] for row in rows} == {"0.6"}, "the concept's own"
    with Image.open(grid) as sheet:
        assert sheet.width > 7 * 128 and sheet.height > 128
    assert plot.is_file()
    assert not any(cache.rglob("*.png"))  # a sweep that is done leaves nothing there


def test_the_base_model_draws_its_column_whatever_the_settings(sweep, tmp_path):
    """The settings reach their own pictures and no others."""
    work = tmp_path / "work"
    assert sweep("--bias", "0.5", "--work", work) == 0
    first = {path.name for path in work.glob("*.png")}
    assert len(first) == 2
    assert sweep("--bias", "0.5,0.9", "--work", work) == 0
    assert {path.name for path in work.glob("*.png")} > first and len(list(work.glob("*.png"))) == 3


def test_things_get_regions_as_in_perfusion_generate(concept, tmp_path, monkeypatch):
    """Marks, boxes and masks reach the runtime; a mask that was painted anew asks for new pictures."""
    calls = []

    def noted(self, prompts, **options):
        calls.append((options["regions"], options.get("whole")))
        return [Image.new("RGB", (8, 8))] * len(prompts)

    monkeypatch.setattr(Runtime, "generate", noted)
    mask = tmp_path / "mask.png"

    def told(*options):
        calls.clear()
        two = [
            "--concept",
            str(concept),
            "--prompt",
            "a <gold-hat> and a {tree}",
            "--bias",
            "0.5",
            "--count",
            "1",
        ]
        assert main([*two, "--work", str(tmp_path / "work"), "--quiet", *options]) == 0
        return list(calls)

    assert set(told("--whole", "0.2")) == {("auto", 0.2)}
    Image.new("L", (8, 8), 255).save(mask)
    masked = ["--region", f"<gold-hat>={mask}", "--region", "tree=0.5,0,1,1"]
    regions, _ = told(*masked)[0]
    assert [(region.word, region.box) for region in regions] == [
        ("<gold-hat>", None),
        ("tree", (0.5, 0, 1, 1)),
    ]
    assert not told(*masked)
    Image.new("L", (8, 8), 90).save(mask)
    assert told(*masked)


def test_the_recommended_settings_become_the_files_defaults(sweep, concept, capsys, held_files):
    before = Concept.load(concept)
    shown = ("--steps", "6", "--images", IMAGES)  # pictures in which the scorer finds a hat
    assert sweep("--bias", "0.42,0.91", "--temperature", "0.2", *shown, "--choose", "--json") == 0
    facts, after = json.loads(capsys.readouterr().out), Concept.load(concept)
    (best,) = (point for point in facts["points"] if point["recommended"])
    assert (after.bias, after.temperature, after.lock) == (best["bias"], 0.2, best["lock"])
    assert after.bias in (0.42, 0.91)
    assert (after.target_values == before.target_values).all()


def test_chosen_settings_go_into_a_card_and_leave_its_picture_and_storage(sweep, concept, tmp_path, capsys):
    card = tmp_path / "hat.png"
    Concept.load(concept).save(card, "int8", picture=Image.new("RGB", (64, 64), "teal"))
    assert main(
        ["--concept", str(card), "--prompt", PROMPT, "--count", "1", "--steps", "1", "--quiet", "--choose", "0.66,0.3"]
    ) == 0  # fmt: skip
    capsys.readouterr()
    assert inspect([str(card), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["bias"], facts["temperature"], facts["storage"], facts["card"]) == (0.66, 0.3, "int8", True)
    with Image.open(card) as picture:
        assert picture.convert("RGB").getpixel((30, 30)) == (0, 128, 128)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--plot", "plot.png"], "--images"),
        (["--choose"], "--images"),
        (["--images", "a", "--images", "b"], "once for each concept"),
        (["--images", "nowhere"], "nowhere is not there"),
        (["--prompt", "a hat"], "names no concept"),
        (["--bias", "0.4:x:3"], "no number"),
        (["--strength", "2"], "strength"),
        (["--choose", "1,2,1,0"], "expected BIAS"),
        (["--choose", "0.7,0.15,2"], "strength is 2"),
        (["--choose", "0.7,-1"], "temperature is -1"),
        (["--choose", "--images", str(IMAGES), "--start", "0,0.3"], "no start of its own"),
        (["--choose", "--images", str(IMAGES), "--start", "0.3"], "no start of its own"),
        (["--start", "1"], "start is 1.0, expected 0"),
        (["--masks", str(IMAGES / "masks")], "--images"),
        (["--scorer", "anything"], "--images"),
        (["--count", "0"], "whole number"),
        (["--region", "tree", "--no-regions"], "--no-regions goes with neither"),
        (["--region", "<gold-hat>=0,0,2,1"], "expected left, top, right, bottom"),
        (["--scorer", "nowhere", "--images", str(IMAGES)], "image.onnx"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(sweep, options, said, tmp_path, capsys, cache):
    assert sweep("--grid", tmp_path / "grid.png", *options) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not cache.exists()  # nothing was drawn in vain


def test_a_sweep_that_would_leave_nothing_is_not_drawn(sweep, capsys, cache):
    assert sweep("--bias", "0.5") == 1
    assert "Give --grid" in capsys.readouterr().err
    assert not cache.exists()


def test_nothing_is_written_into_the_samples_of_a_bundle(capsys, monkeypatch):
    monkeypatch.setattr("perfusion.commands.sweep._write_defaults", lambda *given: pytest.fail("it would be"))
    for name in ("gold-hat", str(bundle_path() / "concepts" / "gold-hat.safetensors")):
        assert main(["--concept", name, "--prompt", PROMPT, "--choose", "0.7", "--quiet"]) == 1
        assert "Copy" in capsys.readouterr().err


def test_where_every_setting_draws_texture_none_is_chosen(sweep, concept, capsys, monkeypatch):
    monkeypatch.setattr("perfusion.judging.probes.Shown.share", 0.0)
    before = concept.read_bytes()
    assert sweep("--bias", "0.5,0.9", "--images", IMAGES, "--choose") == 1
    assert "No setting is recommended" in capsys.readouterr().err
    assert concept.read_bytes() == before
