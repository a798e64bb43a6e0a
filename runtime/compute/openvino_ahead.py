"""Compiling a bundle's graphs for OpenVINO before the first picture: into the cache that a runtime looks in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from perfusion.bundle.description import Bundle
from perfusion.bundle.graph_io import graph_io_of
from perfusion.runtime.compute.openvino_backend import OpenVINOBackend
from perfusion.runtime.compute.openvino_graph import slots_for
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


def compile_ahead(
    bundle: Bundle, backend: OpenVINOBackend, shapes: ShapeOptions, *, progress: Progress | None = None
) -> list[CompiledGraph]:
    """Compile each graph for the pictures that `shapes` says, where that has not been done.

    Raises:
        RequestError: sizes that the bundle does not draw.
        BundleError: a graph that cannot be read.
        PerfusionError: one that OpenVINO cannot compile.
    """
    from perfusion.devices.graph_reader.onnx_file import read_graph

    jobs = [
        (name, {dim: sizes[0] for dim, sizes in ranges.items()})
        for name in graph_io_of(bundle)
        for ranges in shape_ranges_of(name, bundle, shapes)
    ]
    outcomes: list[CompiledGraph] = []
    for name, sizes in jobs:
        if progress is not None:
            progress(name, len(outcomes), len(jobs))
        if "concepts" in sizes:
            sizes["concepts"] = slots_for(sizes["concepts"])
        inputs = {
            value.name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in value.dims)
            for value in read_graph(graph_io_of(bundle)[name].file).inputs
        }
        began, graph = time.perf_counter(), backend.open(name)
        compiled = graph.prepare(inputs)
        outcomes.append(
            CompiledGraph(
                graph=name, sizes=sizes, compiled=compiled, stored=graph.is_stored(inputs),
                seconds=time.perf_counter() - began,
            )
        )  # fmt: skip
        graph.close()
    return outcomes
