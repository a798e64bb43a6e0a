"""How each ONNX operator's output shapes follow from its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.devices.graph_reader.onnx_file import Node, Tensor

__all__ = [
    "ELEMENTWISE", "RULES", "Call", "Shape", "constant_tensor", "dims", "expand_shape", "reduce_shape", "reshape_shape",
    "slices", "split_shape", "squeeze_shape", "unsqueeze_shape",
]  # fmt: skip

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One node with what is known of its inputs."""

    node: Node
    shapes: list[Shape]
    values: list[NDArray[Any] | None]
    dtypes: list[int]

    def get(self, name: str, default: Any) -> Any:
        """An attribute of the node."""
        return self.node.attributes.get(name, default)

    def has(self, at: int) -> bool:
        """Whether an input that may be left out is there."""
        return at < len(self.node.inputs) and bool(self.node.inputs[at])

    def ints(self, at: int, name: str = "") -> list[int]:
        """A list of whole numbers, an input since later opsets and an attribute before."""
        if self.has(at):
            value = self.values[at]
            if value is None:
                raise ValueError("a shape that depends on the data")
            return [int(number) for number in np.atleast_1d(value).reshape(-1)]
        return list(self.get(name, []))


def dims(call: Call) -> Shape:
    """What Shape gives: the input's sizes, or a stretch of them."""
    return call.shapes[0][call.get("start", 0) : call.get("end", None)]


def _same(call: Call) -> list[Shape]:
    return [call.shapes[0]] * max(1, len(call.node.outputs))


def _matmul(call: Call) -> list[Shape]:
    left, right = call.shapes[0], call.shapes[1]
    if left[-1] != right[-2 if len(right) > 1 else 0]:
        raise ValueError("the sizes to be multiplied differ")
    outer = np.broadcast_shapes(left[:-2], right[:-2])
    return [(*outer, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))]


def _gemm(call: Call) -> list[Shape]:
    left = call.shapes[0][::-1] if call.get("transA", 0) else call.shapes[0]
    right = call.shapes[1][::-1] if call.get("transB", 0) else call.shapes[1]
    if left[1] != right[0]:
        raise ValueError("the sizes to be multiplied differ")
    return [(left[0], right[1])]


def _conv(call: Call) -> list[Shape]:
    data, kernel = call.shapes[0], call.shapes[1]
    if data[1] != kernel[1] * call.get("group", 1):
        raise ValueError("the channels differ")
    return [(data[0], kernel[0], *_window(call, data[2:], list(kernel[2:])))]


