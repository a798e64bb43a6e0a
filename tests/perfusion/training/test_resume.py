"""A training that was interrupted, at any moment and in any way, ends with the bytes of one that was not."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion.base.base_model import load_base
from perfusion.commands import train as command
from perfusion.concept.concept_file import Concept
from perfusion.errors import ModelError, TrainingError
from perfusion.training import TrainingConfig, train
from perfusion.training.parallel import World
from perfusion.training.work_folder import WorkFolder


def options(**changes) -> TrainingConfig:
    usual = {"superclass": "cat", "steps": 9, "batch_size": 2, "crops": 2, "masks": "none", "save_every": 2}
    return TrainingConfig(**(usual | {"select": "last"} | changes))


def interrupted(pictures: Path, base, work: WorkFolder, at: int, error=KeyboardInterrupt, **changes) -> None:
    def report(step: int, loss: float) -> None:
        if step == at:
            raise error

    with pytest.raises(error):
        train(pictures, options(**changes), model=base, work=work, report=report)


@pytest.mark.parametrize(("rows", "at"), [(1, 3), (2, 4), (1, 9)])
def test_resumed_bytes_are_those_of_an_uninterrupted_training(
    tiny_base, pictures, tmp_path, rows, at
) -> None:
    whole = train(pictures, options(rows=rows), model=tiny_base)
    work = WorkFolder(tmp_path / "cat.safetensors")
    interrupted(pictures, tiny_base, work, at, rows=rows)
    steps: list[int] = []
    lines: list[str] = []
    result = train(
        pictures, options(rows=rows), model=tiny_base, work=work, resume=True, say=lines.append,
        report=lambda step, _: steps.append(step),
    )  # fmt: skip
    last = at if at == 9 else at // 2 * 2
    assert steps == list(range(last + 1, 10))
    assert f"going on after step {last} of 9" in lines
    assert result.concept.to_bytes("float32") == whole.concept.to_bytes("float32")
    assert result.loss == whole.loss


def test_the_same_snapshot_is_chosen_after_a_resume(tiny_base, pictures, tmp_path) -> None:
    changes = {"select": "auto", "save_every": 3}
    whole = train(pictures, options(**changes), model=tiny_base)
    assert whole.selection is not None
    assert [score.step for score in whole.selection.scores] == [3, 6, 9]
    best = whole.selection.best.step
    assert whole.concept.training["chosen_step"] == str(best)
    work = WorkFolder(tmp_path / "cat.safetensors")
    interrupted(pictures, tiny_base, work, 7, **changes)
    again = train(pictures, options(**changes), model=tiny_base, work=work, resume=True)
    assert again.selection == whole.selection
    assert again.concept.to_bytes("float32") == whole.concept.to_bytes("float32")
    short = train(pictures, options(steps=best), model=tiny_base)
    np.testing.assert_array_equal(short.concept.target_values, whole.concept.target_values)


def test_a_resumed_training_saves_chooses_and_clears_up_where_open_files_stay(
    tiny_base, pictures, tmp_path, held_files
) -> None:
    """On Windows no file that is open or mapped is replaced or removed: neither the state nor a snapshot may be."""
    changes = {"select": "auto", "save_every": 3}
    work = WorkFolder(tmp_path / "cat.safetensors")
    interrupted(pictures, tiny_base, work, 4, **changes)
    state = work.state_path.read_bytes()
    interrupted_again: list[bytes] = []

    def report(step: int, loss: float) -> None:
        if step == 8 and not interrupted_again:
            interrupted_again.append(work.state_path.read_bytes())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pictures, options(**changes), model=tiny_base, work=work, resume=True, report=report)
    assert interrupted_again[0] != state, "the resumed training has saved nothing"
    result = train(pictures, options(**changes), model=tiny_base, work=work, resume=True)
    result.concept.save(work.output)
    Concept.load(work.output).save(work.output)
    work.finish(keep=False)
    assert not work.path.exists(), list(work.path.iterdir())


def test_a_training_can_be_made_longer(tiny_base, pictures, tmp_path) -> None:
    work = WorkFolder(tmp_path / "cat.safetensors")
    train(pictures, options(steps=4), model=tiny_base, work=work)
    longer = train(pictures, options(), model=tiny_base, work=work, resume=True)
    assert longer.concept.to_bytes() == train(pictures, options(), model=tiny_base).concept.to_bytes()
    with pytest.raises(TrainingError, match="has done 9 steps, and --steps asks for 3"):
        train(pictures, options(steps=3), model=tiny_base, work=work, resume=True)


@pytest.mark.parametrize(
    ("change", "name"), [({"seed": 1}, "seed"), ({"batch_size": 3}, "batch_size"), ({"flip": False}, "flip")]
)
def test_other_settings_are_refused_by_name(tiny_base, pictures, tmp_path, change, name) -> None:
    work = WorkFolder(tmp_path / "cat.safetensors")
    interrupted(pictures, tiny_base, work, 3)
    with pytest.raises(TrainingError, match=rf"interrupted training had other settings: {name} \("):
        train(pictures, options(**change), model=tiny_base, work=work, resume=True)
    assert work.last_step() == 2, "what is kept is still there"


def test_what_cannot_be_resumed_is_told_before_anything_expensive(
    tiny_base, pictures, tmp_path, monkeypatch
) -> None:
    work = WorkFolder(tmp_path / "cat.safetensors")
    interrupted(pictures, tiny_base, work, 3)
    for name in ("initial_edit", "encode_pictures"):
        monkeypatch.setattr(f"perfusion.training.trainer.{name}", pytest.fail)
    for change, message in (
        ({"seed": 1}, "other settings: seed"),
        ({"steps": 1}, "has done 2 steps, and --steps asks for 1"),
    ):
        with pytest.raises(TrainingError, match=message):
            train(pictures, options(**change), model=tiny_base, work=work, resume=True)


def test_what_would_fail_after_the_encoding_is_told_before_it(
    tiny_base, pictures, tmp_path, monkeypatch
) -> None:
    for name in ("initial_edit", "encode_pictures"):
        monkeypatch.setattr(f"perfusion.training.trainer.{name}", pytest.fail)
    with pytest.raises(ModelError, match=r"no such folder; expected a folder .*clipseg"):
        train(pictures, options(masks="clipseg", segmenter=tmp_path / "no"), model=tiny_base)
    strange = replace(tiny_base, scheduler={**tiny_base.scheduler, "prediction_type": "flow"})
    with pytest.raises(TrainingError, match="The base model predicts 'flow'"):
        train(pictures, options(), model=strange)
    monkeypatch.setattr("perfusion.training.parallel.world", lambda: World(size=3))
    with pytest.raises(TrainingError, match="2 samples a step for 3 processes"):
        train(pictures, options(), model=tiny_base)


def test_two_trainings_of_one_output_are_refused_by_the_number_of_the_process(
    tiny_base, pictures, tmp_path
) -> None:
    output = tmp_path / "cat.safetensors"
    refusal = rf"cat.safetensors: another training is writing it \(process {os.getpid()}\); wait for it"
    with WorkFolder(output).locked(), pytest.raises(TrainingError, match=refusal):
        train(pictures, options(), model=tiny_base, work=WorkFolder(output))
    assert list(tmp_path.glob("cat*")) == [], "nothing is left of a lock"
    train(pictures, options(steps=1), model=tiny_base, work=WorkFolder(output))


def test_the_command_refuses_while_another_one_runs(tiny_model, pictures, tmp_path, capsys) -> None:
    output = tmp_path / "new" / "cat.safetensors"
    line = arguments(tiny_model, pictures, output, "--steps", "1", "--quiet")
    with WorkFolder(output).locked():
        assert command.main(line) == 1
    error = capsys.readouterr().err
    assert f"another training is writing it (process {os.getpid()})" in error
    assert error.count("\n") == 1
    assert not output.parent.exists(), "nor the folder that was made for it"


def test_other_pictures_are_refused(tiny_base, pictures, tmp_path) -> None:
    work = WorkFolder(tmp_path / "cat.safetensors")
    interrupted(pictures, tiny_base, work, 3)
    shutil.copy(pictures / "0.png", pictures / "2.png")
    with pytest.raises(TrainingError, match=r"pictures \(changed since\)"):
        train(pictures, options(), model=tiny_base, work=work, resume=True)


def test_what_a_base_model_brings_along_is_part_of_the_training(
    tiny_base, tiny_model, pictures, tmp_path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    base = replace(tiny_base, folder=folder, source=folder)
    work = WorkFolder(tmp_path / "cat.safetensors")
    interrupted(pictures, base, work, 3)
    other = replace(base, scheduler={**base.scheduler, "prediction_type": "epsilon"})
    with pytest.raises(TrainingError, match=r"other settings: noise_schedule \(changed since\)"):
        train(pictures, options(), model=other, work=work, resume=True)
    with open(folder / "captions.txt", "a") as captions:
        captions.write("a photo of a dog\n")
    with pytest.raises(TrainingError, match=r"other settings: captions \(changed since\)"):
        train(pictures, options(), model=base, work=work, resume=True)


def test_without_resume_an_unfinished_training_is_dropped_and_told(tiny_base, pictures, tmp_path) -> None:
    work = WorkFolder(tmp_path / "cat.safetensors")
    lines: list[str] = []
    interrupted(pictures, tiny_base, work, 5)
    train(pictures, options(steps=1), model=tiny_base, work=work, say=lines.append)
    assert any("an unfinished training is dropped" in line for line in lines)
    assert sorted(work.concepts()) == [1]


def test_nothing_to_resume_begins_at_the_beginning_and_says_so(tiny_base, pictures, tmp_path) -> None:
    lines: list[str] = []
    work = WorkFolder(tmp_path / "cat.safetensors")
    result = train(pictures, options(), model=tiny_base, work=work, resume=True, say=lines.append)
    assert any("nothing to resume" in line for line in lines)
    assert result.concept.to_bytes() == train(pictures, options(), model=tiny_base).concept.to_bytes()


def test_a_file_in_the_place_of_the_work_folder_is_refused_before_the_training(
    tiny_base, pictures, tmp_path
) -> None:
    (tmp_path / "cat.safetensors.work").write_text("mine")
    with pytest.raises(TrainingError, match="cannot be used to keep an unfinished training"):
        train(pictures, options(), model=tiny_base, work=WorkFolder(tmp_path / "cat.safetensors"))


def arguments(tiny_model: Path, pictures: Path, output: Path, *more: str) -> list[str]:
    return [
        "--images", str(pictures), "--superclass", "cat", "--model", str(tiny_model), "--batch-size", "2",
        "--masks", "none", "--device", "cpu", "--no-sheet", "--output", str(output), *more,
    ]  # fmt: skip


def test_ctrl_c_tells_how_to_go_on(tiny_model, pictures, tmp_path, monkeypatch, capsys) -> None:
    from perfusion.training import training_loop as loop

    output, done, original = tmp_path / "cat.safetensors", [], loop.train_step

    def step(*given, **named):
        done.append(1)
        if len(done) == 6:
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(loop, "train_step", step)
    line = arguments(tiny_model, pictures, output, "--steps", "8", "--save-every", "4", "--quiet")
    assert command.main(line) == 130
    error = capsys.readouterr().err
    assert f"step 4 of 8 is kept in {output}.work; the same command with --resume goes on from there" in error
    assert error.endswith("perfusion-train: interrupted\n")
    assert not output.exists()
    monkeypatch.setattr(loop, "train_step", original)
    assert command.main([*line, "--resume", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["step"] for entry in told["snapshots"]] == [4, 8]
    assert told["chosen_step"] in (4, 8)
    assert not WorkFolder(output).path.exists()


def test_a_full_disk_is_one_sentence(tiny_model, pictures, tmp_path, monkeypatch, capsys) -> None:
    import errno

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("perfusion.files.os.fsync", full)
    output = tmp_path / "cat.safetensors"
    line = arguments(tiny_model, pictures, output, "--steps", "1", "--quiet")
    monkeypatch.setattr("perfusion.training.initial_edit.cached_second_moment", _uncached)
    assert command.main(line) == 1
    error = capsys.readouterr().err
    assert "cannot be written: no space left on device. Free some space" in error
    assert error.count("\n") == 1
    assert not output.exists()


def _uncached(base, captions, say, *, count_padding):
    import torch

    return torch.eye(base.text_dim, dtype=torch.float64)


def test_a_card_is_a_picture_with_the_concept_inside(tiny_model, pictures, tmp_path) -> None:
    output = tmp_path / "cat.png"
    more = (
        "--steps",
        "2",
        "--storage",
        "int8",
        "--no-keys",
        "--save-every",
        "1",
        "--keep-snapshots",
        "--quiet",
    )
    assert command.main(arguments(tiny_model, pictures, output, *more)) == 0
    with Image.open(output) as card:
        base = load_base(tiny_model)
        assert card.size == (base.resolution, base.resolution)
    assert Concept.load(output).target_keys is None
    assert sorted(path.name for path in WorkFolder(output).path.iterdir()) == [
        "step-000001.safetensors", "step-000002.safetensors",
    ]  # fmt: skip


def test_one_picture_is_enough(tiny_base, pictures) -> None:
    (pictures / "1.png").unlink()
    result = train(pictures, options(steps=2), model=tiny_base)
    assert result.concept.training["pictures"] == "1"


def started(line: list[str], **environment: str) -> subprocess.Popen[str]:
    command_line = [sys.executable, "-m", "perfusion.commands.train", *line, "--quiet"]
    return subprocess.Popen(
        command_line,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_the_command_killed_twice_writes_the_bytes_of_one_that_was_not(
    tiny_model, pictures, tmp_path
) -> None:
    more = ("--steps", "150", "--save-every", "5", "--select", "last")
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    finished(started(arguments(tiny_model, pictures, whole, *more)))
    work = WorkFolder(killed)
    for resume, beyond in (((), 10), (("--resume",), 60)):
        process = started(arguments(tiny_model, pictures, killed, *more, *resume))
        while process.poll() is None and (work.last_step() or 0) < beyond:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not killed.exists()
        assert 0 < (work.last_step() or 0) < 150
    finished(started(arguments(tiny_model, pictures, killed, *more, "--resume")))
    assert killed.read_bytes() == whole.read_bytes()
    assert not work.path.exists()


@pytest.mark.slow
def test_two_processes_train_the_concept_that_one_does_and_one_of_them_writes(
    tiny_model, pictures, tmp_path
) -> None:
    alone, shared = tmp_path / "alone.safetensors", tmp_path / "shared.safetensors"
    more = (
        "--steps",
        "6",
        "--precision",
        "fp32",
        "--storage",
        "float32",
        "--save-every",
        "3",
        "--select",
        "last",
    )
    finished(started(arguments(tiny_model, pictures, alone, *more)))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        started(
            arguments(tiny_model, pictures, shared, *more), RANK=str(rank), LOCAL_RANK=str(rank), **places
        )
        for rank in range(2)
    ]
    for process in processes:
        finished(process)
    one, two = Concept.load(alone), Concept.load(shared)
    np.testing.assert_allclose(two.target_values, one.target_values, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(two.embeddings[0], one.embeddings[0], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(two.direction, one.direction, rtol=1e-4, atol=1e-5)
    assert not WorkFolder(shared).path.exists()
