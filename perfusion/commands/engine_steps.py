"""The engine side of perfusion-export: for which GPU, in what sizes, with which TensorRT."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.commands import Progress
from perfusion.errors import DeviceError, ExportError, RequestError

if TYPE_CHECKING:
    from perfusion.bundle.call_size import CallSize
    from perfusion.bundle.description import Bundle
    from perfusion.devices import DeviceProfile
    from perfusion.tensorrt.engines import EngineJob, EngineOutcome, EngineSettings
    from perfusion.tensorrt.shape_ranges import ShapeOptions

__all__ = [
    "build", "check_memory", "check_request", "choose_target", "device_profile", "find_tensorrt", "prepare", "prune",
]  # fmt: skip

_log = logging.getLogger(__name__)

_CARRY = " Add --script to get a build script to carry to the device."


def device_profile(args: argparse.Namespace) -> DeviceProfile | None:
    """The device profile asked for, which has the engine and the precision asked for."""
    if args.device is None:
        return None
    from perfusion.devices import find_profile

    profile = find_profile(args.device)
    if args.engine not in profile.engines:
        raise DeviceError(
            f"{profile.title} does not run the engine {args.engine!r}, expected {' or '.join(profile.engines)}."
        )
    if args.precision is not None and args.precision not in profile.precisions:
        raise DeviceError(f"{profile.title} has no {args.precision}; it has {', '.join(profile.precisions)}.")
    return profile


def choose_target(args: argparse.Namespace, profile: DeviceProfile | None) -> str:
    """The GPU to build for, as engines' keys spell it."""
    from perfusion.tensorrt import engines, targets

    own = None
    if profile is not None and profile.compute_capability is not None:
        own = targets.target_of(profile.compute_capability)
    if args.target is not None:
        target = targets.check_target(args.engine, args.target)
        if own is not None and own not in target.split("+") and target != "portable":
            raise DeviceError(
                f"--target {target} is not {args.device}'s, which is {own}. Leave one of them out."
            )
        return target
    if own is not None:
        return targets.check_target(args.engine, own)
    if args.engine == "trt-rtx":
        return "portable"
    if args.script:
        raise DeviceError("The script is for one kind of GPU: name it with --device or --target.")
    return engines.this_gpu(" Name the device and add --script to get a build script to carry there.")


def find_tensorrt(engine: Any, target: str) -> Any:
    """The TensorRT that builds here for the target."""
    from perfusion.tensorrt import engines
    from perfusion.tensorrt.flavour import import_tensorrt

    trt = import_tensorrt(engine, advice=f"{_CARRY} Or use the engine 'trt-rtx', which builds without a GPU.")
    if engine == "trt":
        engines.check_gpu(target, _CARRY)
    return trt


def check_request(args: argparse.Namespace, target: str, precision: str) -> None:
    """Refuse before the minutes of an export what needs no bundle to be refused."""
    from perfusion.tensorrt.shape_ranges import check_counts
    from perfusion.tensorrt.targets import check_precision

    check_precision(args.engine, target, precision)
    if precision == "int8":
        raise ExportError(
            "An int8 bundle is made of operators for a CPU, which TensorRT does not have. Use --precision fp16."
        )
    check_counts(_shapes(args))
    if args.build_cores is not None and args.build_cores < 1:
        raise RequestError(
            f"The cores for a build are {args.build_cores}, expected a whole number from 1 on."
        )
    _workspace(args, None)


def _shapes(args: argparse.Namespace) -> ShapeOptions:
    from perfusion.tensorrt.shape_ranges import ShapeOptions

    sizes: dict[str, Any] = {
        "batches": args.batch,
        "readings": args.readings,
        "tokens": args.tokens,
        "concepts": args.concepts,
        "resolution": args.resolution,
    }
    return ShapeOptions(
        dynamic=args.dynamic, **{name: value for name, value in sizes.items() if value is not None}
    )


def _workspace(args: argparse.Namespace, profile: DeviceProfile | None) -> int | None:
    """Bytes of scratch memory an engine may take."""
    gigabytes: float | None = args.workspace
    if gigabytes is None:
        return profile.workspace if profile is not None else None
    if not 0.01 <= gigabytes <= 1024:  # a NaN is in no range
        raise RequestError(f"The workspace is {gigabytes} GB, expected 0.01 to 1024.")
    return round(gigabytes * 1e9)


