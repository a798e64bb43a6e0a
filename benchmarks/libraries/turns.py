"""Times of calls that are made one after the other, again and again, so that what disturbs meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Turn", "in_turns"]

Turn = Callable[[], Any]


def in_turns(turns: Mapping[str, Turn], count: int) -> dict[str, dict[str, float]]:
    """Medians of wall seconds and of the processor's seconds, one call of each after the other."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(count):
        for name, turn in turns.items():
            wall, processor = time.perf_counter(), time.process_time()
            turn()
            spent[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {
        name: {
            "seconds": round(statistics.median(wall for wall, _ in times), 4),
            "cpu_seconds": round(statistics.median(processor for _, processor in times), 4),
        }
        for name, times in spent.items()
    }  # fmt: skip
