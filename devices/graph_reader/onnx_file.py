"""A graph's nodes, inputs and tensor sizes, read from an .onnx file without the onnx package.

Only what a memory plan needs is decoded: the fields of onnx.proto named in `_..._FIELDS` below, in protobuf's wire
format (a tag, then a varint, four or eight bytes, or a length and that many bytes). Weights are never read, only
their shapes; the file is mapped, so that a graph of two gigabytes costs what its nodes take.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import BundleError

__all__ = ["DTYPES", "GraphFile", "Node", "Tensor", "Value", "read_graph"]

DTYPES: Mapping[int, tuple[str, float]] = {  # TensorProto.DataType: name, bytes
    1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 4: ("uint16", 2), 5: ("int16", 2), 6: ("int32", 4),
    7: ("int64", 8), 9: ("bool", 1), 10: ("float16", 2), 11: ("float64", 8), 12: ("uint32", 4), 13: ("uint64", 8),
    16: ("bfloat16", 2), 17: ("float8", 1), 18: ("float8", 1), 19: ("float8", 1), 20: ("float8", 1),
    21: ("uint4", 0.5), 22: ("int4", 0.5), 23: ("float4", 0.5),
}  # fmt: skip

_SMALL = 4096  # elements: what shapes are computed from is smaller, weights are larger
_MOST_NODES = 200_000


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator. `attributes` has whole numbers, floats, texts, lists and small tensors."""

    op: str
    inputs: tuple[str, ...]  # "" where an optional input is left out
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A weight or constant: its kind and shape; `values` only where it is small and stands in the file."""

    dtype: int
    shape: tuple[int, ...]
    values: NDArray[Any] | None = None

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return nbytes(self.dtype, self.shape)


@dataclass(frozen=True, kw_only=True)
class Value:
    """An input or output of the graph; a dimension is a number or the name of one."""

    name: str
    dtype: int
    dims: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """What an .onnx file says, without its weights' numbers."""

    path: Path
    nodes: tuple[Node, ...]
    initializers: Mapping[str, Tensor]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    weights: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", sum(tensor.bytes for tensor in self.initializers.values()))


def nbytes(dtype: int, shape: tuple[int, ...]) -> int:
    """Bytes of an array; an unknown kind counts as four bytes a number."""
    count = 1
    for size in shape:
        count *= size
    return int(np.ceil(count * DTYPES.get(dtype, ("", 4))[1]))


