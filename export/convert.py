"""One torch module to one ONNX model: named, with named dimensions, and the same bytes each time."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import Tensor

from perfusion.errors import ExportError
from perfusion.export.graphs import Graph

__all__ = ["OPSET", "example_inputs", "to_onnx"]

OPSET = 20
"""The oldest that has every operator used here; TensorRT reads it from 10.0 on."""


def to_onnx(graph: Graph) -> ir.Model:
    """Convert ``graph``, with every named dimension free. Raises `ExportError` where torch cannot."""
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(end.dims) if isinstance(dim, str)}
        for end in graph.inputs
    )
    try:
        with _quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                graph.module.eval(),
                example_inputs(graph, graph.example),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                input_names=[end.name for end in graph.inputs],
                output_names=[end.name for end in graph.outputs],
                verbose=False,
            )
    except MemoryError:
        raise
    except Exception as error:  # the exporter raises kinds of its own, each with pages of text
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{graph.name}: torch.onnx could not convert it: {reason[0]}") from error
    assert program is not None
    model = program.model
    _strip(model)
    _name_dimensions(model, graph)
    return model


def example_inputs(graph: Graph, sizes: dict[str, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Normal noise for every input, or zeros for whole numbers (a token id that every vocabulary has)."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.zeros(end.shape(sizes), dtype=end.dtype)
        if end.dtype == torch.int64
        else torch.randn(end.shape(sizes), generator=generator)
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


def _name_dimensions(model: ir.Model, graph: Graph) -> None:
    """Write the contract's names in the place of the exporter's symbols; the fixed dimensions must agree."""
    values = (*model.graph.inputs, *model.graph.outputs)
    for value, end in zip(values, (*graph.inputs, *graph.outputs), strict=True):
        found = tuple(value.shape or ())
        if value.name != end.name or not _agree(found, end.dims):
            raise ExportError(
                f"{graph.name}: the exporter made {value.name} {_listed(found)}, "
                f"expected {end.name} {_listed(end.dims)}"
            )
        value.shape = ir.Shape(end.dims)


def _agree(found: tuple[object, ...], expected: tuple[str | int, ...]) -> bool:
    """Whether the same dimensions are fixed, at the same numbers."""
    fixed = [dim if isinstance(dim, int) else None for dim in found]
    return fixed == [dim if isinstance(dim, int) else None for dim in expected]


def _listed(dims: tuple[object, ...]) -> str:
    return "(" + ", ".join(str(dim) for dim in dims) + ")"


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about itself: packages it could use, and deprecations within torch."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning
            )
            yield
    finally:
        logger.setLevel(level)
