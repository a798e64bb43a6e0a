"""The last step of an export: each graph, run by ONNX Runtime, must give what the torch module gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from perfusion.errors import ExportError
from perfusion.export.graphs import End, Graph

__all__ = ["TOLERANCE", "Case", "cases", "check_parity", "relative_error"]

TOLERANCE = 1e-4
"""Largest relative L2 error of a graph in float32; measured ones are near 1e-6."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One call of a graph: a word for messages, and a tensor for every input."""

    label: str
    feeds: dict[str, Tensor]


def check_parity(graph: Graph, path: Path, *, vocab_size: int, tolerance: float = TOLERANCE) -> float:
    """The largest relative error over `cases`; raises `ExportError` above ``tolerance``."""
    session = _open(graph, path)
    worst = 0.0
    for case in cases(graph, vocab_size=vocab_size):
        with torch.no_grad():
            made = graph.module(*case.feeds.values())
        expected = made if isinstance(made, tuple) else (made,)
        found = session.run(
            [end.name for end in graph.outputs], {name: feed.numpy() for name, feed in case.feeds.items()}
        )
        errors = [
            relative_error(np.asarray(ours), theirs.numpy())
            for ours, theirs in zip(found, expected, strict=True)
        ]
        error = float(np.max(errors))  # unlike Python's max it lets no NaN pass
        if not error <= tolerance:  # also for NaN
            raise ExportError(
                f"{graph.name}: ONNX Runtime and torch differ by {error:.1e} (relative L2, {case.label}), "
                f"expected at most {tolerance:.0e}; try the package versions of constraints.txt"
            )
        worst = max(worst, error)
    return worst


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """|found − expected| / |expected|, Euclidean, in float64; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    return float(difference / np.linalg.norm(expected.astype(np.float64)))


def cases(graph: Graph, *, vocab_size: int) -> Iterator[Case]:
    """Seeded calls with no, one and four concepts; in the last, each row of the batch has its own.

    The middle one has other sizes and a longer prompt than the example that was traced. A graph without
    concepts is called with as many rows.
    """
    for seed, (batch, concepts) in enumerate(((2, 0), (1, 1), (3, 4))):
        sizes = _other_sizes(graph.example, turned=seed % 2 == 1) | {"batch": batch, "concepts": concepts}
        generator = torch.Generator().manual_seed(seed)
        has_words = any(end.name == "concept_embeddings" for end in graph.inputs)
        words = vocab_size + (concepts if has_words else 0)
        feeds = {end.name: _feed(end, sizes, words, generator) for end in graph.inputs}
        rows = " of mixed rows" if batch == 3 else ""
        yield Case(label=f"batch {batch}{rows}, {concepts} concepts, seed {seed}", feeds=feeds)


def _other_sizes(example: dict[str, int], *, turned: bool) -> dict[str, int]:
    """The example's sizes, or those of a picture turned on its side and a prompt of another length."""
    if not turned:
        return dict(example)
    sides = {"height": "width", "width": "height"}
    sides |= {f"picture_{a}": f"picture_{b}" for a, b in sides.items()}
    return {name: example[sides[name]] if name in sides else size + 2 for name, size in example.items()}


def _feed(end: End, sizes: dict[str, int], words: int, generator: torch.Generator) -> Tensor:
    shape = end.shape(sizes)
    if end.name == "input_ids":  # words and concepts in any order
        return torch.randint(0, words, shape, generator=generator)
    if end.name == "timestep":
        return torch.randint(1, 1000, shape, generator=generator).float()
    if end.name.endswith("_gate"):
        gate = torch.rand(shape, generator=generator)
        if shape[0] > 1:
            gate[0] = 0  # the row of an empty prompt
            gate[1, :, ::2] = 0  # a row with some of the concepts
        return gate
    return end.scale * torch.randn(shape, generator=generator)


def _open(graph: Graph, path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds share no base but this
        raise ExportError(f"{graph.name}: ONNX Runtime does not accept the graph: {error}") from error
