"""Train, draw and measure the trials: python -m benchmarks.focus; the same command goes on where it was stopped."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evaluation.plan import open_work
from benchmarks.evaluation.regions import region_results
from benchmarks.evaluation.units import Context, duration, run_units
from benchmarks.focus.trials import TINY, TRIALS, WHOLE, Trial, trial_units, variants_of
from benchmarks.record import ROOT, write_record
from perfusion.files import writing

COLUMNS = (
    ("drawn", ""), ("image", "subjects"), ("alone", "subjects"), ("text", "subjects"), ("both", "subjects"),
    ("second_seen", "subjects"), ("subjects", "subjects"), ("both", "pairs"), ("subjects", "pairs"),
    ("lesser", "pairs"),
)  # fmt: skip
HEAD = (
    "drawn | image similarity | the same, one thing | text similarity | both nouns | second thing seen | "
    "subject and second | pairs: both nouns | both subjects | likeness of the lesser"
)


def main() -> None:
    """The stages in their order, then the table and, if it is asked for, the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.focus", description=__doc__)
    parser.add_argument("--work", type=Path, help="where everything is kept (build/focus)")
    parser.add_argument("--trials", help="some of the trials by their names, with commas between")
    parser.add_argument("--subjects", help="some of the subjects")
    parser.add_argument("--processes", type=int, default=1, help="of one core each (1)")
    parser.add_argument("--record", action="store_true", help="write the record of what was asked for")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal; its numbers mean nothing")
    arguments = parser.parse_args()
    plan = TINY if arguments.tiny else WHOLE
    work = arguments.work or ROOT / "build" / ("focus-tiny" if arguments.tiny else "focus")
    open_work(work, plan)
    context, trials = Context(plan=plan, work=work), chosen(arguments.trials)
    subjects = plan.subjects if arguments.subjects is None else tuple(arguments.subjects.split(","))
    for title, units in trial_units(context, trials, subjects):
        waiting = [unit for unit in units if not (work / unit.path).exists()]
        cost = sum(unit.cost for unit in waiting) / arguments.processes
        print(f"{title}: {len(waiting)} of {len(units)} to do, about {duration(cost)}", flush=True)
        run_units(units, context, arguments.processes, lambda line: print(line, flush=True))
    rows = region_results(context, subjects, [one for trial in trials for one in variants_of(trial)])
    table = table_of(rows)
    print(table)
    with writing(work / "focus.md", "w") as file:
        file.write(table + "\n")
    if arguments.record:
        print(write_record("focus", rows))


def chosen(names: str | None) -> tuple[Trial, ...]:
    """Trials by their names, all without any. Raises `SystemExit` for a name that is none's."""
    if names is None:
        return TRIALS
    known = {trial.name: trial for trial in TRIALS}
    if unknown := [name for name in names.split(",") if name not in known]:
        raise SystemExit(f"There is no trial {unknown[0]!r}; choose among {', '.join(known)}.")
    return tuple(known[name] for name in names.split(","))


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a variant: means over the subjects and the pairs."""
    lines = [f"| {HEAD} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [row["title"]]
        for key, part in COLUMNS[1:]:
            mean = row[part][key][0]
            is_share = key in ("both", "second_seen", "subjects")
            cells.append(f"{100 * mean:.0f} %" if is_share else f"{mean:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    # a shell lets what it starts in the background ignore the first
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    main()
