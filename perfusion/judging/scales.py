"""What pictures are measured by, and how measures are compared: of a training's snapshots, and of a sweep's settings.

Two measures pull against each other, likeness to the subject and faith to the prompt. Neither has a zero or a unit of
its own, so each is put on a scale from 0 to 1 over the candidates, and the two are joined by their harmonic mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfusion.errors import RequestError

__all__ = [
    "Similarities",
    "harmonic_mean",
    "prompt_cosines",
    "rescale",
    "similarities",
    "standard_error",
    "subject_cosines",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Similarities:
    """Similarities of single pictures, (pictures,) each."""

    image: Float64
    """How far from the base model's pictures of the superclass (0) to the subject's own (1)."""
    text: Float64
    """Cosine of each picture with its prompt."""
    cosine: Float64
    """Cosine with the mean of the subject's pictures: simpler than `image`, and a worse measure (docs/method.md)."""


def similarities(concept: Float32, plain: Float32, subject: Float32, prompts: Float32) -> Similarities:
    """Similarities of pictures from embeddings of length one.

    The image similarity is measured along the line from the base's pictures to the subject's: nearness alone also
    grows when a picture becomes a surer example of its kind, whichever one it is.

    Args:
        concept: (pictures, dim) with the concept.
        plain: (pictures, dim) the same prompts and seeds with the superclass in its place.
        subject: (n, dim) the subject's own pictures.
        prompts: (pictures, dim) the prompts, the superclass in the concept's place.

    Raises:
        RequestError: the subject's pictures are the base's to the scorer: there is no line.
    """
    # in 64 bits, since the embeddings are alike and their differences small
    pictures = concept.astype(np.float64)
    target, origin = subject.astype(np.float64).mean(0), plain.astype(np.float64).mean(0)
    line = target - origin
    length = line @ line
    if length < 1e-12:
        raise RequestError(
            "The scorer cannot tell the subject's pictures from the base model's pictures of the superclass. "
            "Give other pictures, or another scorer."
        )
    return Similarities(
        image=(pictures - origin) @ line / length,
        text=prompt_cosines(pictures, prompts),
        cosine=pictures @ target / np.linalg.norm(target),
    )


def prompt_cosines(pictures: npt.NDArray[np.floating], prompts: Float32) -> Float64:
    """The cosine of each picture with the prompt of the same row; embeddings (pictures, dim) of length one."""
    return np.asarray((pictures.astype(np.float64) * prompts).sum(-1))


def subject_cosines(pictures: Float32, subject: Float32) -> Float64:
    """Each picture's mean cosine with the subject's own, (pictures,), from embeddings of length one."""
    return np.asarray((pictures.astype(np.float64) @ subject.T).mean(1))


def rescale(values: Float64, low: Float64, high: Float64, least: float = 0.0) -> Float64:
    """Values on the scale on which the mean of `low` is 0 and that of `high` 1.

    Args:
        values: any shape to which `low` broadcasts.
        low, high: the worst and the best candidate's values. Where there are several pictures, each is measured from
            the same picture of `low`, so that what is hard for every candidate has no part in the scores' errors.
        least: means that are no further apart than this tell nothing: all values are 1.
    """
    spread = float(np.mean(high) - np.mean(low))
    return np.ones_like(values) if spread <= least else np.asarray((values - low) / spread)


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b) of two numbers from zero up."""
    return 2 * first * second / (first + second) if first + second > 0 else 0.0


def standard_error(values: Float64) -> float:
    """The standard error of the mean of (n,) values; of a single one nothing is known, and it is infinite."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.inf
