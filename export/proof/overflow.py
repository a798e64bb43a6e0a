"""The extremes at every place of a float16 graph, and the first place where float16 has no room for them.

ONNX Runtime's CPU computes float16 in float32 and leaves out a rounding between two nodes, so that a graph may be
finite there and not on a GPU. Hence they are taken behind every node, of numbers that nothing has rounded yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from perfusion.export.proof.locate import layers_in, shortened
from perfusion.export.proof.trials import open_session, run_session
from perfusion.export.weights import FLOAT16_MAX

__all__ = ["Overflow", "first_overflow"]

_ARITHMETIC = {
    "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "MatMul", "Gemm", "Conv", "Einsum", "Attention", "Cast",
    "ReduceMean", "ReduceSum", "InstanceNormalization", "LayerNormalization", "GroupNormalization",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """A number that float16 cannot hold: the layer that gave it, or the last one before it, and its size."""

    module: str
    largest: float
    in_attention: bool


def first_overflow(
    name: str, path: Path, feeds: Mapping[str, np.ndarray]
) -> tuple[list[np.ndarray], Overflow | None]:
    """Run the graph of a file: its outputs, and the first number in it that float16 cannot hold."""
    model = onnx.load(path, load_external_data=False)
    layers = {value: module for module, *values in layers_in(model) for value in values}
    outputs = [output.name for output in model.graph.output]
    watched = _watch(model)
    copy = path.with_name(f"{path.name}.watched")
    try:
        onnx.save(model, copy)
        session = open_session(name, copy, optimized=False)
        found = run_session(name, session, feeds)
    finally:
        copy.unlink(missing_ok=True)
    extremes = dict(zip(watched, np.reshape(found[len(outputs) :], (-1, 3)).tolist(), strict=True))
    last = ""
    for value in (value for node in model.graph.node for value in node.output):
        last = layers.get(value, last)
        smallest, largest, undefined = extremes.get(value, (0.0, 0.0, 0.0))
        # −∞ is what attention's mask is made of
        size = np.nan if undefined else max(largest, 0.0 if smallest == -np.inf else -smallest)
        if not size <= FLOAT16_MAX:  # also for NaN
            inside = value not in layers and last.endswith((".to_q", ".to_k", ".to_v"))
            return found[: len(outputs)], Overflow(module=shortened(last), largest=size, in_attention=inside)
    return found[: len(outputs)], None


def _watch(model: onnx.ModelProto) -> list[str]:
    """Add to ``model`` outputs that tell of every float16 value that arithmetic gives; the values' names, in order.

    For each the smallest and the largest number, and whether one is NaN.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    half = {
        value.name
        for value in (*typed.graph.value_info, *typed.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    watched = [
        value
        for node in model.graph.node
        if node.op_type in _ARITHMETIC
        for value in node.output
        if value in half
    ]
    for value in watched:
        wide, undefined = f"{value}.wide", f"{value}.undefined"
        model.graph.node.extend(
            [
                _node("Cast", value, wide, to=onnx.TensorProto.FLOAT),
                _node(
                    "IsNaN", wide, f"{value}.IsNaN"
                ),  # the largest of some numbers need not be NaN where one is
                _node("Cast", f"{value}.IsNaN", undefined, to=onnx.TensorProto.FLOAT),
            ]
        )
        for kind, source in (("ReduceMin", wide), ("ReduceMax", wide), ("ReduceMax", undefined)):
            extreme = f"{source}.{kind}"
            model.graph.node.append(_node(kind, source, extreme, keepdims=0))
            model.graph.output.append(onnx.helper.make_tensor_value_info(extreme, onnx.TensorProto.FLOAT, []))
    return watched


def _node(kind: str, source: str, result: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, [source], [result], **attributes)
