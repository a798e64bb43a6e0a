"""What TensorRT says, by the interface both TensorRTs share."""

from __future__ import annotations

import logging
from typing import Any, Protocol

__all__ = ["KeptErrors", "make_logger"]

_log = logging.getLogger(__name__)

_MOST_CHARACTERS = 600


class KeptErrors(Protocol):
    """What TensorRT said last of an error, "" before the first; its calls themselves say only that they failed."""

    last: str


def make_logger(trt: Any) -> KeptErrors:
    """A logger that keeps the last error and hands everything on to `logging`."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # its base is made at import
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:  # called from C++: nothing may be raised here
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last = " ".join(str(message).split())[:_MOST_CHARACTERS].rstrip(".")
            _log.debug("%s", message)

    return Logger()