def read_graph(path: Path | str) -> GraphFile:
    """Read the nodes and the tensors' sizes of an .onnx file.

    Raises:
        BundleError: the file cannot be read or is not an ONNX model.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:  # the map goes with the last view of it
            return _model(path, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, struct.error, IndexError, KeyError, TypeError) as error:
        reason = "it is empty" if "empty" in str(error) else str(error)
        raise BundleError(
            f"{path} is not a graph that can be read ({reason}). Export the bundle again."
        ) from error


def _fields(view: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int for varints, a memoryview for anything of a length."""
    at, end = 0, len(view)
    while at < end:
        tag, at = _varint(view, at)
        wire = tag & 7
        value: Any
        if wire == 0:
            value, at = _varint(view, at)
        elif wire == 2:
            length, at = _varint(view, at)
            value, at = view[at : at + length], at + length
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            value, at = view[at : at + length], at + length
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field runs past the end")
        yield tag >> 3, value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = view[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _text(view: memoryview) -> str:
    return str(view, "utf-8")


def _numbers(value: Any) -> list[int]:
    """A repeated int64: packed into one field, or one field each."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _model(path: Path, view: memoryview) -> GraphFile:
    graphs = [value for number, value in _fields(view) if number == 7 and not isinstance(value, int)]
    if len(graphs) != 1:
        raise ValueError("there is no graph in it")
    nodes: list[Node] = []
    initializers: dict[str, Tensor] = {}
    inputs: list[Value] = []
    outputs: list[Value] = []
    for number, value in _fields(graphs[0]):
        if number == 1:
            nodes.append(_node(value))
            if len(nodes) > _MOST_NODES:
                raise ValueError(f"more than {_MOST_NODES} nodes")
        elif number == 5:
            name, tensor = _tensor(value)
            initializers[name] = tensor
        elif number == 11:
            inputs.append(_value(value))
        elif number == 12:
            outputs.append(_value(value))
    feeds = tuple(one for one in inputs if one.name not in initializers)
    return GraphFile(
        path=path, nodes=tuple(nodes), initializers=initializers, inputs=feeds, outputs=tuple(outputs)
    )


def _node(view: memoryview) -> Node:
    inputs, outputs, attributes, op = [], [], {}, ""
    for number, value in _fields(view):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            op = _text(value)
        elif number == 5:
            name, content = _attribute(value)
            attributes[name] = content
    return Node(op=op, inputs=tuple(inputs), outputs=tuple(outputs), attributes=attributes)


def _attribute(view: memoryview) -> tuple[str, Any]:
    """Name and content of an attribute; subgraphs are left out (None)."""
    name, single, floats, ints, kind = "", None, [], [], 0
    for number, value in _fields(view):
        if number == 1:
            name = _text(value)
        elif number == 2:
            single = struct.unpack("<f", value)[0]
        elif number == 3:
            single = _signed(value)
        elif number == 4:
            single = str(value, "utf-8", "replace")
        elif number == 5:
            single = _tensor(value)[1]
        elif number == 7:
            floats.extend(np.frombuffer(value, "<f4").tolist())
        elif number == 8:
            ints.extend(_numbers(value))
        elif number == 20:
            kind = value
    return name, {6: floats, 7: ints}.get(kind, single)


def _tensor(view: memoryview) -> tuple[str, Tensor]:
    """Name and shape of a TensorProto, with its numbers where they are few."""
    name, dtype, dims, raw = "", 0, [], None
    numbers: list[Any] = []
    for number, value in _fields(view):
        if number == 1:
            dims.extend(_numbers(value))
        elif number == 2:
            dtype = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = value
        elif number in (4, 10):
            numbers.extend(np.frombuffer(value, "<f4" if number == 4 else "<f8").tolist())
        elif number in (5, 7, 11) and (isinstance(value, int) or len(value) <= 10 * _SMALL):
            numbers.extend(_numbers(value))
    if any(dim < 0 for dim in dims):
        raise ValueError(f"{name} has a negative size")
    shape = tuple(dims)
    return name, Tensor(dtype=dtype, shape=shape, values=_small(dtype, shape, raw, numbers))


def _small(
    dtype: int, shape: tuple[int, ...], raw: memoryview | None, numbers: list[Any]
) -> NDArray[Any] | None:
    """The numbers of a small tensor of a kind numpy has; float16 among int32s is never needed."""
    kind = DTYPES.get(dtype, ("", 4))[0]
    count = int(np.prod(shape, dtype=np.int64))
    if count > _SMALL or kind not in (
        "float32",
        "float64",
        "int32",
        "int64",
        "bool",
        "float16",
        "int8",
        "uint8",
    ):
        return None
    if raw is not None:
        return np.frombuffer(bytes(raw), kind).reshape(shape)
    if len(numbers) == count and kind != "float16":
        return np.asarray(numbers, kind).reshape(shape)
    return None


def _value(view: memoryview) -> Value:
    """A ValueInfoProto of a tensor."""
    name, dtype = "", 0
    dims: list[int | str] = []
    for number, value in _fields(view):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for inner, kind in _fields(value):
                if inner == 1:
                    dtype, dims = _tensor_type(kind)
    return Value(name=name, dtype=dtype, dims=tuple(dims))


def _tensor_type(view: memoryview) -> tuple[int, list[int | str]]:
    dtype = 0
    dims: list[int | str] = []
    for number, value in _fields(view):
        if number == 1:
            dtype = value
        elif number == 2:
            dims = [_dimension(dim) for inner, dim in _fields(value) if inner == 1]
    return dtype, dims


def _dimension(view: memoryview) -> int | str:
    for number, value in _fields(view):
        if number == 1:
            return _signed(value)
        if number == 2:
            return _text(value)
    return ""
