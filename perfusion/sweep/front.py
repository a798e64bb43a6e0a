"""The front of the settings that nothing beats in both similarities, and the one to recommend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfusion.judging.probes import MOSTLY
from perfusion.judging.scales import Similarities, harmonic_mean, rescale, standard_error
from perfusion.sweep.ranges import FIELDS, Setting

__all__ = ["Point", "pareto_front", "points_of"]


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
    """Mean cosine of the pictures with the subject's: simpler than `image`, and a worse measure (docs/method.md)."""
    shown: float | None = None
    """The share of its pictures that show the superclass in a scene; None where nobody looked."""
    on_front: bool = False
    recommended: bool = False

    @property
    def is_texture(self) -> bool:
        """Whether most of its pictures show something else, whatever the similarities say."""
        return self.shown is not None and self.shown < MOSTLY


def points_of(
    measured: Mapping[Setting, Similarities], shown: Mapping[Setting, float] | None = None
) -> tuple[Point, ...]:
    """One point a setting, in order, with the front and the recommended one marked.

    Recommended is the best harmonic mean of both similarities, each brought to 0 … 1 over the settings of the
    front (as training chooses among its steps); of equals the one with the higher text similarity. For that, an image
    similarity that rises with the bias is levelled out: a higher bias lets less of a concept through, so a rise is
    chance, or a scorer that is fooled. Settings whose pictures are texture are left out of all this, and where none is
    left nothing is recommended.

    Args:
        measured: by setting.
        shown: the share of each setting's pictures that show the superclass in a scene; None: nobody looked.
    """
    points = [
        Point(
            setting=setting, image=float(pictures.image.mean()), text=float(pictures.text.mean()),
            image_error=_error(pictures.image), text_error=_error(pictures.text), cosine=float(pictures.cosine.mean()),
            shown=None if shown is None else shown[setting],
        )
        for setting, pictures in measured.items()
    ]  # fmt: skip
    front = pareto_front([(point.image, point.text) for point in points])
    pictures_of_it = [point for point in points if not point.is_texture]
    candidates = pareto_front([(point.image, point.text) for point in pictures_of_it])
    best = _recommended([pictures_of_it[index] for index in candidates], _falling(points))
    return tuple(
        replace(point, on_front=index in front, recommended=point is best)
        for index, point in enumerate(points)
    )


def pareto_front(values: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """The indices of the pairs that no other pair beats: at least as good in both and better in one."""
    return tuple(
        index
        for index, (image, text) in enumerate(values)
        if not any(a >= image and b >= text and (a, b) != (image, text) for a, b in values)
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


def _recommended(front: Sequence[Point], levelled: Mapping[Setting, float]) -> Point | None:
    if not front:
        return None
    images = np.array([levelled[point.setting] for point in front])
    texts = np.array([point.text for point in front])
    images, texts = (rescale(part, part.min(), part.max()) for part in (images, texts))
    scores = [harmonic_mean(a, b) for a, b in zip(images.tolist(), texts.tolist(), strict=True)]
    return max(
        zip(front, scores, strict=True), key=lambda entry: (round(entry[1], 9), entry[0].text, entry[0].image)
    )[0]


def _error(values: NDArray[np.float64]) -> float:
    """A number in any case, since tables and JSON have no room for "unknown": of a single picture 0."""
    return standard_error(values) if len(values) > 1 else 0.0
