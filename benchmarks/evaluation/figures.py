"""From what the scorer saw to figures, without torch: similarities between two anchors, shares, intervals, fronts.

Both similarities are brought to one scale, on which the base model's pictures of the plain noun are (0, 1) and the
subject's own five pictures, held against prompts that they do not follow, are (1, 0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Front", "Interval", "along", "below", "harmonic", "interval", "paired", "reach", "scaled_text"]

Floats = NDArray[Any]
Front = Sequence[Sequence[tuple[float, float]]]
"""Lines through image and text similarities, each in the order of its slider."""
RESAMPLES, SEED = 4000, 7


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over subjects and what 95 % of resamples of the subjects give."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """ "0.41 (0.30–0.52)"."""
        return f"{self.mean:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"

    def numbers(self) -> list[float]:
        """Mean, low and high, rounded as the record holds them."""
        return [round(value, 4) for value in (self.mean, self.low, self.high)]

    def percent(self) -> str:
        """ "41 % (30–52)", of a share."""
        return f"{100 * self.mean:.0f} % ({100 * self.low:.0f}–{100 * self.high:.0f})"


def along(embeddings: Floats, start: Floats, target: Floats) -> Floats:
    """How far (n, dim) lie from `start` (0) to `target` (1), along the line between them. (n,).

    Nearness to the target alone also grows when a picture becomes a surer example of its kind, whichever one it is.
    """
    line = target - start
    return np.asarray((embeddings - start) @ line / (line @ line), np.float64)


def scaled_text(cosines: Floats, floor: float, ceiling: float) -> Floats:
    """Cosines with prompts, brought to 0 at what pictures score that ignore them and 1 at the base model's."""
    return np.asarray((cosines - floor) / max(ceiling - floor, 1e-6), np.float64)


def harmonic(image: float, text: float) -> float:
    """The harmonic mean of two figures, each held between 0 and 1."""
    a, b = (min(1.0, max(0.0, value)) for value in (image, text))
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def interval(values: Sequence[float] | Floats) -> Interval:
    """Percentile bootstrap over subjects; the same subjects are drawn for every figure."""
    sample = np.asarray(values, np.float64)
    if not len(sample):
        return Interval(mean=float("nan"), low=float("nan"), high=float("nan"))
    picked = np.random.default_rng(SEED).integers(0, len(sample), (RESAMPLES, len(sample)))
    low, high = np.percentile(sample[picked].mean(1), [2.5, 97.5])
    return Interval(mean=float(sample.mean()), low=float(low), high=float(high))


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> Interval:
    """The mean of first − second over the subjects of both."""
    return interval([first[name] - second[name] for name in first if name in second])


def reach(front: Front, image: float) -> float:
    """The highest text similarity at an image similarity of at least `image`, on any line of a front.

    Neighbouring settings are joined by straight lines, for the slider has no steps; nothing lies between the settings
    of two lines, nor beyond the end of all: minus infinity.
    """
    best = max((text for line in front for x, text in line if x >= image), default=-np.inf)
    for line in front:
        for one, other in pairwise(line):
            (x0, y0), (x1, y1) = sorted((one, other))
            if x0 <= image <= x1 and x1 > x0:
                best = max(best, y0 + (y1 - y0) * (image - x0) / (x1 - x0))
    return float(best)


def below(
    point: Callable[[NDArray[np.int64]], tuple[float, float]],
    front: Callable[[NDArray[np.int64]], Front],
    subjects: int,
) -> tuple[bool, float]:
    """Whether a point lies below a front, and in what share of resamples of the subjects it does.

    Args:
        point, front: give their coordinates as means over the subjects of these numbers.
    """

    def holds(picked: NDArray[np.int64]) -> bool:
        image, text = point(picked)
        return reach(front(picked), image) > text

    samples = np.random.default_rng(SEED).integers(0, subjects, (RESAMPLES // 8, subjects))
    return holds(np.arange(subjects)), float(np.mean([holds(picked) for picked in samples]))
