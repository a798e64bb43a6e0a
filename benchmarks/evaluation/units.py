"""Units of work: one finished file each, done by several processes, skipped when they are there."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evaluation.plan import Plan

__all__ = ["Context", "Unit", "duration", "run_units"]

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every unit is given; it travels to other processes."""

    plan: Plan
    work: Path


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of work: `call(context, *arguments)` writes `path` as the last thing it does."""

    path: Path
    """Relative to the work folder."""
    cost: float
    """Seconds of one free core, roughly: only the ratios between units matter for the time left."""
    call: Callable[..., None]
    """A function of a module, so that another process finds it."""
    arguments: tuple[Any, ...] = ()


def run_units(units: Sequence[Unit], context: Context, processes: int, report: Say = print) -> None:
    """Do what is not done yet. An exception in one ends them all; what was finished stays.

    Args:
        processes: with 1 everything happens in this process.
        say: told after every unit what was done and how long is left.
    """
    pending = [unit for unit in units if not (context.work / unit.path).exists()]
    total, done, start = sum(unit.cost for unit in pending), 0.0, time.perf_counter()
    for number, (unit, seconds) in enumerate(_done(pending, context, processes), 1):
        done += unit.cost
        left = (time.perf_counter() - start) / done * (total - done)
        report(f"{number}/{len(pending)}  {unit.path}  {seconds:.0f} s; {duration(left)} left in this stage")


def duration(seconds: float) -> str:
    """ "3 h 20 min", "12 min", "40 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _done(units: Sequence[Unit], context: Context, processes: int) -> Iterator[tuple[Unit, float]]:
    if processes == 1:
        for unit in units:
            yield unit, _do(unit, context)
        return
    # spawned: torch and onnxruntime do not survive a fork with their threads
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)
    try:
        # no more at a time than there are processes: what a pool holds ready is done even when it is to stop
        pending = iter(units)
        futures = {pool.submit(_do, unit, context): unit for unit in itertools.islice(pending, processes)}
        while futures:
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                unit = futures.pop(future)
                for following in itertools.islice(pending, 1):
                    futures[pool.submit(_do, following, context)] = following
                yield unit, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _do(unit: Unit, context: Context) -> float:
    """Seconds that it took."""
    start = time.perf_counter()
    unit.call(context, *unit.arguments)
    if not (context.work / unit.path).exists():
        raise RuntimeError(f"{unit.path} was not written by its unit")
    return time.perf_counter() - start


def _begin() -> None:
    """In a new process: its share of the cores was set by the parent, torch has to be told."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
