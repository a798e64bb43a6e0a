"""One torch module to one ONNX model: named, with named dimensions, and the same bytes each time."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from perfusion.errors import ExportError
from perfusion.export.graph_modules import Graph
from perfusion.export.weights import set_weights

__all__ = ["OPSET", "OPSETS", "check_opset", "example_inputs", "to_onnx"]

OPSET = 20
"""The oldest that has every operator used here; TensorRT reads it from 10.0 on."""
OPSETS = {20: "TensorRT 10.0 and ONNX Runtime 1.17", 23: "TensorRT 10.14 and ONNX Runtime 1.23"}
"""Those a bundle may have, and the oldest engines that read them. From 23 on attention is one operator."""


def check_opset(opset: int) -> None:
    """Raise `ExportError` for one that no bundle has."""
    if opset not in OPSETS:
        known = " or ".join(f"{number} (from {engines} on)" for number, engines in OPSETS.items())
        raise ExportError(
            f"opset {opset} is not offered, expected {known}: below 20 operators of these models are missing, and the "
            "others bring nothing that engines read"
        )


def to_onnx(graph: Graph, *, opset: int = OPSET) -> ir.Model:
    """Convert ``graph``, with every named dimension free. Raises `ExportError` where torch cannot.

    The module is traced without its weights. Those of the result are read from the module when they are asked for, one
    at a time: keep the module until the result is written.
    """
    try:
        with _quiet_exporter(), torch.no_grad(), graph.around():
            model, weights = _trace(graph, opset)
    except MemoryError:
        raise
    except Exception as error:  # the exporter raises kinds of its own, each with pages of text
        raise ExportError(f"{graph.name}: torch.onnx could not convert it: {_root_of(error)}") from error
    set_weights(model, weights, graph.weight_dtype)
    _strip(model)
    _name_dimensions(model, graph)
    return model


def _trace(graph: Graph, opset: int) -> tuple[ir.Model, dict[str, Tensor]]:
    """The converted graph, with initializers that have no value where the module has a weight, and the weights."""
    mode = FakeTensorMode()
    with _weightless(graph.module.eval(), graph.weight_dtype, mode) as weights:
        program = torch.onnx.export(
            graph.module,
            tuple(mode.from_tensor(tensor) for tensor in example_inputs(graph, graph.example)),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=_free_dimensions(graph),
            input_names=[end.name for end in graph.inputs],
            output_names=[end.name for end in graph.outputs],
            verbose=False,
            optimize=False,  # it would read the weights
        )
    assert program is not None
    model = program.model
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = None
    optimize_ir(model)
    return model, weights


@contextmanager
def _weightless(
    module: nn.Module, dtype_of: Callable[[str], torch.dtype], mode: FakeTensorMode
) -> Iterator[dict[str, Tensor]]:
    """Replace the weights with tensors that have a shape and a type and no memory; gives the real ones by name."""
    weights: dict[str, Tensor] = {}
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    for prefix, owner in module.named_modules():
        for tensors in (owner._parameters, owner._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    weights[f"{prefix}.{key}" if prefix else key] = tensor
                    places.append((tensors, key, tensor))
    names = list(weights)
    try:
        for name, (tensors, key, tensor) in zip(names, places, strict=True):
            with mode:
                fake = torch.empty(
                    tensor.shape, dtype=dtype_of(name) if tensor.is_floating_point() else tensor.dtype
                )
            is_parameter = isinstance(tensor, nn.Parameter)
            tensors[key] = nn.Parameter(fake, requires_grad=False) if is_parameter else fake
        yield weights
    finally:
        for tensors, key, tensor in places:
            tensors[key] = tensor


def _free_dimensions(graph: Graph) -> tuple[Any, ...]:
    """For torch.export: the dimensions that have names are free. Inputs of a ``*rest`` are a tuple of their own."""
    free = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(end.dims) if isinstance(dim, str)}
        for end in graph.inputs
    )
    kinds = [parameter.kind for parameter in inspect.signature(graph.module.forward).parameters.values()]
    named = kinds.index(rest) if (rest := inspect.Parameter.VAR_POSITIONAL) in kinds else len(kinds)
    return (*free[:named], free[named:]) if free[named:] else free


def example_inputs(graph: Graph, sizes: dict[str, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Normal noise for every input, or zeros for whole numbers (a token id that every vocabulary has)."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.zeros(end.shape(sizes), dtype=end.dtype)
        if end.dtype == torch.int64
        else torch.randn(end.shape(sizes), generator=generator).to(end.dtype)
        for end in graph.inputs
    )


def _strip(model: ir.Model) -> None:
    """Remove what only debugging reads: most of a small graph's bytes, with paths of this machine.

    Without it two exports are byte-identical. The inner values' shapes go too: their dimensions carry the
    exporter's own symbols, and every runtime infers them again.
    """
    if model.functions or any(domain for domain in model.opset_imports):
        raise ExportError(f"{model.graph.name}: the exporter left operators that are not ONNX's own")
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = "main"
    model.doc_string = model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None
                value.type = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None


def _root_of(error: BaseException) -> str:
    """The first line of what began a chain of errors; the last one says no more than in which step it was met."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _name_dimensions(model: ir.Model, graph: Graph) -> None:
    """Write the contract's names in the place of the exporter's symbols; the fixed dimensions must agree."""
    values = (*model.graph.inputs, *model.graph.outputs)
    for value, end in zip(values, (*graph.inputs, *graph.outputs), strict=True):
        dims = tuple(value.shape or ())
        if value.name != end.name or not _agree(dims, end.dims):
            raise ExportError(
                f"{graph.name}: the exporter made {value.name} {_listed(dims)}, "
                f"expected {end.name} {_listed(end.dims)}"
            )
        value.shape = ir.Shape(end.dims)


def _agree(dims: tuple[object, ...], expected: tuple[str | int, ...]) -> bool:
    """Whether the same dimensions are fixed, at the same numbers."""
    fixed = [dim if isinstance(dim, int) else None for dim in dims]
    return fixed == [dim if isinstance(dim, int) else None for dim in expected]


def _listed(dims: tuple[object, ...]) -> str:
    return "(" + ", ".join(str(dim) for dim in dims) + ")"


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about itself: packages it could use, deprecations within torch, and weights
    that are not there while it works."""
    levels = {
        logging.getLogger("torch.onnx._internal.exporter._registration"): logging.ERROR,
        logging.getLogger("onnx_ir.passes.common.initializer_deduplication"): logging.ERROR,
    }
    before = {logger: logger.level for logger in levels}
    for logger, level in levels.items():
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning
            )
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
