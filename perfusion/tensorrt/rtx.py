"""What only TensorRT for RTX has: it builds with no GPU, for GPUs it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perfusion.errors import ExportError

__all__ = ["PORTABLE", "set_targets"]

PORTABLE = "portable"
"""The target of an engine for several generations of GPUs; `targets.TARGETS` says which."""


def set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    """Name the GPUs to build for ("sm86"). Raises `ExportError` for those it does not know."""
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if target.upper() not in known or not config.set_compute_capability(known[target.upper()], index):
            names = ", ".join(sorted(name.lower() for name in known if name.startswith("SM")))
            raise ExportError(
                f"TensorRT for RTX {trt.__version__} does not build for {target}, expected one of {names}."
            )
