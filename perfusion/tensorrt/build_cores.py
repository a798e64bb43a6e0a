"""How many of the processor's cores a build may use: builds on all of them have restarted small boards."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["few_cores"]


@contextmanager
def few_cores(count: int | None) -> Iterator[None]:
    """Keep this thread, and all that are started from it, on `count` cores until the block ends.

    The last ones, because the first serves most interrupts. None, a number that is not less than there are, and a
    system where a program cannot choose its cores (Windows, macOS) change nothing.
    """
    if count is None or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
