"""Ctrl-C while a library computes that calls back into Python and loses what is raised there."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["held_interrupts"]

_SIGNALS = (
    "SIGINT",
    "SIGTERM",
    "SIGHUP",
    "SIGBREAK",
)  # the last is Windows', of Ctrl-Break and a closed console


@contextmanager
def held_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold signals that Python handles back until the block ends; gives a function that says whether one has come.

    Python runs a signal's handler inside whatever callback comes next, and TensorRT's bindings write what its logger
    raises to stderr and go on. Threads other than the main one get no signals: there nothing is held.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
