"""Every graph, run by ONNX Runtime, must give what the torch module gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from perfusion.errors import ExportError
from perfusion.export.graph_modules import Graph
from perfusion.export.proof.locate import first_divergence
from perfusion.export.proof.trials import Trial, make_trials, open_session, relative_error, run_session

__all__ = [
    "TOLERANCE",
    "TOLERANCES",
    "DivergenceError",
    "check_parity",
    "compare",
    "explain",
]

TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "int8": 1e-1}
"""Largest relative L2 error of a graph by precision; measured ones are near 1e-6, 1e-3 and 3e-2."""
TOLERANCE = TOLERANCES["fp32"]


class DivergenceError(ExportError):
    """A graph that gives other numbers than torch, in ``trial``."""

    def __init__(self, message: str, trial: Trial) -> None:
        super().__init__(message)
        self.trial = trial


def check_parity(
    graph: Graph, path: Path, *, vocab_size: int, tolerance: float = TOLERANCE, exported: Graph | None = None
) -> float:
    """The largest relative error over `cases`; raises `ExportError` above ``tolerance``.

    ``exported`` is the graph as it was written, where its ends are of other types than those of ``graph``.
    """
    trials = make_trials(graph, vocab_size=vocab_size, exported=exported)
    try:
        return compare(graph.name, [end.name for end in graph.outputs], path, trials, tolerance=tolerance)
    except DivergenceError as divergence:
        raise explain(divergence, path, tolerance, lambda: graph) from divergence


def compare(
    name: str, outputs: Sequence[str], path: Path, trials: Sequence[Trial], *, tolerance: float
) -> float:
    """The largest relative error of the file's graph over ``trials``; raises `DivergenceError` above ``tolerance``."""
    session = open_session(name, path)
    worst = 0.0
    for trial in trials:
        found = run_session(name, session, trial.feeds, outputs)
        errors = [relative_error(ours, theirs) for ours, theirs in zip(found, trial.expected, strict=True)]
        error = float(np.max(errors))  # unlike Python's max it lets no NaN pass
        if not error <= tolerance:  # also for NaN
            raise DivergenceError(
                f"{name}: ONNX Runtime and torch differ by {error:.1e} (relative L2, {trial.label}), "
                f"expected at most {tolerance:.0e}",
                trial,
            )
        worst = max(worst, error)
    return worst


def explain(
    divergence: DivergenceError, path: Path, tolerance: float, reopen: Callable[[], Graph]
) -> ExportError:
    """The error for a user: how far apart, and from which layer on. ``reopen`` gives the graph with its module."""
    place = first_divergence(reopen(), path, divergence.trial, tolerance=tolerance)
    where = "no layer of it by itself" if place is None else f"first at {place.module}, by {place.error:.1e}"
    return ExportError(f"{divergence}; they part {where}. Try the package versions of constraints.txt")
