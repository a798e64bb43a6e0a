"""The rows of a list, from CSV or lines of JSON: text by the name of its column."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from perfusion.errors import TrainingError

__all__ = ["Row", "read_rows"]

Row = Mapping[str, str]

SEPARATORS = (",", ";", "\t")
"""Between cells: what spreadsheets write, by country and by menu."""


def read_rows(path: Path, known: Collection[str], needed: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """The rows of a .csv or .jsonl file with the numbers of their lines. Empty cells and rows are left out.

    Args:
        known: the columns that there may be.
        needed: those of which every row has a cell.

    Raises:
        TrainingError: a file that is no such list, a column that is not known or comes twice, or a row without what it
            needs. The line is named.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise TrainingError(f"{path} cannot be read as a list: {error}.") from error
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"{path} cannot be read as a list, expected text in UTF-8 (in a spreadsheet: save it as CSV UTF-8)."
        ) from error
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in readers:
        raise TrainingError(f"{path} does not end in .csv or .jsonl, expected a list of trainings.")
    for line, names, row in readers[path.suffix.lower()](path, text):
        _check_names(f"{path}, line {line}", names, known)
        filled = {name: value.strip() for name, value in row.items() if value.strip()}
        missing = [name for name in needed if name not in filled]
        if missing and filled:
            raise TrainingError(f"{path}, line {line}: there is no {missing[0]}, which every row needs.")
        if filled:
            yield line, filled


Named = Iterator[tuple[int, Sequence[str], Row]]
"""Rows with their lines and the columns that these lines name."""


def _csv_rows(path: Path, text: str) -> Named:
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=separator, strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            if not names:
                names = [name.strip() for name in cells]
                yield reader.line_num, names, {}
            elif len(cells) > len(names):
                raise TrainingError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells for {len(names)} columns; put cells with "
                    f"{'tabs' if separator == chr(9) else repr(separator)} in quotes."
                )
            else:
                yield reader.line_num, (), dict(zip(names, cells, strict=False))
    except csv.Error as error:
        raise TrainingError(
            f"{path}, line {reader.line_num}: a quote that opens is not closed where a cell ends ({error})."
        ) from error


def _json_rows(path: Path, text: str) -> Named:
    for line, entry in enumerate(text.splitlines(), 1):
        if not entry.strip():
            continue
        try:
            row = json.loads(entry)
            if not isinstance(row, dict):
                raise ValueError(f"it holds {type(row).__name__}")
        except ValueError as error:
            raise TrainingError(f"{path}, line {line}: expected an object of JSON, and {error}.") from error
        yield line, tuple(row), {name: _as_text(value) for name, value in row.items()}


def _as_text(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_names(place: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse columns that mean nothing, or two things."""
    seen = set[str]()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"Did you mean {near[0]}?"
                if near
                else f"A CSV's first line names its columns, out of {', '.join(sorted(known))}."
            )
            raise TrainingError(f"{place}: the column {name!r} is no option of a training. {hint}")
        if name in seen:
            raise TrainingError(f"{place}: the column {name} comes twice, expected once.")
        seen.add(name)
