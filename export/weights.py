"""How a graph's weights are stored: as float16 where that loses nothing, in the graph or in another file.

Weights are read from the model one at a time, when they are written, and never all held.

A model that was published in float16 holds float32 weights that float16 represents exactly. Such a weight is
stored as float16 and cast by the first node that meets it; a runtime folds the cast while loading, so the
numbers are the same and the file is half as large.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from perfusion.errors import ExportError

__all__ = [
    "FLOAT16_MAX",
    "INLINE_LIMIT",
    "SMALLEST",
    "StoredTensor",
    "exact_float16",
    "forget_weights",
    "link_weights",
    "save",
    "set_weights",
    "share_weights",
    "store_as_float16",
    "stored_tensors",
]

SMALLEST = 1024
"""Bytes in float32 from which a weight is worth a node of its own; biases and norms stay as they are."""

FLOAT16_MAX = 65504.0

INLINE_LIMIT = 500_000_000
"""Bytes of weights a graph may hold itself: a protobuf ends at 2 GB, and writing and reading one takes several times
its size in memory, where weights in a file of their own are written one by one and mapped."""

_MOST_INSIDE = 256  # bytes of a weight: one that is smaller costs less in the graph than its entry outside


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a float16 tensor lies: at byte ``offset`` of ``location``, a path below the model's folder."""

    name: str
    location: str
    offset: int
    length: int
    shape: tuple[int, ...]


def set_weights(
    model: ir.Model, sources: Mapping[str, Tensor], dtype_of: Callable[[str], torch.dtype]
) -> None:
    """Give the initializers of ``model`` that have no value the tensors of ``sources`` that have their names.

    A matrix that the graph only reads transposed is stored that way around, and the Transpose goes.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None:
            continue
        if name not in sources:
            raise ExportError(f"the exporter left the value {name} without a weight of the model")
        uses = [node for node, _ in value.uses()]
        transposed = bool(uses) and all(_swaps_sides(node) for node in uses)
        value.const_value = _read_later(name, sources[name], dtype_of(name), transposed=transposed)
        value.shape = value.const_value.shape
        for node in uses if transposed else ():
            node.outputs[0].replace_all_uses_with(value)
            graph.remove(node, safe=True)


def _swaps_sides(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and node.attributes.get_ints("perm", ()) in ([1, 0], (1, 0))


def _read_later(name: str, source: Tensor, dtype: torch.dtype, *, transposed: bool) -> ir.LazyTensor:
    """``source`` as ``dtype`` (whole numbers stay what they are), converted whenever it is read."""
    dtype = dtype if source.is_floating_point() else source.dtype

    def read() -> ir.TensorProtocol:
        """The numbers as they are now; raises `ExportError` where float16 cannot hold them."""
        tensor = source.detach()
        if dtype == torch.float16 and tensor.dtype != dtype and tensor.numel():
            largest = float(tensor.abs().max())
            if largest > FLOAT16_MAX:
                raise ExportError(
                    f"the weight {name} goes up to {largest:.3g} and float16 to {FLOAT16_MAX:.0f}; export with another "
                    "precision, or keep its module in float32"
                )
        tensor = tensor.to(dtype)
        return ir.Tensor(np.ascontiguousarray((tensor.T if transposed else tensor).numpy()), name=name)

    shape = ir.Shape(reversed(source.shape) if transposed else source.shape)
    kind = ir.DataType.from_numpy(torch.empty(0, dtype=dtype).numpy().dtype)
    return ir.LazyTensor(read, kind, shape, name=name)


def exact_float16(array: np.ndarray) -> np.ndarray | None:
    """``array`` (float32) as float16 if every bit survives, otherwise None."""
    with np.errstate(over="ignore"):
        half = array.astype("<f2")
    same = half.astype(np.float32).tobytes() == array.tobytes()
    return half if same else None


def store_as_float16(model: ir.Model) -> int:
    """Store the weights that allow it as float16 with a cast; returns how many."""
    count = 0
    for value, _ in _candidates(model):
        _replace(model, value, _halved(value))
        count += 1
    return count


def link_weights(model: ir.Model, folder: Path, tensors: Mapping[str, StoredTensor]) -> tuple[int, int]:
    """Point the weights at the ``tensors`` (see `stored_tensors`) in ``folder`` that hold the same bytes.

    The exporter folds transposes into weights, so a matrix may be stored the other way around; a Transpose
    node turns it back. What is found nowhere is stored in the graph. Returns (linked, not linked).
    """
    linked = embedded = 0
    for value, half in _candidates(model):
        stored, transposed = tensors.get(_key(half)), False
        if stored is None and half.ndim == 2:
            stored, transposed = tensors.get(_key(np.ascontiguousarray(half.T))), True
        if stored is None:
            _replace(model, value, _halved(value))
            embedded += 1
            continue
        external = ir.ExternalTensor(
            stored.location,
            stored.offset,
            stored.length,
            ir.DataType.FLOAT16,
            shape=ir.Shape(stored.shape),
            name=f"{value.name}.float16",
            base_dir=folder,
        )
        array = external.numpy().T if transposed else external.numpy()
        assert array.tobytes() == half.tobytes(), stored  # what a runtime will read there
        _replace(model, value, external, transposed=transposed)
        linked += 1
    return linked, embedded


def stored_tensors(folder: Path, *subfolders: str) -> dict[str, StoredTensor]:
    """The float16 tensors in the safetensors files of ``subfolders``, by a digest of shape and bytes."""
    tensors: dict[str, StoredTensor] = {}
    for subfolder in subfolders:
        for path in sorted((folder / subfolder).glob("*.safetensors")):
            for stored in _read_header(path, f"{subfolder}/{path.name}"):
                raw = np.fromfile(path, "<f2", stored.length // 2, offset=stored.offset).reshape(stored.shape)
                tensors.setdefault(_key(raw), stored)
    return tensors


def share_weights(model: ir.Model, path: Path) -> int:
    """Let ``model`` read the weights it has in common with the graph at ``path`` from that graph's file of weights.

    What has the same name must have the same bytes. A graph that holds its weights itself shares none: it is small.

    Returns:
        how many are shared.
    """
    other = ir.load(path)
    shared = 0
    for name, value in model.graph.initializers.items():
        theirs = other.graph.initializers.get(name)
        tensor = theirs.const_value if theirs is not None else None
        own = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or own is None or own.dtype != tensor.dtype:
            continue
        if own.tobytes() == tensor.tobytes():
            value.const_value = ir.ExternalTensor(
                tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=name,
                base_dir=path.parent,
            )  # fmt: skip
            shared += 1
    return shared


def save(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``; weights beyond what one file can hold go to ``<path>.data`` beside it.

    Weights that are read from another file, shared or linked, stay there.
    """
    own = []
    for value in model.graph.initializers.values():
        value.shape = value.type = None  # the tensor says both; here they would be written a second time
        if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor):
            own.append(value)
    size = sum(tensor.nbytes for value in own if (tensor := value.const_value) is not None)
    try:
        if size > INLINE_LIMIT:
            _move_out(own, path)
        ir.save(model, path)
    except Exception as error:  # whatever reading a weight raises, the writer wraps in kinds of its own
        raise _cause_of(error, path.parent, size) from None


