"""What compiling a graph for OpenVINO takes in memory, and whether more rows at once make it faster."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.libraries import library_processes as processes
from benchmarks.libraries.library_graphs import Subject, with_rows
from benchmarks.libraries.turns import in_turns
from perfusion.devices.graph_reader.onnx_file import read_graph
from perfusion.devices.graph_reader.shapes import trace
from perfusion.devices.planning.costs import costs_of
from perfusion.runtime.compute.openvino_device import OpenVINODevice

__all__ = ["batch_rows", "memory_rows"]

Rows = list[dict[str, Any]]
_COUNTS = (4, 8)  # rows of guidance for two and four pictures


def memory_rows(threads: int, subject: Subject) -> Rows:
    """Peaks of fresh processes that compute one step: what was compiled is forgotten, stored, or restored.

    `over_weights` is what lies above the library itself, in bytes for a byte of weights in float32.
    """
    weights, stored = _weights(subject), read_graph(subject.graph).weights
    rows: Rows = []
    with tempfile.TemporaryDirectory(dir=subject.feeds.parent) as cache:
        for start, options in (("forgotten", ()), ("stored", ("kept",)), ("restored", ("kept",))):
            arguments = ("openvino", threads, subject.graph, subject.feeds, *options)
            facts = processes.run_alone(processes.FIRST_STEP, arguments, Path(cache))
            own = (facts["peak_memory_mb"] - facts["library_mb"]) * 1e6
            rows.append(
                {"what": "compile memory", "model": subject.model, "compiled": start, "threads": threads,
                 "weights_mb": round(weights / 1e6, 1), "stored_weights_mb": round(stored / 1e6, 1),
                 "library_mb": facts["library_mb"], "peak_memory_mb": facts["peak_memory_mb"],
                 "over_weights": round(own / weights, 2)}
            )  # fmt: skip
    return rows


def _weights(subject: Subject) -> int:
    """Bytes of a graph's weights as they are computed with."""
    graph = read_graph(subject.graph)
    arrays = np.load(subject.feeds)
    sizes = {
        dim: side
        for value in graph.inputs
        for dim, side in zip(value.dims, arrays[value.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return costs_of(trace(graph, sizes)).weights


def batch_rows(threads: int, turns: int, subject: Subject) -> Rows:
    """Steps of more rows, each in turns with one of two rows, and by how much its rows are faster."""
    device = OpenVINODevice("CPU", threads)
    fed = dict(np.load(subject.feeds))
    of_two = _call(device, subject.graph, with_rows(fed, 2))
    rows: Rows = []
    for count in _COUNTS:  # two graphs at a time, as each holds its weights
        calls = {"two": of_two, "more": _call(device, subject.graph, with_rows(fed, count))}
        for call in calls.values():
            call()
        two, more = (times["seconds"] for times in in_turns(calls, turns).values())
        rows.append(
            {"what": "rows at once", "model": subject.model, "library": "openvino", "rows": count, "threads": threads,
             "turns": turns, "seconds": more, "seconds_of_two": two,
             "a_row_of_two_over_it": round((two / 2) / (more / count), 3)}
        )  # fmt: skip
    return rows


def _call(device: OpenVINODevice, path: Path, arrays: dict[str, Any]) -> Any:
    """A step, compiled for the shapes of its inputs."""
    model = device.read(path)
    model.reshape({name: list(array.shape) for name, array in arrays.items()})
    return partial(device.compile(model).create_infer_request().infer, arrays)
