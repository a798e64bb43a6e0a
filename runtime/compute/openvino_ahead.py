"""Compiling a bundle's graphs for OpenVINO before the first picture: into the cache that a runtime looks in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.bundle.graph_io import GraphIO, graph_io_of
from perfusion.runtime.compute.onnx_graph import OnnxGraph
from perfusion.runtime.compute.openvino_backend import OpenVINOBackend
from perfusion.runtime.compute.openvino_graph import OpenVINOGraph, slots_for
from perfusion.tensorrt.shape_ranges import ShapeOptions, shape_ranges_of

__all__ = ["CompiledGraph", "compile_ahead"]

Progress = Callable[[str, int, int], None]
"""Told the graph that is being compiled, and how many of how many are done."""


@dataclass(frozen=True, kw_only=True)
class CompiledGraph:
    """A graph, compiled for one set of sizes."""

    graph: str
    sizes: Mapping[str, int]  # of its named dimensions
    compiled: bool  # now; else an earlier run had done it
    stored: bool  # for the next start; False where the cache has no room for it
    seconds: float
    distance: float | None = (
        None  # of its answers to noise from float32, relative L2; None where that is computed in
    )


def compile_ahead(
    bundle: Bundle, backend: OpenVINOBackend, shapes: ShapeOptions, *, progress: Progress | None = None
) -> list[CompiledGraph]:
    """Compile each graph for the pictures that `shapes` says, where that has not been done.

    Raises:
        RequestError: sizes that the bundle does not draw.
        BundleError: a graph that cannot be read.
        PerfusionError: one that OpenVINO cannot compile.
    """
    jobs = [
        (name, {dim: sizes[0] for dim, sizes in ranges.items()})
        for name in graph_io_of(bundle)
        for ranges in shape_ranges_of(name, bundle, shapes)
    ]
    outcomes: list[CompiledGraph] = []
    for name, sizes in jobs:
        if progress is not None:
            progress(name, len(outcomes), len(jobs))
        outcomes.append(_compiled(bundle, backend, name, sizes))
    return outcomes


def _compiled(bundle: Bundle, backend: OpenVINOBackend, name: str, sizes: dict[str, int]) -> CompiledGraph:
    """One graph, compiled for one set of sizes."""
    from perfusion.devices.graph_reader.onnx_file import read_graph

    if "concepts" in sizes:
        sizes["concepts"] = slots_for(sizes["concepts"])
    ends = graph_io_of(bundle)[name]
    inputs = {
        value.name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in value.dims)
        for value in read_graph(ends.file).inputs
    }
    began, graph = time.perf_counter(), backend.open(name)
    compiled = graph.prepare(inputs)
    seconds = time.perf_counter() - began
    distance = None if backend.precision == "fp32" else _distance(ends, graph, inputs)
    outcome = CompiledGraph(
        graph=name, sizes=sizes, compiled=compiled, stored=graph.is_stored(inputs), seconds=seconds, distance=distance,
    )  # fmt: skip
    graph.close()
    return outcome


def _distance(ends: GraphIO, graph: OpenVINOGraph, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """How far its answers to noise are from onnxruntime's in float32, relative L2."""
    feeds = {name: _noise(name, shape) for name, shape in shapes.items()}
    reference = OnnxGraph(ends.file, ends.inputs, ends.outputs, "cpu", None)
    try:
        expected, answers = reference.run(**feeds), graph.run(**feeds)
    finally:
        reference.close()
    differences = [np.linalg.norm(answers[name] - expected[name]) for name in expected]
    return float(
        np.linalg.norm(differences) / np.linalg.norm([np.linalg.norm(end) for end in expected.values()])
    )


def _noise(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Something that an input may hold: half-open gates, equal regions, a middle timestep, tokens, or noise."""
    if name == "input_ids":
        return np.arange(np.prod(shape), dtype=np.int64).reshape(shape) % 100
    values = {
        "key_gate": 0.5,
        "value_gate": 0.5,
        "regions": 1 / shape[1] if len(shape) > 1 else 1.0,
        "timestep": 500.0,
    }
    if name in values:
        return np.full(shape, values[name], np.float32)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
