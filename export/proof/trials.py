"""Calls of a graph with torch's answers to them, and the session that gives the graph's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from perfusion.errors import ExportError
from perfusion.export.graph_modules import End, Graph
from perfusion.export.proof.reference import answers

__all__ = ["Case", "Trial", "cases", "make_trials", "open_session", "relative_error", "run_session"]

_LARGE = 1_000_000_000
"""Bytes of a graph from which it is opened without optimisations, which hold the weights once or twice more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One call of a graph: a word for messages, and a tensor for every input."""

    label: str
    feeds: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A case with torch's answers: what the graph is fed, and what it must give, in float32."""

    label: str
    feeds: dict[str, np.ndarray]
    expected: tuple[np.ndarray, ...]


def make_trials(graph: Graph, *, vocab_size: int, exported: Graph | None = None) -> list[Trial]:
    """The cases of ``graph`` in the types that ``exported`` takes, with what torch computes of the same numbers.

    Raises `ExportError` where those are none.
    """
    trials = []
    for case in cases(graph, vocab_size=vocab_size):
        feeds = {end.name: case.feeds[end.name].to(end.dtype) for end in (exported or graph).inputs}
        expected = tuple(tensor.numpy() for tensor in answers(graph, tuple(feeds.values())))
        if not all(np.isfinite(array).all() for array in expected):
            raise ExportError(
                f"{graph.name}: torch itself gets no finite numbers from this model ({case.label}); its weights are "
                "damaged"
            )
        trials.append(
            Trial(
                label=case.label,
                feeds={name: feed.numpy() for name, feed in feeds.items()},
                expected=expected,
            )
        )
    return trials


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
    sizes = {name: example[sides[name]] if name in sides else size + 2 for name, size in example.items()}
    if "regions" in example:  # a single reading, as most requests have
        sizes |= {"regions": 1, "tokens": example["tokens"] // example["regions"] + 2}
    return sizes


def _feed(end: End, sizes: dict[str, int], words: int, generator: torch.Generator) -> Tensor:
    shape = end.shape(sizes)
    if end.name == "input_ids":  # words and concepts in any order
        return torch.randint(0, words, shape, generator=generator)
    if end.name == "timestep":
        return torch.randint(1, 1000, shape, generator=generator).float()
    if end.name == "time_ids":  # pixels
        return torch.randint(0, 2048, shape, generator=generator).float()
    if end.name.endswith("_gate"):
        gate = torch.rand(shape, generator=generator)
        if shape[0] > 1:
            gate[0] = 0  # the row of an empty prompt
            gate[1, :, ::2] = 0  # a row with some of the concepts
        return gate
    if end.name == "regions":  # shares of each place
        return torch.randn(shape, generator=generator).softmax(1)
    return end.scale * torch.randn(shape, generator=generator)


def open_session(name: str, path: Path, *, optimized: bool = True) -> Any:
    """The file's graph in ONNX Runtime on the CPU. Raises `ExportError` where it is not accepted.

    ``optimized`` is for graphs that are not large: those are opened as they are in any case.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if not optimized or _weight_bytes(path) > _LARGE:
        # weights stay mapped from their file: folding casts and packing matrices would copy each of them
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = (
            False  # it would keep what each node's weights took while they were cast
        )
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds share no base but this
        raise ExportError(f"{name}: ONNX Runtime does not accept the graph: {error}") from error


def run_session(
    name: str, session: Any, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
) -> list[np.ndarray]:
    """The outputs of graph ``name``, all or those asked for. Raises `ExportError` where ONNX Runtime cannot run it."""
    try:
        return [np.asarray(array) for array in session.run(outputs, dict(feeds))]
    except Exception as error:  # see `open_session`
        raise ExportError(f"{name}: ONNX Runtime cannot run the graph: {error}") from error


def _weight_bytes(path: Path) -> int:
    """Bytes of a graph's file and of those it refers to; a file that is no graph is left to who opens it."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's own kind, which another version of it names otherwise
        return 0
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path, *(path.parent / location for location in locations)]
    return sum(file.stat().st_size for file in files if file.exists())
