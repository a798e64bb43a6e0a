"""A turn: what one thread at a time has, and then whoever has waited longest."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Turn"]


class Turn:
    """A lock that its holder may take again, and that goes to its waiters in the order in which they came.

    Python's own locks go to whoever asks first after a release. A thread that draws picture after picture asks again
    at once, and one that wants a preview meanwhile would wait until all is drawn.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of what follows; held for moments
        self._holder: int | None = None
        self._depth = 0
        self._waiters: deque[tuple[int, threading.Lock]] = deque()

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with self._lock:
            if self._holder in (None, thread):
                self._holder = thread
                self._depth += 1
                return
            signal = threading.Lock()
            signal.acquire()
            self._waiters.append((thread, signal))
        try:
            signal.acquire()  # until it is handed over
        except BaseException:  # Ctrl-C
            self._leave_line(thread, signal)
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                self._hand_over()

    def _hand_over(self) -> None:
        self._holder = None
        if self._waiters:
            self._holder, signal = self._waiters.popleft()
            self._depth = 1
            signal.release()

    def _leave_line(self, thread: int, signal: threading.Lock) -> None:
        with self._lock:
            if (thread, signal) in self._waiters:
                self._waiters.remove((thread, signal))
            else:  # it was handed over in the same moment
                self._depth = 0
                self._hand_over()
