"""Whether a graph takes and gives what the bundle says of it, whatever opened it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from perfusion.errors import BundleError

__all__ = ["check_ends", "check_shape"]


def check_ends(
    path: Path,
    takes: Sequence[str],
    gives: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Hold the names that a graph has against those that it must have, in any order. Raises BundleError."""
    if sorted(takes) != sorted(inputs) or sorted(gives) != sorted(outputs):
        raise BundleError(
            f"{path} takes {', '.join(takes)} and gives {', '.join(gives)}; expected "
            f"{', '.join(inputs)} and {', '.join(outputs)}. Export the bundle again."
        )


def check_shape(
    path: Path, name: str, sides: Sequence[int | None], array: NDArray[Any], shown: object
) -> None:
    """Hold an input's array against the graph's sides, of which None are free. Raises BundleError.

    `shown`: the graph's shape in the words of the library that opened it.
    """
    if len(sides) != array.ndim or any(
        side not in (None, length) for side, length in zip(sides, array.shape, strict=True)
    ):
        raise BundleError(
            f"{path} takes {name!r} as {shown}, bundle.json makes it {list(array.shape)}: "
            "they do not belong together. Export the bundle again."
        )
