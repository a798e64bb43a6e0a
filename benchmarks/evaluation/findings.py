"""What the figures say: the front, and the baselines that should lie below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.figures import Front, below, reach
from benchmarks.evaluation.results import Point, Results

__all__ = ["BYTES_FACTOR", "LEAST", "Slider", "Verdict", "front_of", "sliders", "verdicts"]

BYTES_FACTOR = 10
"""Baselines of up to so many times Perfusion's bytes are to lie below its front."""
FRONT = "perfusion"
LEAST = 0.005
"""A baseline that is nearer to the front lies on it: measuring the same pictures among others moves a figure as much,
since the masks are found with noise that depends on a picture's neighbours."""


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

    @property
    def stands(self) -> str:
        """`below` the front, `on` it, `above` it, or `beyond` its end."""
        if math.isinf(self.margin):
            return "beyond"
        if abs(self.margin) < LEAST:
            return "on"
        return "below" if self.is_below else "above"


@dataclass(frozen=True, kw_only=True)
class Slider:
    """What is turned of one Perfusion file, and the points along it, the base model not among them.

    The bias under a lock, from the highest down to the lowest; or under a lock and a bias the strength up to 1, or the
    start down to 0.
    """

    lock: str
    turned: str
    """`bias`, `strength` or `start`."""
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        """ "local lock, by bias", "global lock, bias 0.6, by start"."""
        fixed = "" if self.turned == "bias" else f" bias {self.points[0].setting.bias:g},"
        return f"{self.lock} lock,{fixed} by {self.turned}"

    @property
    def labels(self) -> tuple[str, ...]:
        """The value that is turned, of each point."""
        name = "scale" if self.turned == "strength" else self.turned
        return tuple(f"{getattr(point.setting, name):g}" for point in self.points)

    @property
    def from_base(self) -> bool:
        """Whether it slides from the base model, which is drawn at strength 0 and where the concept never comes in; a
        bias, however high, does not lead there."""
        return self.turned != "bias"


def front_of(results: Results, subjects: Sequence[str] | None = None) -> list[list[tuple[float, float]]]:
    """A line for each slider, of image and text similarities of one Perfusion file."""
    lines = sliders(results)
    if not lines:
        return []
    names = list(lines[0].points[0].figures) if subjects is None else list(subjects)
    base = _mean(results.base, names)
    return [
        [*([base] if line.from_base else []), *(_mean(point.figures, names) for point in line.points)]
        for line in lines
    ]


def sliders(results: Results) -> list[Slider]:
    """Those of one Perfusion file; what is weaker and starts late as well lies on none."""
    lines: dict[tuple[str, str, float], list[Point]] = {}
    points = [point for point in results.of(FRONT) if point.setting.scale == 1 or not point.setting.start]
    start_sliders = {(point.setting.lock, point.setting.bias) for point in points if point.setting.start}
    strength_sliders = {
        (point.setting.lock, point.setting.bias) for point in points if point.setting.scale != 1
    }
    for point in sorted(points, key=_from_the_base):
        setting = point.setting
        if setting.scale == 1 and not setting.start:
            lines.setdefault(("bias", setting.lock, 0.0), []).append(point)
        if setting.scale == 1 and (setting.lock, setting.bias) in start_sliders:
            lines.setdefault(("start", setting.lock, setting.bias), []).append(point)
        if not setting.start and (setting.lock, setting.bias) in strength_sliders:
            lines.setdefault(("strength", setting.lock, setting.bias), []).append(point)
    return [
        Slider(lock=lock, turned=turned, points=tuple(lines[turned, lock, bias]))
        for turned, lock, bias in sorted(lines, key=lambda key: (key[0], key[1] == "global", key[2]))
    ]


def _from_the_base(point: Point) -> tuple[float, float, float]:
    """Orders settings by how near they are to the base model, the nearest first."""
    return -point.setting.bias, -point.setting.start, point.setting.scale


def verdicts(results: Results) -> list[Verdict]:
    """Every baseline's, in the table's order; none where Perfusion was not evaluated."""
    result = list[Verdict]()
    if FRONT not in results.facts:
        return result
    own_bytes = results.facts[FRONT]["bytes"]
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
        result.append(
            Verdict(
                point=point, times_bytes=results.facts[point.method.name]["bytes"] / own_bytes, is_below=is_below,
                confidence=confidence, margin=reach(front(np.arange(len(names))), image) - text,
            )
        )  # fmt: skip
    return result


def _mean(figures: object, names: Sequence[str]) -> tuple[float, float]:
    rows = [figures[name] for name in names]  # type: ignore[index]
    return float(np.mean([row["image"] for row in rows])), float(np.mean([row["text"] for row in rows]))
