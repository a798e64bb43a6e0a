"""Where a graph goes wrong: the first layer whose output differs from torch's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from perfusion.export.graph_modules import Graph
from perfusion.export.proof.reference import answers
from perfusion.export.proof.trials import Trial, open_session, relative_error, run_session

__all__ = ["Place", "first_divergence", "landmarks", "layers_in", "shortened"]

_AT_ONCE = 48
"""Layers whose outputs are held at a time."""
_LAYERS = ("Conv", "MatMul", "Gemm", "MatMulInteger", "LayerNormalization")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A layer, by its name in the model, and how far its output is off (relative L2)."""

    module: str
    error: float


def landmarks(model: onnx.ModelProto) -> dict[str, str]:
    """The value in the graph that each layer of the torch module gives, by the layer's name, in the graph's order."""
    return {module: last for module, _, last in layers_in(model)}


def layers_in(model: onnx.ModelProto) -> Iterator[tuple[str, str, str]]:
    """Each layer of the torch module that is in the graph: its name, its first value and its last.

    Told by the names of the weights, which the exporter keeps: the node that reads ``<layer>.weight``, and the
    addition of ``<layer>.bias`` after it.
    """
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    weights = {tensor.name: _without_suffix(tensor.name) for tensor in model.graph.initializer}
    for node in model.graph.node:
        first = node.input[0] if node.input else ""
        if node.op_type in ("Cast", "Transpose") and first in weights:
            weights[node.output[0]] = weights[first]
        elif node.op_type in _LAYERS and weights.get(node.input[1], "").endswith(".weight"):
            module = weights[node.input[1]].removesuffix(".weight")
            yield module, str(node.output[0]), _end_of_layer(node, f"{module}.bias", readers, weights)


def _without_suffix(name: str) -> str:
    """A weight's name in the model from the one of what is stored of it."""
    return name.removesuffix(".float16").removesuffix(".int8")


def _end_of_layer(
    node: onnx.NodeProto,
    bias: str,
    readers: Mapping[str, Sequence[onnx.NodeProto]],
    weights: Mapping[str, str],
) -> str:
    """The last value of a layer that begins with `node`: after its scaling from int8, and after its bias."""
    if node.op_type == "MatMulInteger":
        for kind in ("Cast", "Mul"):
            (node,) = (reader for reader in readers[node.output[0]] if reader.op_type == kind)
    for reader in readers[node.output[0]]:
        if reader.op_type == "Add" and bias in (weights.get(name) for name in reader.input):
            return str(reader.output[0])
    return str(node.output[0])


def first_divergence(graph: Graph, path: Path, trial: Trial, *, tolerance: float) -> Place | None:
    """The first layer, in the order torch runs them, that differs by more than ``tolerance``; None where none does."""
    values = landmarks(onnx.load(path, load_external_data=False))
    inputs = tuple(torch.tensor(feed) for feed in trial.feeds.values())
    order = _order_of(graph, inputs, values)
    for some in _groups(order):
        expected = _outputs_of(graph, inputs, some)
        found = _values_of(graph.name, path, trial.feeds, [values[module] for module in some])
        for module, array in zip(some, found, strict=True):
            error = relative_error(array.reshape(expected[module].shape), expected[module])
            if not error <= tolerance:
                return Place(module=shortened(module), error=error)
    return None


def shortened(module: str) -> str:
    """The name as diffusers has it, without that of the wrapper's field."""
    return module.partition(".")[2] or module


def _groups(modules: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(modules), _AT_ONCE):
        yield modules[begin : begin + _AT_ONCE]


def _order_of(graph: Graph, inputs: tuple[Any, ...], modules: Mapping[str, str]) -> list[str]:
    """The modules in the order in which torch runs them."""
    order: list[str] = []
    handles = [
        graph.module.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
        for name in modules
    ]
    try:
        answers(graph, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


def _outputs_of(graph: Graph, inputs: tuple[Any, ...], modules: Sequence[str]) -> dict[str, np.ndarray]:
    """What torch's modules give."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, output: torch.Tensor) -> None:
        found[name] = output.numpy().copy()

    handles = [
        graph.module.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: keep(name, output)
        )
        for name in modules
    ]
    try:
        answers(graph, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _values_of(
    name: str, path: Path, feeds: Mapping[str, np.ndarray], values: Sequence[str]
) -> list[np.ndarray]:
    """What the named values of the graph hold in a run: a copy of the graph, beside it, has them as outputs."""
    model = onnx.load(path, load_external_data=False)
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=value) for value in dict.fromkeys(values) if value not in outputs
    )
    copy = path.with_name(f"{path.name}.looked-into")
    try:
        onnx.save(model, copy)
        return run_session(name, open_session(name, copy), feeds, values)
    finally:
        copy.unlink(missing_ok=True)
