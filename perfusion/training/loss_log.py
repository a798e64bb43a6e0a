"""The loss of every step, written while the training goes on: for a spreadsheet, or for TensorBoard.

An interrupted training goes on from its last state and does the steps since then again. So the first step that is added
drops all of that number and later ones that an earlier run left.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, Protocol, TextIO

from perfusion.errors import TrainingError
from perfusion.files import writing

__all__ = ["KINDS", "CsvLog", "LossLog", "TensorBoardLog", "losses_path", "open_loss_log"]

KINDS = ("csv", "tensorboard")
HEADER = "step,loss,mean"


class LossLog(Protocol):
    """Where losses go."""

    def add(self, step: int, loss: float, mean: float) -> None:
        """The loss of one step, counted from 1, and the running mean of all up to it (`Run.loss`)."""

    def close(self) -> None:
        """No step follows."""


def losses_path(output: Path, kind: str) -> Path:
    """cat.losses.csv, or for TensorBoard the folder cat.losses, beside cat.safetensors."""
    stem = output.stem if output.suffix else output.name
    return output.with_name(f"{stem}.losses.csv" if kind == "csv" else f"{stem}.losses")


def open_loss_log(path: Path | None, kind: str) -> AbstractContextManager[LossLog | None]:
    """The log of a kind, closed when the block ends; without a path none.

    Raises:
        TrainingError: TensorBoard is not installed.
    """
    if path is None:
        return nullcontext(None)
    log: LossLog = CsvLog(path) if kind == "csv" else TensorBoardLog(path)
    return closing(log)


class CsvLog:
    """A table with the columns step, loss and mean. Each line is there as soon as its step is done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def add(self, step: int, loss: float, mean: float) -> None:
        """Append a line; see `LossLog`."""
        if self._file is None:
            lines = [HEADER, *self._earlier(step)]
            with writing(self._path, "w") as file:
                file.write("\n".join(lines) + "\n")
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._file.write(f"{step},{loss:.6g},{mean:.6g}\n")

    def close(self) -> None:
        """Close the file; see `LossLog`."""
        if self._file is not None:
            self._file.close()

    def _earlier(self, step: int) -> list[str]:
        """The lines of an earlier run, up to a step; the half of one that a crash left is none."""
        if not self._path.is_file():
            return []
        rows = [line.split(",") for line in self._path.read_text("utf-8", "replace").splitlines()]
        return [",".join(row) for row in rows if len(row) == 3 and row[0].isdigit() and int(row[0]) < step]


class TensorBoardLog:
    """A folder for `tensorboard --logdir`, with the curves loss and loss_mean.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                'TensorBoard is not installed. Run pip install "perfusion-edge[tensorboard]", or give --log-losses csv.'
            ) from error
        self._folder = folder
        self._open: Any = SummaryWriter  # torch annotates none of it
        self._writer: Any = None

    def add(self, step: int, loss: float, mean: float) -> None:
        """Write both; see `LossLog`."""
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=step)
        self._writer.add_scalar("loss", loss, step)
        self._writer.add_scalar("loss_mean", mean, step)

    def close(self) -> None:
        """Close the folder's newest file; see `LossLog`."""
        if self._writer is not None:
            self._writer.close()
