"""Int8: the weights of matrix products in eight bits, and their inputs rounded to eight bits at each call.

ONNX's own operators, as onnxruntime.quantization writes them (a test compares the two). Done here because that tool
holds the whole model several times over, where this one reads a weight when it is written.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

__all__ = ["quantize"]

_HALF_RANGE = 63.0
"""Seven of the eight bits: processors without int8 instructions of their own add two products in 16 bits, which eight
bits overflow. It costs a fifth more error and gives the same numbers everywhere."""


def quantize(model: ir.Model) -> int:
    """Quantise every MatMul and Gemm by a weight, dynamically; returns how many.

    x ≈ scale_x (x₈ − zero), with both from the range of x at each call (uint8); W ≈ W₈ scale_W with one scale for each
    column (int8). Convolutions stay: quantised they are four times as far off and no faster. So do products of
    two inputs, attention's and a concept's.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type in ("MatMul", "Gemm") and _is_weight(node.inputs[1]) and _is_plain(node):
            _replace(model.graph, node)
            count += 1
    return count


def _is_weight(value: ir.Value | None) -> bool:
    tensor = value.const_value if value is not None and value.is_initializer() else None
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2


def _is_plain(node: ir.Node) -> bool:
    """Whether a Gemm is x·W + b, or x·Wᵀ + b."""
    factors = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
    return factors == (1.0, 1.0) and not node.attributes.get_int("transA", 0)


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    """Put the quantised product of `node` in its place, under the names it had."""
    x, weight, *bias = node.inputs
    output = node.outputs[0]
    assert weight is not None and weight.name is not None and output.name is not None
    turned = bool(node.attributes.get_int("transB", 0))
    rounded, scale = _quantized_weight(graph, weight, turned=turned)

    made: list[ir.Node] = []

    def add(kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: int) -> list[ir.Value]:
        made.append(ir.node(kind, inputs, attributes, num_outputs=outputs, name=""))
        for index, value in enumerate(made[-1].outputs):
            value.name = f"{output.name}.{kind}{index}"
        return list(made[-1].outputs)

    x8, x_scale, x_zero = add("DynamicQuantizeLinear", x, outputs=3)
    (product,) = add("MatMulInteger", x8, rounded, x_zero)
    (real,) = add("Cast", product, to=ir.DataType.FLOAT.value)
    (factor,) = add("Mul", x_scale, scale)
    made.append(ir.node("Mul", [real, factor], name=""))
    if bias and bias[0] is not None:
        made[-1].outputs[0].name = f"{output.name}.Mul1"
        made.append(ir.node("Add", [made[-1].outputs[0], bias[0]], name=""))
    result = made[-1].outputs[0]
    result.type, result.shape = output.type, output.shape
    graph.insert_before(node, made)
    name = output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = name
    if not weight.uses():
        del graph.initializers[weight.name]
        weight.const_value = None  # see `perfusion.export.weights.forget_weights`


def _quantized_weight(graph: ir.Graph, weight: ir.Value, *, turned: bool) -> tuple[ir.Value, ir.Value]:
    """The initializers of W₈ (inputs, outputs) int8 and its scales (outputs,); made when they are written."""
    tensor = weight.const_value
    assert tensor is not None
    inputs, outputs = (int(side) for side in (tensor.shape.numpy()[::-1] if turned else tensor.shape.numpy()))

    def matrix() -> np.ndarray:
        array = tensor.numpy()
        return np.asarray(array.T if turned else array)

    def rounded() -> np.ndarray:
        return np.ascontiguousarray(np.rint(matrix() / _scales(matrix())).astype(np.int8))

    return (
        _initializer(graph, f"{weight.name}.int8", rounded, ir.DataType.INT8, (inputs, outputs)),
        _initializer(graph, f"{weight.name}.scale", lambda: _scales(matrix()), ir.DataType.FLOAT, (outputs,)),
    )


def _scales(matrix: np.ndarray) -> np.ndarray:
    """What a step of int8 is worth in each column of ``matrix``, (outputs,); 1 for a column of zeros."""
    largest = np.abs(matrix).max(axis=0)
    return np.asarray(np.where(largest > 0, largest, _HALF_RANGE) / np.float32(_HALF_RANGE), np.float32)


def _initializer(
    graph: ir.Graph, name: str, make: Callable[[], np.ndarray], kind: ir.DataType, shape: tuple[int, ...]
) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.LazyTensor(lambda: ir.Tensor(make(), name=name), kind, ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(kind), const_value=tensor)
    graph.register_initializer(value)
    return value
