"""A list of trainings: a CSV or JSONL file whose columns are the long options of perfusion-train, without dashes.

    images,superclass,token,steps
    mugs/red,teapot,<red-mug>,300
    hats/top,hat,<top-hat>,

Paths are relative to the list. An empty cell, and a column that is not there, mean the default.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from perfusion.errors import TrainingError
from perfusion.numerals import decimal, whole
from perfusion.pocket.vocabulary import noun_fault
from perfusion.training.config import MASKS
from perfusion.training.list_rows import Row, read_rows
from perfusion.training.picture_folder import find_pictures
from perfusion.training.training_job import TrainingJob
from perfusion.training.training_options import add_training_options

__all__ = ["list_defaults", "read_job_list"]

logger = logging.getLogger(__name__)

NEEDED = ("images", "superclass")
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


def read_job_list(
    path: Path, folder: Path, defaults: argparse.Namespace | None = None
) -> tuple[TrainingJob, ...]:
    """Read a list and check all of it before anything is trained.

    Args:
        path: of the list, .csv or .jsonl.
        folder: where the concepts are written. A row's `output` is a name in it; without one the token's word is the
            name, or without a token the name of the folder of pictures.
        defaults: parsed options for all rows (`add_training_options`); None: the usual ones.

    Raises:
        TrainingError: a file that is no such list, a column that is no option, a value that its option cannot have,
            pictures that are not there, or two rows that would write one file. The line is named.
    """
    options = _RowParser(add_help=False, allow_abbrev=False)
    add_training_options(options)
    jobs: dict[str, tuple[int, TrainingJob]] = {}
    known = {name for name in options.actions() if not name.startswith("no-") or name == "no-keys"}
    for line, row in read_rows(path, known, NEEDED):
        try:
            job = _job(row, path.parent, folder, options, defaults)
        except TrainingError as error:
            raise TrainingError(f"{path}, line {line}: {error}") from error
        for output in job.written:
            other, _ = jobs.setdefault(str(output).lower(), (line, job))
            if other != line:
                raise TrainingError(
                    f"{path}, line {line}: writes {output}, as line {other} does; give both an output or a token."
                )
    if not jobs:
        raise TrainingError(f"{path} has no rows, expected one for each training below the names of columns.")
    _tell_shared_tokens(path, jobs.values())
    return tuple(dict.fromkeys(job for _, job in jobs.values()))


def _tell_shared_tokens(path: Path, jobs: Iterable[tuple[int, TrainingJob]]) -> None:
    """Warn of concepts with one token: each is fine alone, and no program can load both."""
    lines: dict[str, list[int]] = {}
    for line, job in dict.fromkeys(jobs):
        lines.setdefault(job.config.token.lower(), []).append(line)
    for token, shared in lines.items():
        if len(shared) > 1:
            logger.warning(
                "%s: lines %s all have the token %s; only one of these concepts can be loaded at a time, so give each "
                "row a token", path, ", ".join(map(str, shared)), token,
            )  # fmt: skip


def list_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """The options of a command line that a row may have too, for `read_job_list`; a row's output is its own."""
    options = _RowParser(add_help=False, allow_abbrev=False)
    add_training_options(options)
    names = {action.dest for action in options.actions().values()} - {"output"}
    return argparse.Namespace(**{name: getattr(args, name) for name in names})


class _RowParser(argparse.ArgumentParser):
    """An argument parser whose complaint is an error of ours. Its numbers may be a spreadsheet's: 300,0 is 300."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for kind, reader in ((int, whole), (float, decimal)):
            self.register("type", kind, _typed(reader))

    def error(self, message: str) -> Any:
        raise TrainingError(message[:1].upper() + message[1:] + ".")

    def actions(self) -> dict[str, argparse.Action]:
        """Every option by its long name without dashes."""
        return {
            name[2:]: action for name, action in self._option_string_actions.items() if name.startswith("--")
        }


def _typed(reader: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            return reader(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _job(
    row: Row, beside: Path, folder: Path, options: _RowParser, defaults: argparse.Namespace | None
) -> TrainingJob:
    args = argparse.Namespace(**vars(defaults)) if defaults else argparse.Namespace()
    actions = options.actions()
    words = [
        f"--{name}={value}"
        for name, value in row.items()
        if not _is_flag(actions[name]) and name not in ("output",)
    ]
    args = options.parse_args(words, args)
    for name, value in row.items():
        if _is_flag(actions[name]):
            setattr(args, actions[name].dest, _flag(name, value))
        elif actions[name].type is Path and name != "output":
            setattr(args, actions[name].dest, _path(beside / value, name))
    if "masks" in row and row["masks"] not in MASKS:
        args.masks = _path(beside / row["masks"], "masks")
    args.output = folder / _output(row)
    job = TrainingJob.of(args)
    if job.model is None and (fault := noun_fault(job.config.superclass)):
        raise TrainingError(fault)
    find_pictures(job.images)
    return job


def _path(path: Path, name: str) -> Path:
    if name != "images" and not path.exists():  # what is wrong with pictures is said better by who reads them
        raise TrainingError(
            f"The column {name} is {path}, and nothing is there. Paths are relative to the list."
        )
    return path


def _is_flag(action: argparse.Action) -> bool:
    return action.nargs == 0


def _flag(name: str, value: str) -> bool:
    if value.lower() not in (*TRUE, *FALSE):
        raise TrainingError(f"The column {name} is {value!r}, expected true or false.")
    return value.lower() in TRUE


def _output(row: Row) -> str:
    """The name of a row's file in the folder."""
    name = row.get("output") or row.get("token", "").strip("<>") or Path(row["images"]).resolve().name
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in Path(name).parts
    if outside or (not row.get("output") and set(name) & set('/\\:*?"|')):
        raise TrainingError(
            f"The output is {name!r}, expected a name in the folder of --output. Add an output."
        )
    return name if Path(name).suffix.lower() in (".safetensors", ".png") else f"{name}.safetensors"
