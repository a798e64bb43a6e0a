"""The losses of a training, where they were wanted."""

import builtins
import csv
import json
import math

import pytest

from perfusion.commands import train as command
from perfusion.errors import TrainingError
from perfusion.training import TrainingConfig, train
from perfusion.training.loss_log import CsvLog, TensorBoardLog, losses_path, open_loss_log
from perfusion.training.work_folder import WorkFolder

CONFIG = TrainingConfig(
    superclass="cat", steps=5, batch_size=2, crops=2, masks="none", save_every=2, select="last"
)


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [(int(row["step"]), float(row["loss"]), float(row["mean"])) for row in csv.DictReader(file)]


def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(entry.step, entry.value) for entry in events.Scalars(name)] for name in ("loss", "loss_mean")
    }


def test_the_table_has_every_step_with_the_mean_that_the_progress_shows(tiny_base, pictures, tmp_path):
    shown = []
    path = tmp_path / "cat.losses.csv"
    with open_loss_log(path, "csv") as losses:
        train(pictures, CONFIG, model=tiny_base, losses=losses, report=lambda *pair: shown.append(pair))
    table = rows(path)
    assert [step for step, _, _ in table] == [1, 2, 3, 4, 5]
    assert [mean for _, _, mean in table] == pytest.approx([mean for _, mean in shown], rel=1e-5)
    means = [table[0][1]]
    for _, loss, _ in table[1:]:
        means.append(0.95 * means[-1] + 0.05 * loss)
    assert [mean for _, _, mean in table] == pytest.approx(means, rel=1e-4)


def test_after_an_interruption_the_table_is_that_of_a_whole_training(tiny_base, pictures, tmp_path):
    whole, path = tmp_path / "whole.csv", tmp_path / "cat.losses.csv"
    with open_loss_log(whole, "csv") as losses:
        train(pictures, CONFIG, model=tiny_base, losses=losses)

    def stop(step, _):
        if step == 3:
            raise KeyboardInterrupt

    work = WorkFolder(tmp_path / "cat.safetensors")
    with pytest.raises(KeyboardInterrupt), open_loss_log(path, "csv") as losses:
        train(pictures, CONFIG, model=tiny_base, work=work, losses=losses, report=stop)
    assert len(rows(path)) == 3
    path.write_text(path.read_text() + "4,0.1", "utf-8")  # half a line, as a power cut leaves
    with open_loss_log(path, "csv") as losses:
        train(pictures, CONFIG, model=tiny_base, work=work, resume=True, losses=losses)
    assert path.read_bytes() == whole.read_bytes()


def test_a_line_is_there_as_soon_as_its_step_is_done(tmp_path):
    log = CsvLog(tmp_path / "a.csv")
    log.add(1, 0.5, 0.5)
    assert rows(tmp_path / "a.csv") == [(1, 0.5, 0.5)]
    log.close()


def test_tensorboard_reads_the_same_numbers_and_none_twice(tmp_path):
    pytest.importorskip("tensorboard")
    for first, last in ((1, 4), (3, 6)):  # the second run goes on after step 2
        log = TensorBoardLog(tmp_path / "cat.losses")
        for step in range(first, last):
            log.add(step, 1 / step, first + step)
        log.close()
    shown = curves(tmp_path / "cat.losses")
    assert shown["loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    assert shown["loss_mean"] == [(1, 2.0), (2, 3.0), (3, 6.0), (4, 7.0), (5, 8.0)]


def test_without_tensorboard_it_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "torch.utils.tensorboard.writer":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(TrainingError, match=r'pip install "perfusion-edge\[tensorboard\]"'):
        open_loss_log(tmp_path / "cat.losses", "tensorboard")


@pytest.mark.parametrize("name", ["cat.safetensors", "cat.png", "cat"])
def test_both_lie_beside_the_concept(tmp_path, name):
    assert losses_path(tmp_path / name, "csv") == tmp_path / "cat.losses.csv"
    assert losses_path(tmp_path / name, "tensorboard") == tmp_path / "cat.losses"


def test_the_command_writes_the_table_and_names_it(tiny_model, pictures, tmp_path, capsys):
    arguments = ["--images", str(pictures), "--superclass", "cat", "--model", str(tiny_model), "--steps", "2"]
    arguments += ["--batch-size", "1", "--masks", "none", "--no-sheet", "--quiet", "--json"]
    arguments += ["--log-losses", "csv", "--output", str(tmp_path / "cat.safetensors")]
    assert command.main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["losses"] == str(tmp_path / "cat.losses.csv")
    table = rows(tmp_path / "cat.losses.csv")
    assert len(table) == 2 and all(math.isfinite(loss) for _, loss, _ in table)
    assert facts["loss"] == pytest.approx(table[-1][2], abs=1e-5)
