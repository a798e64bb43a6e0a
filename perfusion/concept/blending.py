"""Strength between 0 and 1: a prompt read in several ways, and the way from one reading to the other.

Where a concept is on, its word is the learned one; where it is off, the superclass stands in its place. A concept of
strength λ is on at the levels 0 … λ. So a prompt's encodings are the mean, over all levels from 0 to 1, of what the
text encoder says with the concepts that are on at that level: as many encodings as there are different strengths, and
one more where none is 1 (docs/method.md). Shared by the runtime and by `perfusion.diffusers`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reading", "blended", "readings"]

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read a prompt."""

    weight: float  # its share, above 0; those of a prompt sum to 1
    active: frozenset[str]  # the concepts that are words of their own; the others are their superclass


def readings(strengths: Mapping[str, float]) -> tuple[Reading, ...]:
    """The ways to read a prompt with concepts of these strengths, 0 to 1; the one with the most of them first."""
    levels = sorted({strength for strength in strengths.values() if 0 < strength < 1} | {0.0, 1.0})
    return tuple(
        Reading(
            weight=upper - lower, active=frozenset(token for token in strengths if strengths[token] >= upper)
        )
        for lower, upper in itertools.pairwise(levels)
    )


def blended(parts: Sequence[NDArray[Any]], weights: Sequence[float]) -> Array:
    """Σ w_k x_k of arrays of one shape, in float32; a single one as it is."""
    if len(parts) == 1:
        return np.asarray(parts[0], np.float32)
    mixed = sum(weight * np.asarray(part, np.float64) for weight, part in zip(weights, parts, strict=True))
    return np.asarray(mixed, np.float32)