def prepare(
    args: argparse.Namespace, folder: Path, target: str, profile: DeviceProfile | None
) -> tuple[tuple[EngineJob, ...], EngineSettings]:
    """What is to be built for a bundle that is there."""
    from perfusion.bundle.reader import read_bundle
    from perfusion.tensorrt import targets
    from perfusion.tensorrt.build import BuildOptions
    from perfusion.tensorrt.engines import EngineSettings
    from perfusion.tensorrt.jobs import engine_jobs

    bundle = read_bundle(folder, verify=False)  # the files that are built from are verified there
    if args.precision not in (None, bundle.precision):
        raise RequestError(
            f"{folder} is in {bundle.precision}, and {args.precision} was asked for. Leave --precision out, or export "
            "the model again."
        )
    targets.check_precision(args.engine, target, bundle.precision)
    if (
        bundle.precision == "fp32"
        and args.precision is None
        and (profile is None or profile.precision == "fp16")
    ):
        _log.warning(
            "%s is in fp32, so its engines are too: twice the memory and half the speed. Export the model again "
            "with --precision fp16, or say --precision fp32", folder,
        )  # fmt: skip
    level = args.optimization_level
    if level is None and profile is not None:
        level = profile.optimization_level
    options = BuildOptions(workspace=_workspace(args, profile), optimization_level=level)
    cores = args.build_cores or (profile.build_cores if profile is not None else None)
    shapes = _shapes(args)
    engine_jobs(bundle, shapes)  # refuses sizes before the graphs are read for the plan
    if profile is not None:
        shapes = _planned(bundle, shapes, profile, batches_given=args.batch is not None)
    return engine_jobs(bundle, shapes), EngineSettings(
        flavour=args.engine, target=target, precision=bundle.precision, options=options, cores=cores
    )


def check_memory(args: argparse.Namespace, folder: Path, profile: DeviceProfile) -> None:
    """Say where a device has too little memory for a bundle's pictures, drawn by onnxruntime."""
    from perfusion.bundle.reader import read_bundle
    from perfusion.devices.planning.device_plan import fitting_batches

    bundle = read_bundle(folder, verify=False)
    memory = fitting_batches(bundle, profile, _call_size(bundle, args.resolution), (1,))[1]
    if not memory.fits:
        _log.warning("%s: %s", profile.title, memory.explain())


def _call_size(bundle: Bundle, resolution: int | None, concepts: int = 4) -> CallSize:
    """The call for one picture, a square of a resolution where there is one."""
    size = replace(bundle.usual_call, concepts=concepts)
    return size if resolution is None else replace(size, width=resolution, height=resolution)


def _planned(
    bundle: Bundle, shapes: ShapeOptions, profile: DeviceProfile, *, batches_given: bool
) -> ShapeOptions:
    """The sizes with the device's tiles, and without usual batches that it has no memory for.

    The plan is an estimate, so what was asked for is built with a warning where it does not fit.
    """
    from perfusion.devices.planning.device_plan import fitting_batches

    size = _call_size(bundle, shapes.resolution, shapes.concepts)
    size = replace(size, tokens=max((size.tokens, *(shapes.tokens or ()))))
    batches, memory = fitting_batches(bundle, profile, size, shapes.batches)
    if not memory.fits:
        _log.warning("%s: %s", profile.title, memory.explain())
    elif batches_given and max(shapes.batches) > max(batches):
        _log.warning(
            "%s has memory for batches of %d, not of %d: the engine may not load there.",
            profile.title, max(batches), max(shapes.batches),
        )  # fmt: skip
    return replace(shapes, batches=shapes.batches if batches_given else tuple(batches), tile=memory.tile)


def build(
    args: argparse.Namespace, trt: Any, folder: Path, jobs: Sequence[EngineJob], settings: EngineSettings
) -> list[EngineOutcome]:
    """Build the engines that are not there yet, with their progress on stderr; raises as `build_engines`."""
    from perfusion.tensorrt.engines import build_engines

    order = [job.graph for job in jobs]
    with Progress(len(order), f"engines for {settings.target}", quiet=args.quiet) as progress:

        def show(graph: str, phase: str, done: int, total: int) -> None:
            progress.update(
                order.index(graph), stage=graph.replace("_", " "), doing=f"{phase} {done}/{total}"
            )

        outcomes = build_engines(trt, folder, jobs, settings, progress=show)
        progress.update(len(order), stage="done")
    return outcomes


def prune(folder: Path, outcomes: Sequence[EngineOutcome]) -> list[Path]:
    """Remove what no longer fits: engines of graphs that have changed, and of other releases of this TensorRT."""
    from perfusion.tensorrt.engine_store import Engine, prune_engines

    now = {outcome.engine.key.graph: outcome.engine.key for outcome in outcomes}

    def keep(engine: Engine) -> bool:
        key = now.get(engine.key.graph)
        if key is None or engine.key.graph_sha256 != key.graph_sha256:
            return False
        return engine.key.flavour != key.flavour or engine.key.version == key.version

    return prune_engines(folder, keep)
