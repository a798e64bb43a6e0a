"""What running a graph takes: bytes at its fullest moment, arithmetic, and bytes moved."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfusion.devices.graph_reader.onnx_file import Node
from perfusion.devices.graph_reader.shapes import Traced
from perfusion.devices.planning.arena import ArenaUse, Event, live_peak, play

__all__ = ["Costs", "array_events", "costs_of"]

# These give their input under another shape: nothing is allocated and nothing moved.
_VIEWS = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
# These may write over an input that nobody reads afterwards, as onnxruntime's kernels declare.
_IN_PLACE = frozenset(
    (
        "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "And", "Or", "Not", "Where", "Abs", "Ceil", "Clip", "Cos",
        "Erf", "Exp", "Floor", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sin", "Sqrt", "Tanh",
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """One run of a graph at given sizes."""

    weights: int  # bytes that stay in memory while the graph is open: weights as they are computed with
    folded: int  # bytes in the file that are only turned into weights while it is opened (casts, transposes)
    nodes: int
    activations: int  # bytes alive at the fullest moment
    arena: ArenaUse  # bytes that onnxruntime's arena makes of it
    flops: NDArray[np.float64]  # (nodes,): a multiplication and an addition are two
    traffic: NDArray[np.float64]  # (nodes,): bytes read and written, weights included

    def seconds(self, flops: float, bandwidth: float) -> float:
        """Time by the roofline: each operator takes as long as its arithmetic or its bytes, whichever is slower."""
        return float(np.maximum(self.flops / flops, self.traffic / bandwidth).sum())


def costs_of(traced: Traced) -> Costs:
    """The costs of one run."""
    steps = [node for node in traced.graph.nodes if not _folded(node, traced)]
    weights = {name for node in steps for name in node.inputs if name in traced.constants}
    events = array_events(traced)
    return Costs(
        weights=sum(traced.bytes(name) for name in weights),
        folded=sum(traced.bytes(name) for name in traced.graph.initializers if name not in weights),
        nodes=len(traced.graph.nodes),
        activations=live_peak(events),
        arena=play(events),
        flops=np.asarray([_flops(node, traced) for node in steps]),
        traffic=np.asarray([_traffic(node, traced) for node in steps]),
    )


def array_events(traced: Traced) -> list[Event]:
    """Which intermediate arrays a run takes and gives back, in order, each given back after its last use.

    A node's inputs and outputs live together; views share an array, and an operator that may works in place.
    """
    nodes = [node for node in traced.graph.nodes if not _folded(node, traced)]
    uses = Counter(name for node in nodes for name in set(node.inputs) if name)
    results = {value.name for value in traced.graph.outputs}
    # the caller's own arrays (-1) are neither counted nor written over
    arrays = dict.fromkeys((given.name for given in traced.graph.inputs), -1)
    readers: Counter[int] = Counter()  # reads of an array that are still to come
    sizes: dict[int, int] = {}
    events: list[Event] = []
    for node in nodes:
        read = [name for name in dict.fromkeys(node.inputs) if name and name not in traced.constants]
        source = _reused(node, traced, arrays, readers, sizes)
        for at, name in enumerate(node.outputs):
            if not name:
                continue
            if at == 0 and source is not None:
                array = source
            else:
                array = len(sizes)
                sizes[array] = max(traced.bytes(name), 1)
                events.append((array, sizes[array]))
            arrays[name] = array
            readers[array] += uses[name] + (name in results)
        readers.subtract(arrays[name] for name in read)
        for array in {arrays[name] for name in (*read, *filter(None, node.outputs))} - {-1}:
            if readers[array] == 0 and sizes[array]:
                events.append((array, 0))
                sizes[array] = 0
    events.extend(
        (array, 0) for array, size in sizes.items() if size
    )  # the outputs, once the caller has them
    return events


def _reused(
    node: Node, traced: Traced, arrays: dict[str, int], readers: Counter[int], sizes: dict[int, int]
) -> int | None:
    """The array of an input that the first output takes over: a view's, or one read for the last time."""
    if node.op in _VIEWS or (
        node.op == "Cast" and traced.dtypes[node.inputs[0]] == traced.dtypes[node.outputs[0]]
    ):
        array = arrays.get(node.inputs[0], -1)
        return array if array >= 0 else None
    if node.op not in _IN_PLACE:
        return None
    size = traced.bytes(node.outputs[0])
    for name in node.inputs[:2]:
        array = arrays.get(name, -1)
        if array >= 0 and readers[array] == 1 and sizes[array] == size == traced.bytes(name):
            return array
    return None


def _folded(node: Node, traced: Traced) -> bool:
    """Whether the node works on constants or shapes alone: done once, on a few numbers."""
    return all(name in traced.constants for name in node.outputs if name)


def _flops(node: Node, traced: Traced) -> float:
    shapes, result = [traced.shapes.get(name, ()) for name in node.inputs], traced.shapes[node.outputs[0]]
    numbers = math.prod(result)
    if node.op in ("MatMul", "MatMulInteger"):
        return 2.0 * numbers * shapes[0][-1]
    if node.op == "Gemm":
        return 2.0 * numbers * shapes[0][0 if node.attributes.get("transA", 0) else 1]
    if node.op in ("Conv", "ConvInteger"):
        return 2.0 * numbers * math.prod(shapes[1][1:])
    if node.op == "Attention":
        rows, columns, width = shapes[0][-2], shapes[1][-2], shapes[0][-1]
        return 4.0 * math.prod(shapes[0][:-2]) * rows * columns * width
    return 0.0 if node.op in _VIEWS else float(numbers)


def _traffic(node: Node, traced: Traced) -> float:
    if node.op in _VIEWS:
        return 0.0
    names = dict.fromkeys(name for name in (*node.inputs, *node.outputs) if name)
    return float(sum(traced.bytes(name) for name in names))
