"""A list of trainings: a CSV or JSONL file whose columns are the long options of perfusion-train, without dashes.

    images,superclass,token,steps
    mugs/red,teapot,<red-mug>,300
    hats/top,hat,<top-hat>,

Paths are relative to the list. An empty cell, and a column that is not there, mean the default.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from perfusion.errors import TrainingError
from perfusion.numerals import decimal, whole
from perfusion.training.config import MASKS
from perfusion.training.training_job import TrainingJob
from perfusion.training.training_options import add_training_options

__all__ = ["list_defaults", "read_job_list"]

NEEDED = ("images", "superclass")
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")

Row = Mapping[str, str]


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
    for line, row in _rows(path, options):
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
    return tuple(dict.fromkeys(job for _, job in jobs.values()))


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


def _rows(path: Path, options: _RowParser) -> Iterator[tuple[int, Row]]:
    """The rows with the numbers of their lines, their columns checked."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as a list in UTF-8: {error}.") from error
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in readers:
        raise TrainingError(f"{path} does not end in .csv or .jsonl, expected a list of trainings.")
    known = {name for name in options.actions() if not name.startswith("no-") or name == "no-keys"}
    for line, row in readers[path.suffix.lower()](path, text):
        unknown = [name for name in row if name not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Expected some of {', '.join(sorted(known))}."
            raise TrainingError(
                f"{path}, line {line}: the column {unknown[0]!r} is no option of a training. {hint}"
            )
        filled = {name: value.strip() for name, value in row.items() if value.strip()}
        missing = [name for name in NEEDED if name not in filled]
        if missing and filled:
            raise TrainingError(f"{path}, line {line}: there is no {missing[0]}, which every row needs.")
        if filled:
            yield line, filled


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    first = text.partition("\n")[0]
    reader = csv.reader(text.splitlines(), delimiter=";" if ";" in first and "," not in first else ",")
    names: list[str] = []
    for cells in reader:
        if not names:
            names = [name.strip() for name in cells]
        elif len(cells) > len(names):
            raise TrainingError(
                f"{path}, line {reader.line_num}: {len(cells)} cells for {len(names)} columns; put cells with commas "
                "in quotes."
            )
        else:
            yield reader.line_num, dict(zip(names, cells, strict=False))


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    for line, entry in enumerate(text.splitlines(), 1):
        if not entry.strip():
            continue
        try:
            row = json.loads(entry)
            if not isinstance(row, dict):
                raise ValueError(f"it holds {type(row).__name__}")
        except ValueError as error:
            raise TrainingError(f"{path}, line {line}: expected an object of JSON, and {error}.") from error
        yield line, {name: _as_text(value) for name, value in row.items()}


def _as_text(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


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
            setattr(args, actions[name].dest, beside / value)
    if "masks" in row and row["masks"] not in MASKS:
        args.masks = beside / row["masks"]
    args.output = folder / _output(row)
    job = TrainingJob.of(args)
    from perfusion.training.picture_folder import find_pictures

    find_pictures(job.images)
    return job


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
