"""What the figures say: the front, the baselines that should lie below it, and the sentences about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.figures import Front, below, reach
from benchmarks.evaluation.results import Point, Results

__all__ = ["BYTES_FACTOR", "Verdict", "front_of", "verdicts"]

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
    """A line for each lock: image and text similarity of one Perfusion file from strength 0, which is the base model,
    down the biases to the strongest."""
    points = sorted(results.of(FRONT), key=lambda point: -point.setting.bias)
    if not points:
        return []
    names = list(points[0].figures) if subjects is None else list(subjects)
    return [
        [
            _mean(results.base, names),
            *(_mean(point.figures, names) for point in points if point.setting.lock == lock),
        ]
        for lock in sorted({point.setting.lock for point in points})
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
