"""Which engines there are to build for a bundle. Decided where the bundle is read; a device is only told the jobs."""

from __future__ import annotations

from perfusion.bundle.description import Bundle
from perfusion.bundle.facts import graph_facts
from perfusion.errors import ExportError
from perfusion.tensorrt.engines import EngineJob
from perfusion.tensorrt.shape_ranges import ShapeOptions, shape_ranges_of

__all__ = ["engine_jobs"]


def engine_jobs(bundle: Bundle, shapes: ShapeOptions) -> tuple[EngineJob, ...]:
    """The jobs of a bundle, in the order in which a picture needs the graphs.

    Raises:
        RequestError: sizes the bundle cannot take.
        ExportError: graphs TensorRT cannot read.
    """
    if bundle.precision not in ("fp32", "fp16"):
        raise ExportError(
            f"The bundle is in {bundle.precision}, whose operators are ONNX Runtime's for a CPU and not TensorRT's. "
            "Export it with --precision fp16 or fp32."
        )
    return tuple(
        EngineJob(
            graph=name,
            file=graph.file,
            sha256=graph.sha256,
            needs=dict(graph.needs),
            shape_ranges=shape_ranges_of(name, bundle, shapes),
        )
        for name, graph in graph_facts(bundle).items()
    )
