"""The tables of docs/evaluation.md, made from the record alone; the sentences around them are written by hand.

The page holds each table between `<!-- table NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.evaluation.figures import Interval, interval, paired
from benchmarks.evaluation.methods import FOR_PAIRS, METHODS, method_named
from perfusion.errors import RequestError

__all__ = ["Record", "filled", "region_tables", "tables"]

Row = Mapping[str, Any]
SIMILARITIES = ("image", "text", "harmonic")
SHARES = ("place", "noun", "both", "colour")
PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end of table -->)", re.S)


class Record:
    """The rows of `report.record_rows`, as a JSON file holds them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def part(self, what: str) -> dict[str, Any]:
        """What there is one row of, such as `trainings`."""
        row = next((row for row in self.rows if row["what"] == what), {})
        return {key: value for key, value in row.items() if key != "what"}

    def points(self, what: str, method: str | None = None) -> list[Row]:
        """A method with each of its settings, the default first; without a name every method."""
        return [row for row in self.rows if row["what"] == what and method in (None, row.get("method"))]

    def default(self, method: str) -> Row | None:
        """A method with its default setting."""
        return next(iter(self.points("prompts", method)), None)

    def over_subjects(self, what: str, key: str) -> Interval:
        """Of a figure that `base`, `truth` and their pairs have for every subject."""
        return interval([row[key] for row in self.part(what).values() if key in row])


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Every table that something was measured for, by its name."""
    record = Record(rows)
    return {name: "\n".join(lines) for name, table in TABLES.items() if len(lines := table(record)) > 2}


def filled(page: str, new_tables: Mapping[str, str]) -> str:
    """The page with some tables, by their names, in their places. Raises `RequestError` where one has no place."""
    homeless = sorted(set(new_tables) - {name for _, name, _ in PLACE.findall(page)})
    if homeless:
        raise RequestError(f"The page has no place for the table {homeless[0]!r}; add its two comments.")

    def replaced(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        return f"{opening}{new_tables[name]}\n{closing}" if name in new_tables else match[0]

    return PLACE.sub(replaced, page)


def region_tables(rows: Sequence[Row], record: str = "regions") -> dict[str, str]:
    """Of `regions.region_results`: what every variant draws where a second thing is asked for, and of pairs. Their
    names begin with the record's."""
    seconds = _head(
        "drawn | image similarity | text similarity | place | both nouns | second thing seen | subject and second | "
        "in order"
    )
    pairs = _head(
        "drawn | both nouns | both subjects | ordinary things | place | alike | the lesser | in order"
    )
    for row in rows:
        single, pair = row["subjects"], row["pairs"]
        cells = [
            *_intervals(single, ("image", "text")), *_percents(single, ("place", "both", "second_seen")),
            _interval(single["subjects"]).percent(), *_percents(single, ("in_order",)),
        ]  # fmt: skip
        seconds.append(_line(row["title"], *cells))
        cells = [
            *(_interval(pair[key]).percent() for key in ("both", "subjects")), *_percents(pair, ("ordinary", "place")),
            *_intervals(pair, ("image", "lesser")), *_percents(pair, ("in_order",)),
        ]  # fmt: skip
        pairs.append(_line(row["title"], *cells))
    return {record: "\n".join(seconds), f"{record.removesuffix('s')}_pairs": "\n".join(pairs)}


def best(points: Iterable[Row], key: str, default: Row) -> Row:
    """Of the points that are at least half as alike as the default one, the one with the most of a figure: settings
    that draw nothing but the base model are none."""
    alike = [point for point in points if point["image"][0] >= default["image"][0] / 2]
    return max(alike, key=lambda point: float(point[key][0]), default=default)


def titled(row: Row) -> str:
    """A method's title with the setting, where it is not the only one."""
    return method_named(row["method"]).title + (f" ({row['setting']})" if row["setting"] else "")


def _methods(record: Record) -> list[str]:
    lines = _head(
        "method | saved bytes | core-seconds | image similarity | text similarity | harmonic mean | place | noun | "
        "both things | other colour | drift of the superclass"
    )
    facts = record.part("trainings")
    shown = [record.default(method.name) for method in METHODS if method.group != "ablation"]
    for row in filter(None, shown):
        own = facts[row["method"]]
        cells = [f"{own['bytes']:,.0f}", f"{own['core_seconds']:.0f}", *_intervals(row, SIMILARITIES)]
        lines.append(_line(titled(row), *cells, *_percents(row, SHARES), f"{row['drift'][0]:.2f}"))
    if len(lines) == 2:
        return lines
    base = [_percent(record.over_subjects("base", key).mean) for key in SHARES]
    image, text, place, noun = (
        record.over_subjects("truth", key) for key in ("image", "text", "place", "noun")
    )
    shares = [_percent(place.mean), _percent(noun.mean)]
    another = f"{record.part('another seed')['levels']:.0f}"
    return [
        *lines,
        _line("*the base model, plain noun*", "", "", "0", "1", "", *base, "0"),
        _line("*true pictures of the subject*", "", "", image.text(), text.text(), "", *shares, "", "", ""),
        _line("*the base model, another seed*", *[""] * 9, another),
    ]


