"""The small numbers that shapes are computed from: the operators between a Shape and the Reshape it ends in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.devices.graph_reader.onnx_file import DTYPES, Tensor
from perfusion.devices.graph_reader.shape_rules import (
    Call,
    Shape,
    constant_tensor,
    dims,
    expand_shape,
    reduce_shape,
    reshape_shape,
    slices,
    split_shape,
    squeeze_shape,
    unsqueeze_shape,
)  # fmt: skip

__all__ = ["SMALL", "computable", "compute"]

SMALL = 4096  # elements up to which a value is computed and not only its shape


def computable(call: Call) -> bool:
    """Whether `compute` has the inputs that it needs."""
    if call.node.op in ("Shape", "Size", "Constant"):
        return True
    given = [value for at, value in enumerate(call.values) if call.has(at)]
    return call.node.op in _VALUES and bool(given) and all(value is not None for value in given)


def compute(call: Call) -> list[NDArray[Any] | None] | None:
    """The small values a node gives, or None where they are not few."""
    if call.node.op == "Shape":
        return [np.asarray(dims(call), np.int64)]
    if call.node.op == "Size":
        return [np.asarray(math.prod(call.shapes[0]), np.int64)]
    if call.node.op == "Constant":
        return [constant_tensor(call).values]
    with np.errstate(all="ignore"):
        result = _VALUES[call.node.op](call, *[value for value in call.values if value is not None])
    return result if isinstance(result, list) else [np.asarray(result)]


def _divide(_: Call, left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    if np.issubdtype(left.dtype, np.integer):  # towards zero, as in C
        return np.asarray(np.trunc(left / right), left.dtype)
    return np.asarray(left / right)


def _cast(call: Call, value: NDArray[Any]) -> NDArray[Any]:
    kind = DTYPES[call.get("to", 1)][0]
    return value.astype(kind if kind in np.sctypeDict else "float32")


def _filled(call: Call, shape: NDArray[Any]) -> NDArray[Any]:
    value = call.get("value", None)
    content = (
        value.values if isinstance(value, Tensor) and value.values is not None else np.zeros(1, np.float32)
    )
    return np.full(tuple(int(size) for size in shape), content.reshape(-1)[0])


def _cut(call: Call, value: NDArray[Any], *_: NDArray[Any]) -> NDArray[Any]:
    parts: list[slice] = [slice(None)] * value.ndim
    for axis, part in zip(*slices(call), strict=True):
        parts[axis] = part
    return value[tuple(parts)]


def _pieces(call: Call, value: NDArray[Any], *_: NDArray[Any]) -> list[NDArray[Any] | None]:
    axis = call.get("axis", 0)
    ends = np.cumsum([shape[axis] for shape in split_shape(call)])[:-1]
    return list(np.split(value, ends, axis))


def _shaped(rule: Callable[[Call], list[Shape]]) -> Callable[..., NDArray[Any]]:
    return lambda call, value, *_: value.reshape(rule(call)[0])


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *values: function(*values)


_VALUES: dict[str, Callable[..., Any]] = {
    "Add": _plain(np.add), "Sub": _plain(np.subtract), "Mul": _plain(np.multiply), "Div": _divide,
    "Mod": _plain(np.mod), "Neg": _plain(np.negative), "Abs": _plain(np.abs), "Min": _plain(np.minimum),
    "Max": _plain(np.maximum), "Sqrt": _plain(np.sqrt), "Pow": _plain(np.power), "Reciprocal": _plain(np.reciprocal),
    "Floor": _plain(np.floor), "Ceil": _plain(np.ceil), "Equal": _plain(np.equal), "Less": _plain(np.less),
    "Greater": _plain(np.greater), "Where": _plain(np.where), "Not": _plain(np.logical_not),
    "Identity": _plain(np.asarray), "Cast": _cast, "Slice": _cut, "Split": _pieces,
    "Gather": lambda call, data, at: np.take(data, at, call.get("axis", 0)),
    "Concat": lambda call, *values: np.concatenate(values, call.get("axis", 0)),
    "Range": _plain(lambda start, end, step: np.arange(start, end, step)),
    "Reshape": _shaped(reshape_shape), "Squeeze": _shaped(squeeze_shape), "Unsqueeze": _shaped(unsqueeze_shape),
    "Expand": lambda call, value, *_: np.broadcast_to(value, expand_shape(call)[0]),
    "ReduceProd": lambda call, value, *_: np.prod(value).reshape(reduce_shape(call)[0]),
}  # fmt: skip
