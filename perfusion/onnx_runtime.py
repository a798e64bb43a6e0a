"""onnxruntime, imported in one place: when the first session is made, and with its reports to its maker off."""

from __future__ import annotations

import os
from typing import Any

from perfusion.errors import DeviceError

__all__ = ["import_onnxruntime", "session_options"]


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


def session_options(onnxruntime: Any, threads: int) -> Any:
    """What each of our sessions is opened with: the same bits every time, and at most `threads` (0: its own choice)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns about its own optimiser's work
    options.use_deterministic_compute = True
    options.intra_op_num_threads = threads
    # Each session has threads of its own. Left to wait awake after a run, they take the cores from the next session's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
