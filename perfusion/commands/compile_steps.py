"""The OpenVINO side of perfusion-export: compiling ahead for this machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.commands import Progress
from perfusion.errors import RequestError

if TYPE_CHECKING:
    from perfusion.runtime.compute.openvino_ahead import CompiledGraph
    from perfusion.tensorrt.shape_ranges import ShapeOptions

__all__ = ["as_dicts", "as_lines", "check", "compile_graphs"]


def check(args: argparse.Namespace) -> None:
    """Refuse before the minutes of an export what needs no bundle to be refused.

    Raises:
        RequestError: numbers that nothing is compiled for.
        DeviceError: OpenVINO or its device is missing, or does not compute in the precision.
    """
    from perfusion.runtime.compute.openvino_device import OpenVINODevice
    from perfusion.tensorrt.shape_ranges import check_counts

    check_counts(_shapes(args))
    OpenVINODevice(_device(args), args.threads, args.compute or "fp32")


def compile_graphs(args: argparse.Namespace, folder: Path) -> list[CompiledGraph]:
    """Compile what is not compiled yet, with progress on stderr; raises as `compile_ahead`."""
    from perfusion.bundle.reader import read_bundle
    from perfusion.runtime.compute.openvino_ahead import compile_ahead
    from perfusion.runtime.compute.openvino_backend import OpenVINOBackend

    bundle = read_bundle(folder)
    if args.bundle is not None and args.precision not in (None, bundle.precision):
        raise RequestError(
            f"{folder} is in {bundle.precision}, and {args.precision} was asked for. Leave --precision out, or export "
            "the model again; --compute says what OpenVINO computes in."
        )
    backend = OpenVINOBackend(bundle, _device(args), args.threads, args.compute or "fp32")
    with Progress(1, f"compiling for {backend.provider}", quiet=args.quiet) as progress:

        def show(graph: str, done: int, total: int) -> None:
            progress.total = total
            progress.update(done, stage=graph.replace("_", " "))

        graphs = compile_ahead(bundle, backend, _shapes(args), progress=show)
        progress.update(progress.total, stage="done")
    return graphs


def as_lines(graphs: Sequence[CompiledGraph]) -> list[str]:
    """A line for each graph that was compiled, and where it lies."""
    from perfusion.runtime.compute.compiled_models import CompiledModels

    lines = []
    for graph in graphs:
        sizes = ", ".join(f"{name} {size}" for name, size in graph.sizes.items())
        how = f"compiled in {graph.seconds:.1f} s" if graph.compiled else "was compiled before"
        where = f"kept in {CompiledModels().folder}" if graph.stored else "too large to be kept"
        far = "" if graph.distance is None else f"; {graph.distance:.1e} from float32"
        lines.append(f"{graph.graph}: {how} for {sizes}; {where}{far}")
    return lines


def as_dicts(graphs: Iterable[CompiledGraph]) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [{**asdict(graph), "seconds": round(graph.seconds, 1)} for graph in graphs]


def _device(args: argparse.Namespace) -> str:
    return str(args.engine).partition(":")[2] or "CPU"


def _shapes(args: argparse.Namespace) -> ShapeOptions:
    """One picture of the bundle's own size, read once, unless more was asked for."""
    from perfusion.tensorrt.shape_ranges import ShapeOptions

    return ShapeOptions(
        batches=args.batch or (1,), readings=args.readings or (1,), tokens=args.tokens,
        concepts=args.concepts or 1, resolution=args.resolution,
    )  # fmt: skip
