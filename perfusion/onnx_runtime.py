"""onnxruntime, imported in one place: when the first session is made, and with its reports to its maker off."""

from __future__ import annotations

import os
from typing import Any

from perfusion.errors import DeviceError

__all__ = ["import_onnxruntime"]


def import_onnxruntime(missing: str) -> Any:
    """The module; it takes longer to import than all else together, so nothing imports it at its top.

    Raises:
        DeviceError: with the text `missing`, where it is not installed.
    """
    # From 1.29 on it reports to its maker, and keeps an identifier in the home folder or complains on stderr
    # that it cannot. Set to 0 by the user, this stays 0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(missing) from error
    return onnxruntime
