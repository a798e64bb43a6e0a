"""Two similarities for every setting, the front of those that nothing beats in both, and the one to recommend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import RequestError
from perfusion.sweep.ranges import FIELDS, Setting

__all__ = ["Judged", "Point", "pareto_front", "points_of", "similarities"]

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one setting is worth, averaged over its pictures."""

    setting: Setting
    image: float
    """How far from the base model's pictures of the superclass (0) to the subject's own (1)."""
    text: float
    """Mean cosine of the pictures with their prompts."""
    image_error: float
    """Standard errors of the two means, over the pictures."""
    text_error: float
    cosine: float
    """Mean cosine of the pictures with the subject's: simpler than `image`, and a worse judge (docs/method.md)."""
    on_front: bool = False
    recommended: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Similarities of single pictures, (pictures,) each."""

    image: NDArray[np.float64]
    text: NDArray[np.float64]
    cosine: NDArray[np.float64]


def similarities(drawn: Array, plain: Array, subject: Array, prompts: Array) -> Judged:
    """Similarities of pictures from embeddings of length one.

    The image similarity is measured along the line from the base's pictures to the subject's: nearness alone also
    grows when a picture becomes a surer example of its kind, whichever one it is.

    Args:
        drawn: (pictures, dim) with the concept.
        plain: (pictures, dim) the same prompts and seeds with the superclass in its place.
        subject: (n, dim) the subject's own pictures.
        prompts: (pictures, dim) the prompts, the superclass in the concept's place.

    Raises:
        RequestError: the subject's pictures are the base's to the scorer: there is no line.
    """
    exact = [part.astype(np.float64) for part in (drawn, plain, subject)]  # differences of like embeddings
    target, start = exact[2].mean(0), exact[1].mean(0)
    line = target - start
    length = line @ line
    if length < 1e-12:
        raise RequestError(
            "The scorer cannot tell the subject's pictures from the base model's pictures of the superclass. "
            "Give other pictures, or another scorer."
        )
    return Judged(
        image=(exact[0] - start) @ line / length,
        text=(exact[0] * prompts).sum(-1),
        cosine=exact[0] @ target / np.linalg.norm(target),
    )


def points_of(judged: Mapping[Setting, Judged]) -> tuple[Point, ...]:
    """One point a setting, in order, with the front and the recommended one marked.

    Recommended is the best harmonic mean of both similarities, each brought to 0 … 1 over the settings of the
    front (as training chooses among its steps); of equals the one with the higher text similarity. For that, an image
    similarity that rises with the bias is levelled out: a higher bias lets less of a concept through, so a rise is
    chance, or a scorer that is fooled.
    """
    points = [
        Point(
            setting=setting, image=float(one.image.mean()), text=float(one.text.mean()),
            image_error=_error(one.image), text_error=_error(one.text), cosine=float(one.cosine.mean()),
        )
        for setting, one in judged.items()
    ]  # fmt: skip
    front = pareto_front([(point.image, point.text) for point in points])
    best = _recommended([points[index] for index in front], _falling(points))
    return tuple(
        replace(point, on_front=index in front, recommended=point is best)
        for index, point in enumerate(points)
    )


def pareto_front(values: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """The indices of the pairs that no other pair beats: at least as good in both and better in one."""
    return tuple(
        index
        for index, one in enumerate(values)
        if not any(a >= one[0] and b >= one[1] and (a, b) != one for a, b in values)
    )


def _falling(points: Sequence[Point]) -> dict[Setting, float]:
    """Image similarities that never rise with the bias while all else is the same: neighbours of which the higher bias
    has more take their mean (isotonic regression, by pooling adjacent violators)."""
    pools: list[list[Point]] = []
    for point in sorted(points, key=lambda point: (*_but_the_bias(point), point.setting.bias)):
        pools.append([point])
        while (
            len(pools) > 1
            and _but_the_bias(pools[-2][0]) == _but_the_bias(pools[-1][0])
            and _mean_image(pools[-2]) < _mean_image(pools[-1])
        ):
            pools[-2:] = [pools[-2] + pools[-1]]
    return {point.setting: _mean_image(pool) for pool in pools for point in pool}


def _but_the_bias(point: Point) -> tuple[object, ...]:
    return tuple(getattr(point.setting, name) for name in FIELDS if name != "bias")


def _mean_image(pool: Sequence[Point]) -> float:
    return sum(point.image for point in pool) / len(pool)


def _recommended(front: Sequence[Point], levelled: Mapping[Setting, float]) -> Point:
    images = _brought([levelled[point.setting] for point in front])
    texts = _brought([point.text for point in front])
    scores = [2 * a * b / (a + b) if a + b else 0.0 for a, b in zip(images, texts, strict=True)]
    return max(
        zip(front, scores, strict=True), key=lambda entry: (round(entry[1], 9), entry[0].text, entry[0].image)
    )[0]


def _brought(values: Sequence[float]) -> list[float]:
    """To 0 … 1; all ones when they are all the same."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]


def _error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
