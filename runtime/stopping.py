"""Stopping what is being drawn, from any thread."""

from __future__ import annotations

import threading
from weakref import WeakSet

from perfusion.errors import CancelledError

__all__ = ["Stop", "Stops"]


class Stop:
    """Whether one drawing is to end; it asks between its steps."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """End the drawing at its next `check`."""
        self._asked = True

    def check(self) -> None:
        """Raises CancelledError where the drawing is to end."""
        if self._asked:
            raise CancelledError("The drawing was cancelled.")


class Stops:
    """The drawings that were asked for and are not over. For several threads at once.

    They are held weakly: a generator that is dropped before its first step runs none of its code, so it could not
    take itself out.
    """

    def __init__(self) -> None:
        self._under_way: WeakSet[Stop] = WeakSet()
        self._lock = threading.RLock()  # a signal's handler may cancel while its own thread begins

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self) -> Stop:
        """What ends a new drawing; under way as long as the drawing keeps it."""
        stop = Stop()
        with self._lock:
            self._under_way.add(stop)
        return stop

    def ask_all(self) -> None:
        """End every drawing that is under way."""
        with self._lock:
            for stop in self._under_way:
                stop.ask()
