"""What the weights of a prompt's words do to its encodings, as in A1111's web UI (docs/method.md, *Weights*).

The encoding of each token is multiplied by the token's weight, and then all of them by one number, so that their mean
is what it was. Each text encoder's encodings of each part of a prompt have a mean of their own.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "factors", "over_columns", "weighted"]

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

_log = logging.getLogger(__name__)

_NO_MEAN = 1e-6  # of the encodings' size: what rounding leaves of a mean that a layer norm without an offset takes out


def factors(hidden: Array, weights: Floats, widths: Sequence[int]) -> Floats:
    """What each token's encoding is multiplied by: its weight, and what restores the mean.

    Args:
        hidden: (tokens, text_dim) encodings of one part of a prompt.
        weights: (tokens, encoders).
        widths: how many of the text_dim numbers are each text encoder's.

    Returns:
        (tokens, encoders).
    """
    columns = np.split(np.asarray(hidden, np.float64), np.cumsum(widths)[:-1], axis=1)
    restoring = [_restoring(own, weights[:, encoder : encoder + 1]) for encoder, own in enumerate(columns)]
    restored: Floats = weights * np.array(restoring)
    return restored


def over_columns(factor: Floats, widths: Sequence[int]) -> Floats:
    """(tokens, encoders) -> (tokens, text_dim)."""
    return np.repeat(factor, widths, axis=1)


def weighted(hidden: Array, weights: Floats | None, widths: Sequence[int]) -> Array:
    """Encodings (tokens, text_dim) of one part of a prompt with the weights of its tokens (tokens, encoders)."""
    if weights is None:
        return hidden
    return np.asarray(hidden * over_columns(factors(hidden, weights, widths), widths), np.float32)


def _restoring(hidden: Floats, weights: Floats) -> float:
    """Mean before weighting over mean behind it; 1 where there is no mean, or it has changed its sign."""
    before, behind = float(hidden.mean()), float((hidden * weights).mean())
    if abs(before) < _NO_MEAN * float(np.sqrt(np.square(hidden).mean())):
        return 1.0
    if before * behind > 0:
        return before / behind
    _log.warning(
        "the weights of the prompt turn the mean of its encodings from %.3g to %.3g, so it is not restored; use "
        "smaller weights", before, behind,
    )  # fmt: skip
    return 1.0