def _window(call: Call, sizes: Shape, kernel: list[int]) -> list[int]:
    """Sizes after a sliding window (Conv, pools)."""
    count = len(sizes)
    strides = call.get("strides", [1] * count)
    dilations = call.get("dilations", [1] * count)
    pads = call.get("pads", [0] * (2 * count))
    if call.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
    spans = [dilation * (side - 1) + 1 for side, dilation in zip(kernel, dilations, strict=True)]
    return [(sizes[at] + pads[at] + pads[at + count] - spans[at]) // strides[at] + 1 for at in range(count)]


def _pool(call: Call) -> list[Shape]:
    return [(*call.shapes[0][:2], *_window(call, call.shapes[0][2:], call.get("kernel_shape", [])))]


def _global_pool(call: Call) -> list[Shape]:
    return [(*call.shapes[0][:2], *(1 for _ in call.shapes[0][2:]))]


def reshape_shape(call: Call) -> list[Shape]:
    """Reshape: of the sizes asked for, -1 is what is left over and, without `allowzero`, 0 the input's own."""
    data, sizes = call.shapes[0], call.ints(1)
    if not call.get("allowzero", 0):
        sizes = [data[at] if size == 0 else size for at, size in enumerate(sizes)]
    total = math.prod(data)
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = total // rest if rest else 0
    if math.prod(sizes) != total:
        raise ValueError(f"{total} numbers cannot become {sizes}")
    return [tuple(sizes)]


def _transpose(call: Call) -> list[Shape]:
    data = call.shapes[0]
    return [tuple(data[axis] for axis in call.get("perm", range(len(data))[::-1]))]


def _concat(call: Call) -> list[Shape]:
    axis, first = call.get("axis", 0), list(call.shapes[0])
    axis %= len(first)
    for shape in call.shapes[1:]:
        if [*shape[:axis], *shape[axis + 1 :]] != [*first[:axis], *first[axis + 1 :]]:
            raise ValueError("the sizes beside the joined axis differ")
    first[axis] = sum(shape[axis] for shape in call.shapes)
    return [tuple(first)]


def _slice(call: Call) -> list[Shape]:
    shape = list(call.shapes[0])
    for axis, part in zip(*slices(call), strict=True):
        shape[axis] = len(range(*part.indices(shape[axis])))
    return [tuple(shape)]


def slices(call: Call) -> tuple[list[int], list[slice]]:
    """What Slice cuts out: axes, and the stretch of each."""
    starts, ends = call.ints(1, "starts"), call.ints(2, "ends")
    axes = call.ints(3, "axes") or list(range(len(starts)))
    steps = call.ints(4) or [1] * len(starts)
    rank = len(call.shapes[0])
    parts = []
    for start, end, step in zip(starts, ends, steps, strict=True):
        # ONNX writes "to the very beginning" as a number below -rank, which Python would wrap around
        parts.append(slice(start, None if step < 0 and end < -(1 << 30) else end, step))
    return [axis % rank for axis in axes], parts


def split_shape(call: Call) -> list[Shape]:
    """Split: the sizes given, or equal parts, of which the last may be smaller."""
    data, count = call.shapes[0], len(call.node.outputs)
    axis = call.get("axis", 0) % len(data)
    parts = call.ints(1, "split")
    if not parts:
        part = -(-data[axis] // count)
        parts = [min(part, data[axis] - at * part) for at in range(count)]
    return [(*data[:axis], part, *data[axis + 1 :]) for part in parts]


def squeeze_shape(call: Call) -> list[Shape]:
    """Squeeze: without the axes given, or without every axis of size 1."""
    data = call.shapes[0]
    axes = {axis % len(data) for axis in call.ints(1, "axes")} or {
        at for at, one in enumerate(data) if one == 1
    }
    return [tuple(size for at, size in enumerate(data) if at not in axes)]


def unsqueeze_shape(call: Call) -> list[Shape]:
    """Unsqueeze: an axis of size 1 at each place, counted in the result."""
    axes = call.ints(1, "axes")
    rank = len(call.shapes[0]) + len(axes)
    shape = list(call.shapes[0])
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return [tuple(shape)]


def _flatten(call: Call) -> list[Shape]:
    axis = call.get("axis", 1)
    return [(math.prod(call.shapes[0][:axis]), math.prod(call.shapes[0][axis:]))]


def _gather(call: Call) -> list[Shape]:
    data = call.shapes[0]
    axis = call.get("axis", 0) % len(data)
    return [(*data[:axis], *call.shapes[1], *data[axis + 1 :])]


def _gather_nd(call: Call) -> list[Shape]:
    data, indices = call.shapes[0], call.shapes[1]
    return [(*indices[:-1], *data[call.get("batch_dims", 0) + indices[-1] :])]


def expand_shape(call: Call) -> list[Shape]:
    """Expand: the input and the sizes asked for, broadcast."""
    return [np.broadcast_shapes(call.shapes[0], tuple(call.ints(1)))]


def _tile(call: Call) -> list[Shape]:
    return [tuple(size * times for size, times in zip(call.shapes[0], call.ints(1), strict=True))]


def _range(call: Call) -> list[Shape]:
    ends = [float(np.asarray(value).reshape(())) for value in call.values if value is not None]
    if len(ends) != 3:
        raise ValueError("a length that depends on the data")
    return [(max(0, math.ceil((ends[1] - ends[0]) / ends[2])),)]


def _constant(call: Call) -> list[Shape]:
    return [constant_tensor(call).shape]


def constant_tensor(call: Call) -> Tensor:
    """A Constant's content; nodes have one attribute of several possible."""
    name, content = next(iter(call.node.attributes.items()))
    if isinstance(content, Tensor):
        return content
    kind = "float32" if "float" in name else "int64"
    values = np.asarray(content, kind)
    return Tensor(dtype=1 if kind == "float32" else 7, shape=values.shape, values=values)


def _resize(call: Call) -> list[Shape]:
    data = call.shapes[0]
    axes = [axis % len(data) for axis in call.get("axes", range(len(data)))]
    shape = list(data)
    if call.has(3):
        for axis, size in zip(axes, call.ints(3), strict=True):
            shape[axis] = size
        return [tuple(shape)]
    scales = call.values[2 if call.has(2) else 1]
    if scales is None:
        raise ValueError("a scale that depends on the data")
    for axis, scale in zip(axes, np.asarray(scales, np.float64), strict=True):
        shape[axis] = math.floor(data[axis] * scale)
    return [tuple(shape)]


def _pad(call: Call) -> list[Shape]:
    pads, shape = call.ints(1, "pads"), list(call.shapes[0])
    axes = [axis % len(shape) for axis in (call.ints(3) if call.has(3) else range(len(shape)))]
    for at, axis in enumerate(axes):
        shape[axis] += pads[at] + pads[at + len(axes)]
    return [tuple(shape)]


def reduce_shape(call: Call) -> list[Shape]:
    """ReduceSum and its like, ArgMax and ArgMin: the axes given, or all, become 1 or, without `keepdims`, vanish."""
    data = call.shapes[0]
    if call.node.op.startswith("Arg"):
        axes = {call.get("axis", 0) % len(data)}
    else:
        axes = {axis % len(data) for axis in call.ints(1, "axes")}
        if not axes and call.get("noop_with_empty_axes", 0):
            return [data]
        axes = axes or set(range(len(data)))
    if call.get("keepdims", 1):
        return [tuple(1 if at in axes else size for at, size in enumerate(data))]
    return [tuple(size for at, size in enumerate(data) if at not in axes)]


def _normalization(call: Call) -> list[Shape]:
    """The normalised array; further outputs are its statistics, smaller by the normalised axes."""
    data = call.shapes[0]
    axis = call.get("axis", -1) % len(data)
    return [data, *[(*data[:axis], *(1 for _ in data[axis:]))] * (len(call.node.outputs) - 1)]


def _attention(call: Call) -> list[Shape]:
    """Opset 23's Attention, on (batch, heads, tokens, width) or (batch, tokens, heads · width)."""
    query, value = call.shapes[0], call.shapes[2]
    if len(query) == 4:
        return [(*query[:3], value[3]), *[()] * (len(call.node.outputs) - 1)]
    width = value[2] // call.get("kv_num_heads", 1) * call.get("q_num_heads", 1)
    return [(*query[:2], width), *[()] * (len(call.node.outputs) - 1)]


RULES: dict[str, Callable[[Call], list[Shape]]] = {
    "MatMul": _matmul, "MatMulInteger": _matmul, "Gemm": _gemm, "Conv": _conv, "ConvInteger": _conv,
    "AveragePool": _pool, "MaxPool": _pool, "GlobalAveragePool": _global_pool,
    "Reshape": reshape_shape, "Transpose": _transpose, "Concat": _concat, "Slice": _slice, "Split": split_shape,
    "Squeeze": squeeze_shape, "Unsqueeze": unsqueeze_shape, "Flatten": _flatten,
    "Gather": _gather, "GatherND": _gather_nd,
    "GatherElements": lambda call: [call.shapes[1]],
    "Expand": expand_shape, "Tile": _tile, "Range": _range, "Constant": _constant,
    "ConstantOfShape": lambda call: [tuple(call.ints(0))],
    "Shape": lambda call: [(len(dims(call)),)], "Size": lambda call: [()],
    "Resize": _resize, "Upsample": _resize, "Pad": _pad,
    "LayerNormalization": _normalization, "RMSNormalization": _normalization,
    "SkipLayerNormalization": _same, "InstanceNormalization": _same, "GroupNormalization": _same,
    "BatchNormalization": _same, "Softmax": _same, "LogSoftmax": _same, "ScatterND": _same, "ScatterElements": _same,
    "Trilu": _same, "CumSum": _same, "Attention": _attention,
    "DynamicQuantizeLinear": lambda call: [call.shapes[0], (), ()],
    "QuantizeLinear": _same, "DequantizeLinear": _same, "Clip": _same,
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ArgMax", "ArgMin"),
        reduce_shape,
    ),
}  # fmt: skip
ELEMENTWISE = frozenset(
    (
        "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Cos", "Div", "Equal", "Erf", "Exp", "Floor", "Gelu",
        "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsNaN", "LeakyRelu", "Less",
        "LessOrEqual", "Log", "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
        "Reciprocal", "Relu", "Round", "Sigmoid", "Sign",
        "Silu", "Sin", "Softplus", "Sqrt", "Sub", "Swish", "Tanh", "Where", "Xor",
    )
)  # fmt: skip
