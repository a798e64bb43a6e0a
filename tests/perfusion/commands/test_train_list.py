"""perfusion-train --jobs, and what a second run does with what the first one left."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion.commands import train as command
from perfusion.concept.concept_file import Concept
from perfusion.training import job_pool
from recipes.pocket.architecture import build_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("list") / "model"
    build_pipeline("tiny").save_pretrained(folder)
    (folder / "perfusion.json").write_text('{"family": "pocket"}')
    (folder / "captions.txt").write_text("\n".join(f"a photo of a cat {number}" for number in range(100)))
    return folder


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    for index, name in enumerate(("tom", "kitty")):
        (tmp_path / name).mkdir()
        noise = np.random.default_rng(index).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name / "1.png")
    path = tmp_path / "cats.csv"
    path.write_text("images,superclass,token\ntom,cat,<tom>\nkitty,cat,<kitty>\n")
    return path


def words(listed: Path, model: Path, *more: str) -> list[str]:
    usual = ["--model", str(model), "--steps", "2", "--batch-size", "2", "--masks", "none", "--no-sheet"]
    usual += ["--device", "cpu"]
    return ["--jobs", str(listed), "--output", str(listed.parent / "out"), *usual, "--quiet", *more]


def test_every_row_becomes_a_concept_and_the_base_is_opened_once(listed, model, capsys, monkeypatch) -> None:
    from perfusion.training import placement

    opened, original = [], placement.open_base

    def open_base(*arguments):
        opened.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(placement, "open_base", open_base)
    assert command.main(words(listed, model, "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [entry["token"] for entry in facts["trained"]] == ["<tom>", "<kitty>"]
    assert (facts["failed"], len(opened)) == ([], 1)
    concepts = [Concept.load(listed.parent / "out" / f"{name}.safetensors") for name in ("tom", "kitty")]
    assert not np.array_equal(concepts[0].target_values, concepts[1].target_values)


def test_a_row_that_fails_stops_no_other_and_is_told(listed, model, capsys) -> None:
    listed.write_text("images,superclass,token\ntom,zebra,<tom>\nkitty,cat,<kitty>\n")
    assert command.main(words(listed, model)) == 1
    told = capsys.readouterr()
    assert "tom.safetensors: The embedded model has never seen 'zebra'" in told.err
    assert "1 trained, 1 failed, 0 done before" in told.out
    assert [path.name for path in (listed.parent / "out").glob("*.safetensors")] == ["kitty.safetensors"]


def test_what_is_there_is_skipped_or_resumed(listed, model, capsys) -> None:
    assert command.main(words(listed, model)) == 0
    assert re.search(r"^1 of 2, \d+:\d\d left\n(.*\n)+2 of 2$", capsys.readouterr().out, re.MULTILINE)
    out = listed.parent / "out"
    (out / "kitty.safetensors").unlink()
    before = (out / "tom.safetensors").stat().st_mtime_ns
    for option in ("--skip-existing", "--resume"):
        capsys.readouterr()
        assert command.main(words(listed, model, option, "--json")) == 0
        facts = json.loads(capsys.readouterr().out)
        assert str(out / "tom.safetensors") in facts["done"]
        assert (out / "tom.safetensors").stat().st_mtime_ns == before


def test_a_list_that_is_done_says_so_without_opening_a_model(listed, model, capsys, monkeypatch) -> None:
    (listed.parent / "out").mkdir()
    for name in ("tom", "kitty"):
        (listed.parent / "out" / f"{name}.safetensors").touch()
    with monkeypatch.context() as context:
        context.setattr("perfusion.training.placement.Placement.pick", None)  # not to be called
        assert command.main(words(listed, model, "--skip-existing")) == 0
    assert "0 trained, 0 failed, 2 done before" in capsys.readouterr().out
    loud = [word for word in words(listed, model) if word != "--quiet"]
    assert command.main(loud) == 0
    assert "2 of the files are there and are trained anew; --skip-existing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (["--images", "tom"], 2, "leave --images and --superclass out"),
        (["--resume", "--start-over"], 2, "exclude each other"),
        (["--devices", "cpu,cuda:7"], 1, "No CUDA device was found"),
        (["--devices", "tpu"], 1, "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_does_not_go_together_is_said_in_a_line(listed, model, capsys, more, code, sentence) -> None:
    assert command.main(words(listed, model, *more)) == code
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (listed.parent / "out").exists()


@pytest.mark.parametrize("words", [["--images", "x"], ["--jobs", "x"], ["--skip-existing", "--images", "x"]])
def test_what_is_missing_is_a_wrong_command_line(words, capsys) -> None:
    assert command.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_two_processes_share_a_list_and_one_that_dies_is_replaced(listed, model, capsys, monkeypatch) -> None:
    """Once on two devices; then every process ends before its first job, and all rows are told to have failed."""
    assert command.main(words(listed, model, "--devices", "cpu,cpu", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {entry["token"] for entry in facts["trained"]} == {"<tom>", "<kitty>"}
    alone = Concept.load(listed.parent / "out" / "tom.safetensors")
    assert command.main(words(listed, model)) == 0
    again = Concept.load(listed.parent / "out" / "tom.safetensors")
    np.testing.assert_array_equal(alone.direction, again.direction)
    capsys.readouterr()
    monkeypatch.setattr(job_pool, "_serve", print)
    assert command.main(words(listed, model, "--devices", "cpu,cpu", "--json")) == 1
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["failed"]) == 2
    assert all("Its process ended with the code" in entry["error"] for entry in facts["failed"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def alone(listed: Path, model: Path, *more: str) -> list[str]:
    output = listed.parent / "tom.safetensors"
    line = [
        "--images",
        str(listed.parent / "tom"),
        "--superclass",
        "cat",
        "--output",
        str(output),
        "--save-every",
        "1",
    ]
    return [*line, *words(listed, model, *more)[4:]]


@pytest.fixture
def killed(listed, model, monkeypatch) -> Path:
    """A training of three steps that was killed after the first."""
    from perfusion.training import training_loop as loop

    done, original = [], loop.train_step

    def step(*given):
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(loop, "train_step", step)
    assert command.main(alone(listed, model)) == 130
    monkeypatch.setattr(loop, "train_step", original)
    return listed.parent / "tom.safetensors"


def test_what_a_killed_training_kept_is_not_dropped_without_a_word(killed, listed, model, capsys) -> None:
    capsys.readouterr()
    assert command.main(alone(listed, model)) == 1
    assert "an unfinished training is kept, of step 1. Give --resume" in capsys.readouterr().err
    assert not killed.exists()
    assert command.main(alone(listed, model, "--start-over")) == 0
    assert killed.exists()


@pytest.mark.parametrize(
    ("answers", "code", "resumed"), [("g\n", 0, True), ("what?\ns\n", 0, False), ("q\n", 130, None)]
)
def test_somebody_at_a_terminal_is_asked(killed, listed, model, monkeypatch, answers, code, resumed) -> None:
    from perfusion.training import trainer

    seen, original = [], trainer.train
    monkeypatch.setattr("sys.stdin", Terminal(answers))
    monkeypatch.setattr("sys.stderr", Terminal())

    def train(*arguments, **options):
        seen.append(options["resume"])
        return original(*arguments, **options)

    monkeypatch.setattr(trainer, "train", train)
    assert command.main(alone(listed, model)) == code
    assert seen == ([] if resumed is None else [resumed])


def test_resuming_what_is_finished_says_that_it_is_done(listed, model, capsys) -> None:
    assert command.main(alone(listed, model)) == 0
    written = (listed.parent / "tom.safetensors").read_bytes()
    capsys.readouterr()
    assert command.main(alone(listed, model, "--resume")) == 0
    assert "tom.safetensors: done, <cat> is finished" in capsys.readouterr().out.replace("<tom>", "<cat>")
    assert command.main(alone(listed, model, "--resume", "--steps", "5")) == 1
    assert "is finished, with other settings: steps (2 then, 5 now)" in capsys.readouterr().err
    assert (listed.parent / "tom.safetensors").read_bytes() == written