def _move_out(values: Sequence[ir.Value], path: Path) -> None:
    """Put the large ones of these weights into ``<path>.data``; `ir.save` itself would copy all others there too."""
    large = [
        (value, tensor)
        for value in values
        if (tensor := value.const_value) is not None and tensor.nbytes > _MOST_INSIDE
    ]
    if not large:
        return
    tensors = [tensor for _, tensor in large]
    outside = ir.external_data.convert_tensors_to_external(tensors, path.parent, f"{path.name}.data")
    for (value, _), moved in zip(large, outside, strict=True):
        value.const_value = moved


def forget_weights(model: ir.Model) -> None:
    """Let go of the weights' sources once ``model`` is written: the exporter keeps graphs, and graphs their values."""
    for value in model.graph.initializers.values():
        value.const_value = None


def _cause_of(error: Exception, folder: Path, needed: int) -> Exception:
    """The error of a weight or of the disk that the writer's ``error`` was raised from, or the error itself.

    ``needed``: bytes that were to be written to ``folder``.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ExportError | OSError):
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.errno is None:  # numpy's words for a write that was cut short
        number = errno.ENOSPC if shutil.disk_usage(folder).free < needed else errno.EIO
        return OSError(number, os.strerror(number))
    return cause if isinstance(cause, Exception) else error


def _candidates(model: ir.Model) -> Iterator[tuple[ir.Value, np.ndarray]]:
    """The weights large enough to matter that float16 holds exactly, one at a time: they may be gigabytes."""
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < SMALLEST:
            continue
        half = exact_float16(np.ascontiguousarray(tensor.numpy()))
        if half is not None:
            yield value, half


def _halved(value: ir.Value) -> ir.LazyTensor:
    """The weight in float16, converted when it is written."""
    tensor, name = value.const_value, f"{value.name}.float16"
    assert tensor is not None

    def read() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy()).astype("<f2"), name=name)

    return ir.LazyTensor(read, ir.DataType.FLOAT16, ir.Shape(tensor.shape.numpy()), name=name)


def _replace(
    model: ir.Model, value: ir.Value, tensor: ir.TensorProtocol, *, transposed: bool = False
) -> None:
    """Put ``tensor`` (float16) in the graph and a cast of it in the place of initializer ``value``."""
    graph = model.graph
    name = value.name
    assert name is not None
    stored = ir.Value(
        name=tensor.name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=tensor,
    )
    # nodes without a name: one given by a counter would differ with the graph's history
    nodes = [ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name="")]
    if transposed:
        nodes.append(ir.node("Transpose", [nodes[0].outputs[0]], {"perm": [1, 0]}, name=""))
        nodes[0].outputs[0].name = f"{name}.stored"
    result = nodes[-1].outputs[0]
    value.replace_all_uses_with(result)
    del graph.initializers[name]
    value.const_value = None  # see `forget_weights`
    result.name = name
    graph.register_initializer(stored)
    graph.insert_before(graph[0], nodes)


def _key(half: np.ndarray) -> str:
    """What two tensors share if, and for all that matters only if, their shapes and bytes are equal."""
    return sha256(repr(half.shape).encode() + half.tobytes()).hexdigest()


def _read_header(path: Path, location: str) -> Iterator[StoredTensor]:
    """The float16 tensors that a safetensors file lists: its length in 8 bytes, a JSON, then the data."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F16":
            continue
        begin, end = entry["data_offsets"]
        yield StoredTensor(
            name=name,
            location=location,
            offset=8 + size + begin,
            length=end - begin,
            shape=tuple(entry["shape"]),
        )
