"""The shape of every value in a graph for one request: inputs of known sizes, carried through node by node.

Exported graphs keep no inner shapes, and theirs would be symbols anyway. Where a shape is computed in the graph
(Shape → Gather → Concat → Reshape), the few numbers it is computed from are computed here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.devices.graph_reader.onnx_file import GraphFile, Node, Tensor, nbytes
from perfusion.devices.graph_reader.shape_rules import ELEMENTWISE, RULES, Call, Shape, constant_tensor
from perfusion.devices.graph_reader.shape_values import SMALL, computable, compute
from perfusion.errors import BundleError

__all__ = ["Traced", "trace"]

FLOAT32 = 1


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A graph with the shape and kind of every value."""

    graph: GraphFile
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, int]
    constants: frozenset[str]  # weights, and what is computed from weights and shapes alone
    float_bytes: int = 4
    """Bytes of a float32 number: 2 to see what the same graph takes when it is exported in half precision."""
    wide: frozenset[str] = frozenset()
    """Values that are float32 even then."""

    def bytes(self, name: str) -> int:
        """What a value takes in memory."""
        size = nbytes(self.dtypes[name], self.shapes[name])
        if self.dtypes[name] != FLOAT32 or name in self.wide:
            return size
        return size * self.float_bytes // 4


def trace(
    graph: GraphFile, sizes: Mapping[str, int], *, half: bool = False, wide_attention: bool = False
) -> Traced:
    """Carry the inputs' shapes through the graph; `sizes` has a number for each named dimension.

    Args:
        graph: as `read_graph` gives it.
        sizes: a number for each named dimension.
        half: count float32 as two bytes, as an export in half precision would make it.
        wide_attention: but as four in attention, as an export that keeps it in float32 would.

    Raises:
        BundleError: an operator or a dimension that is not known here, or shapes that do not fit each other.
    """
    tracer = _Tracer(graph)
    for entry in graph.inputs:
        missing = [dim for dim in entry.dims if isinstance(dim, str) and dim not in sizes]
        if missing:
            raise BundleError(
                f"{graph.path}: the size of {entry.name}'s dimension {missing[0]!r} is not known."
            )
        shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in entry.dims)
        tracer.put(entry.name, entry.dtype, shape)
    for node in graph.nodes:
        try:
            tracer.step(node)
        except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
            shapes = ", ".join(str(list(tracer.shapes.get(name, ()))) for name in node.inputs if name)
            raise BundleError(
                f"{graph.path}: the operator {node.op} on {shapes or 'nothing'} cannot be followed ({error}). The "
                "sizes do not suit the graph, or this version of perfusion-edge does not know it."
            ) from error
    return Traced(
        graph=graph,
        shapes=tracer.shapes,
        dtypes=tracer.dtypes,
        constants=frozenset(tracer.constants),
        float_bytes=2 if half else 4,
        wide=_attention(graph) if wide_attention else frozenset(),
    )


def _attention(graph: GraphFile) -> frozenset[str]:
    """What attention reads and makes: queries, keys, scores, their softmax, values, and what they become."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    scored = {node.outputs[0] for node in graph.nodes if node.op == "Softmax"}
    around = [node for node in graph.nodes if node.op == "Attention"]
    around += [node for node in graph.nodes if node.op == "MatMul" and node.inputs[0] in scored]
    around += [makers[makers[name].inputs[0]] for name in scored if makers[name].inputs[0] in makers]
    return frozenset(name for node in around for name in (*node.inputs, *node.outputs))


class _Tracer:
    """Shapes, kinds and small values so far."""

    def __init__(self, graph: GraphFile) -> None:
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, int] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self.constants = set(graph.initializers)
        for name, tensor in graph.initializers.items():
            self.put(name, tensor.dtype, tensor.shape, tensor.values)

    def put(self, name: str, dtype: int, shape: Sequence[int], values: NDArray[Any] | None = None) -> None:
        """Note an array; its values only where they are few."""
        self.shapes[name] = tuple(int(size) for size in shape)
        self.dtypes[name] = dtype
        if min(self.shapes[name], default=0) < 0:
            raise ValueError(f"a size of {min(self.shapes[name])}")
        if values is not None and values.size <= SMALL:
            self.values[name] = values

    def step(self, node: Node) -> None:
        """Follow one node, whose inputs are known.

        Raises:
            ValueError: the operator is not known, or the shapes do not suit it.
        """
        shapes = [self.shapes[name] if name else () for name in node.inputs]
        values = [self.values.get(name) for name in node.inputs]
        call = Call(node, shapes, values, [self.dtypes.get(name, 0) for name in node.inputs])
        if node.op in RULES:
            results = RULES[node.op](call)
        elif node.op in ELEMENTWISE:
            results = [np.broadcast_shapes(*shapes)]
        else:
            raise ValueError("the operator is not known")
        kinds = _kinds(call, len(results))
        known = compute(call) if computable(call) else None
        if known or all(name in self.constants for name in node.inputs if name):
            self.constants.update(node.outputs)
        for at, name in enumerate(node.outputs):
            if name:
                self.put(name, kinds[at], results[at], known[at] if known else None)


_BOOLS = frozenset(
    ("And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor")
)
_INT64 = frozenset(("Shape", "Size", "ArgMax", "ArgMin"))


def _kinds(call: Call, count: int) -> list[int]:
    """The kinds of a node's outputs, as TensorProto numbers them."""
    op, first = call.node.op, call.dtypes[0] if call.dtypes else 1
    if op == "Cast":
        first = call.get("to", 1)
    elif op == "CastLike" or op == "Where":
        first = call.dtypes[1]
    elif op in _BOOLS:
        first = 9
    elif op in _INT64:
        first = 7
    elif op in ("MatMulInteger", "ConvInteger"):
        first = 6
    elif op == "Constant":
        first = constant_tensor(call).dtype
    elif op == "ConstantOfShape":
        value = call.get("value", None)
        first = value.dtype if isinstance(value, Tensor) else 1
    elif op == "DynamicQuantizeLinear":
        return [2, 1, 2]
    elif op == "QuantizeLinear":
        first = call.dtypes[2] if call.has(2) else call.get("output_dtype", 0) or 2
    elif op == "DequantizeLinear":
        first = call.dtypes[1]
    return [first] * max(count, len(call.node.outputs))