def _front(record: Record) -> list[str]:
    lines, facts = (
        _head(
            "baseline | times the bytes | below the front | sure | text similarity that the front has more"
        ),
        record.part("trainings"),
    )
    for row in record.points("front"):
        times = facts[row["method"]]["bytes"] / facts["perfusion"]["bytes"]
        stands = {"below": "yes", "on": "on it"}.get(row["stands"], "no")
        margin = "the front ends before it" if row["margin"] is None else _change(row["margin"])
        bytes_ = f"{times:.2g}" if times < 10 else f"{times:,.0f}"
        lines.append(_line(titled(row), bytes_, stands, f"{row['confidence']:.0%}", margin))
    return lines


def _pairs(record: Record) -> list[str]:
    lines = _head("method | how they are combined | both seen | alike | the lesser")
    for method in METHODS:
        points = record.points("pairs", method.name)
        chosen = [points[0], best(points, "both", points[0])] if points else []
        for row in points:
            if row in chosen or row["setting"] == FOR_PAIRS.label:
                alike = _intervals(row, ("image", "lesser"))
                lines.append(_line(titled(row), method.combines, _interval(row["both"]).percent(), *alike))
    if len(lines) == 2:
        return lines
    base, truth = (
        record.over_subjects("base pairs", "both"),
        interval(list(record.part("truth pairs").values())),
    )
    return [
        *lines,
        _line("*the base model, plain nouns*", "", base.percent(), "", ""),
        _line("*true pictures of the two*", "", truth.percent(), "", ""),
    ]


def _ablations(record: Record) -> list[str]:
    lines = _head(
        "variant | image similarity | text similarity | harmonic mean | difference of it | place | noun"
    )
    first = record.default("unselected")
    selected = record.points("prompts, with the seeds of the ablations")
    names = [method.name for method in METHODS if method.group == "ablation" and method.name != "unselected"]
    others = [row for row in (*selected, *map(record.default, names)) if row]
    if first is None or not others:
        return lines
    for row in (first, *others):
        own, reference = (
            {name: figures["harmonic"] for name, figures in point["subjects"].items()}
            for point in (row, first)
        )
        cells = [*_intervals(row, SIMILARITIES), "" if row is first else _signed(paired(own, reference))]
        lines.append(_line(method_named(row["method"]).title, *cells, *_percents(row, ("place", "noun"))))
    return lines


def _leakage(record: Record) -> list[str]:
    lines = _head(
        "pictures | the base model's word | locked keys | trained keys | trained − locked, paired over the subjects"
    )
    subjects = record.part("leakage").values()
    for kind, title in (("renders", "true pictures, true masks"), ("drawings", "own drawings, found masks")):
        rows = [row[kind] for row in subjects if {"unselected", "trained-keys"} <= row[kind].keys()]
        if not rows:
            continue
        locked, trained = ([row[name] for row in rows] for name in ("unselected", "trained-keys"))
        plain = [row["base"] for row in rows if "base" in row]
        gap = interval([100 * (b - a) for a, b in zip(locked, trained, strict=True)])
        means = [f"{interval(part).mean:.1%}" if part else "" for part in (plain, locked, trained)]
        lines.append(_line(title, *means, f"{gap.mean:+.1f} ({gap.low:+.1f} to {gap.high:+.1f}) points"))
    return lines


def _tuning(record: Record) -> list[str]:
    lines = _head("method | rates | best rate | steps | at the edge | score with masks | without")
    chosen = record.part("tuning")
    for method in (method for method in METHODS if method.name in chosen):
        entry = chosen[method.name]
        rates = ", ".join(f"{rate:g}" for rate in sorted({entry["rate"] for entry in entry["grid"]}))
        scores = []
        for masks in (True, False):
            score = max(
                (entry["score"] for entry in entry["grid"] if entry["masks"] is masks), default=math.nan
            )
            scores.append(f"**{score:.2f}**" if entry["masks"] is masks else f"{score:.2f}")
        edge = "yes" if entry["at_edge"] else "no"
        lines.append(_line(method.title, rates, f"{entry['rate']:g}", str(entry["steps"]), edge, *scores))
    return lines


TABLES: dict[str, Callable[[Record], list[str]]] = {
    "methods": _methods, "front": _front, "pairs": _pairs, "ablations": _ablations, "leakage": _leakage,
    "tuning": _tuning,
}  # fmt: skip


def _head(titles: str) -> list[str]:
    return [f"| {titles} |", "|" + "---|" * (titles.count("|") + 1)]


def _line(*cells: str) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _interval(numbers: Sequence[float]) -> Interval:
    mean, low, high = numbers
    return Interval(mean=mean, low=low, high=high)


def _intervals(row: Row, keys: Iterable[str]) -> list[str]:
    return [_interval(row[key]).text() for key in keys]


def _percents(row: Row, keys: Iterable[str]) -> list[str]:
    return [_percent(row[key][0]) if key in row else "" for key in keys]


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.0f} %"


def _signed(difference: Interval) -> str:
    return f"{_change(difference.mean)} ({_change(difference.low)} to {_change(difference.high)})"


def _change(value: float) -> str:
    """ "+0.05", "−0.01", "0.00"."""
    text = f"{value:+.2f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text
