"""What the figures say: the front, the baselines that should lie below it, and the sentences about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.figures import Front, below, reach
from benchmarks.evaluation.results import Point, Results

__all__ = ["BYTES_FACTOR", "Verdict", "front_of", "sliders", "verdicts"]

BYTES_FACTOR = 10
"""Baselines of up to so many times Perfusion's bytes are to lie below its front."""
FRONT = "perfusion"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One baseline, with one setting, against the front of one Perfusion file."""

    point: Point
    times_bytes: float
    is_below: bool
    confidence: float
    """The share of resamples of the subjects in which it lies below."""
    margin: float
    """How much more text similarity the front has at this image similarity; minus infinity where it does not reach."""

    @property
    def counts(self) -> bool:
        return self.times_bytes <= BYTES_FACTOR


def front_of(results: Results, subjects: Sequence[str] | None = None) -> list[list[tuple[float, float]]]:
    """A line for each slider: image and text similarity of one Perfusion file from the base model to the strongest."""
    lines = sliders(results)
    if not lines:
        return []
    names = list(lines[0][1][0].figures) if subjects is None else list(subjects)
    base = _mean(results.base, names)
    return [[base, *(_mean(point.figures, names) for point in line)] for _, line in lines]


def sliders(results: Results) -> list[tuple[str, list[Point]]]:
    """What is turned of one Perfusion file, by its name, and the points along it, the base model not among them.

    The bias under each lock, from strength 0, which is the base model, down to the lowest; and under a lock and a bias
    the start, from 1, which is the base model too, down to 0.
    """
    points = [point for point in results.of(FRONT) if point.setting.scale == 1]
    settings = [point.setting for point in points]
    lines = [
        (
            f"{lock} lock, by bias",
            [point for point in points if point.setting.lock == lock and not point.setting.start],
        )
        for lock in dict.fromkeys(one.lock for one in settings if not one.start)
    ]
    lines += [
        (
            f"{lock} lock, bias {bias:g}, by start",
            [point for point in points if (point.setting.lock, point.setting.bias) == (lock, bias)],
        )
        for lock, bias in dict.fromkeys((one.lock, one.bias) for one in settings if one.start)
    ]
    return [
        (name, sorted(line, key=lambda point: (-point.setting.bias, -point.setting.start)))
        for name, line in lines
    ]


def verdicts(results: Results) -> list[Verdict]:
    """Every baseline's, in the table's order; none where Perfusion was not evaluated."""
    found = list[Verdict]()
    if FRONT not in results.facts:
        return found
    own = results.facts[FRONT]["bytes"]
    for point in results.points:
        if point.method.group != "baseline":
            continue
        names = np.array(list(point.figures))

        def where(
            picked: NDArray[np.int64], point: Point = point, names: NDArray[np.str_] = names
        ) -> tuple[float, float]:
            return _mean(point.figures, list(names[picked]))

        def front(picked: NDArray[np.int64], names: NDArray[np.str_] = names) -> Front:
            return front_of(results, list(names[picked]))

        is_below, confidence = below(where, front, len(names))
        image, text = where(np.arange(len(names)))
        found.append(
            Verdict(
                point=point, times_bytes=results.facts[point.method.name]["bytes"] / own, is_below=is_below,
                confidence=confidence, margin=reach(front(np.arange(len(names))), image) - text,
            )
        )  # fmt: skip
    return found


def _mean(figures: object, names: Sequence[str]) -> tuple[float, float]:
    rows = [figures[name] for name in names]  # type: ignore[index]
    return float(np.mean([row["image"] for row in rows])), float(np.mean([row["text"] for row in rows]))
