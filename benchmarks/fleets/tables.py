"""python -m benchmarks.fleets.tables --write: the tables of docs/fleet.md, from the records."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.record import RECORDS, ROOT

__all__ = ["PAGE", "filled", "measured", "predicted", "simulated", "together"]

Row = dict[str, Any]

PAGE = ROOT / "docs" / "fleet.md"
_PLACE = re.compile(r"(<!-- table: (\w+) -->\n\n).*?(\n\n<!-- end -->)", re.S)
_NOT_YET = "*Not measured yet.*"


def measured() -> str:
    """Jobs an hour and pictures a second, with one worker and with two."""
    jobs = {row["workers"]: row for row in _rows("fleet-train")}
    pictures = {row["replicas"]: row for row in _rows("fleet-serve")}
    lines = [
        f"| workers | jobs of {jobs[1]['steps']} steps an hour | pictures a second | seconds of a picture, median |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {count} | {jobs[count]['jobs_an_hour']:.0f} | {pictures[count]['pictures_a_second']:.2f} | "
        f"{pictures[count]['median_seconds']:.1f} |"
        for count in sorted(jobs)
    ]
    return "\n".join(lines)


def predicted() -> str:
    """The simulation beside what was measured."""
    lines = [
        "| replicas | pictures a second, predicted | measured | seconds of a picture, predicted | measured |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['replicas']} | {row['predicted_rate']:.2f} | {row['measured_rate']:.2f} | "
        f"{row['predicted_seconds']:.1f} | {row['measured_seconds']:.1f} |"
        for row in _rows("fleet-simulation")
        if row["kind"] == "prediction"
    ]
    return "\n".join(lines)


def simulated() -> str:
    """Fleets of all sizes; a cell holds pictures a second, and the median and 95 % of their seconds."""
    rows = [row for row in _rows("fleet-simulation") if row["kind"] == "fleet"]
    lines = [
        "| a call of 8 costs | replicas | concepts | asked | mixed | by adapter | merged |",
        "|---|---|---|---|---|---|---|",
    ]
    for first in rows[::3]:
        group = [row for row in rows if _place(row) == _place(first)]
        cells = " | ".join(
            f"{_short(row['rate'])} ({_short(row['median_seconds'])}, {_short(row['p95_seconds'])})"
            for row in group
        )
        shape = "as measured" if first["costs"] == "measured" else first["costs"].replace("x", "×")
        power = f"10{str(len(str(first['concepts'])) - 1).translate(_RAISED)}"
        lines.append(
            f"| {shape} | {first['replicas']:,} | {power} | {_short(first['asked_rate'])} | {cells} |"
        )
    return "\n".join(lines)


def together() -> str:
    """What several concepts in one training step gain at most."""
    lines = [
        "| model | rows of a concept | concepts in a step | seconds | gains at most |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']}, {row['resolution']} px | {row['rows_of_a_concept']} | {row['concepts']} | "
        f"{row['seconds']:.2f} | {row['gain_at_most']:.2f} × |"
        for row in _rows("train-together")
    ]
    return "\n".join(lines)


_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _place(row: Row) -> tuple[Any, ...]:
    return row["costs"], row["replicas"]


def _short(number: float) -> str:
    """Three digits that count."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _rows(name: str) -> Iterable[Row]:
    path = next(RECORDS.glob(f"{name}-*.json"), None)
    if path is None:
        raise FileNotFoundError(f"{name} has no record")
    rows: list[Row] = json.loads(path.read_text("utf-8"))["rows"]
    return rows


def filled(page: str) -> str:
    """A page with its tables as the records have them now."""
    tables: dict[str, Callable[[], str]] = {
        "measured": measured, "predicted": predicted, "simulated": simulated, "together": together,
    }  # fmt: skip
    return _PLACE.sub(lambda place: f"{place[1]}{_table(tables[place[2]])}{place[3]}", page)


def _table(table: Callable[[], str]) -> str:
    try:
        return table()
    except FileNotFoundError:
        return _NOT_YET


if __name__ == "__main__":
    text = filled(PAGE.read_text("utf-8"))
    if "--write" in sys.argv:
        PAGE.write_text(text, "utf-8")
    else:
        print(text)
