"""The engines of a whole bundle: building those that are not there yet."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perfusion import __version__
from perfusion.errors import BundleError, DeviceError, PerfusionError
from perfusion.files import sha256_of, writing
from perfusion.tensorrt.build import BuildOptions, Built, Phase, ShapeRange, build_engine
from perfusion.tensorrt.build_cores import few_cores
from perfusion.tensorrt.driver import query_driver
from perfusion.tensorrt.engine_store import Engine, building, engine_folder, find_engine, store_engine
from perfusion.tensorrt.keys import EngineKey, folder_name, platform_of

__all__ = [
    "EngineJob",
    "EngineOutcome",
    "EngineSettings",
    "build_engines",
    "check_gpu",
    "room_for",
    "this_gpu",
]

Progress = Callable[[str, str, int, int], None]
"""Told the graph being built, the builder's phase, and how many of how many of its steps are done."""

_log = logging.getLogger(__name__)

_CODE_BYTES = 16 << 20  # of kernels in an engine: a UNet of 130 KB gives an engine of 10 MB


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """One graph to build an engine from."""

    graph: str
    file: str  # relative to the bundle
    sha256: str
    needs: Mapping[str, str]  # every file it may read, with its checksum
    shape_ranges: tuple[ShapeRange, ...]

    def to_json(self) -> dict[str, Any]:
        """The job as JSON's own types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EngineJob:
        """The job that `to_json` gave."""
        shape_ranges = tuple(
            {name: tuple(sizes) for name, sizes in one.items()} for one in values["shape_ranges"]
        )
        return cls(**{**values, "shape_ranges": shape_ranges})


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What all engines of a bundle have in common."""

    flavour: str
    target: str  # "sm87", "sm86+sm89", "portable"
    precision: str
    options: BuildOptions
    cores: int | None = None  # of the processor that a build may use, which changes no engine; None: all


@dataclass(frozen=True, kw_only=True)
class EngineOutcome:
    """One engine, and whether it was built now; `reasons` say why what was there would not do."""

    engine: Engine
    built: bool
    seconds: float
    reasons: tuple[str, ...]


def build_engines(
    trt: Any,
    bundle: Path | str,
    jobs: Sequence[EngineJob],
    settings: EngineSettings,
    *,
    progress: Progress | None = None,
) -> list[EngineOutcome]:
    """Build the engines that are not there yet.

    Raises:
        BundleError: a file of the bundle is not the one the jobs were planned for.
        DeviceError: the full TensorRT, and this machine has no GPU, or another one.
        ExportError: a graph cannot be built.
        PerfusionError: the bundle cannot be written to.
    """
    driver = check_gpu(settings.target) if settings.flavour == "trt" else None
    _check_files(Path(bundle), jobs)
    outcomes = []
    for job in jobs:
        key = EngineKey(
            graph=job.graph,
            graph_sha256=job.sha256,
            flavour=settings.flavour,
            version=str(trt.__version__),
            platform=platform_of(settings.flavour),
            target=settings.target,
            driver=driver,
            precision=settings.precision,
            shape_ranges=job.shape_ranges,
            options=asdict(settings.options),
        )
        outcomes.append(_build_one(trt, Path(bundle), job, key, settings, progress))
    return outcomes


def this_gpu(advice: str = "") -> str:
    """The target of this machine's GPU. Raises `DeviceError` where there is none that can be used."""
    driver = query_driver()
    if driver is None:
        raise DeviceError(
            "This machine has no NVIDIA GPU that its driver can use, and TensorRT builds an engine only on the kind of "
            f"GPU that will run it.{advice}"
        )
    return driver.target


def check_gpu(target: str, advice: str = "") -> int:
    """The major version of the driver's CUDA, on a machine whose GPU is the target.

    Raises:
        DeviceError: there is no GPU here, or another one.
    """
    here = this_gpu(advice)
    if here != target:
        raise DeviceError(
            f"This machine's GPU is {here} and the engines are to be for {target}. TensorRT builds an engine only on "
            f"the kind of GPU that will run it.{advice}"
        )
    driver = query_driver()
    assert driver is not None  # this_gpu has asked
    return driver.cuda[0]


def _check_files(bundle: Path, jobs: Sequence[EngineJob]) -> None:
    """Engines are keyed on checksums that bundle.json gives: hold each file against them once."""
    for name, checksum in sorted({item for job in jobs for item in job.needs.items()}):
        try:
            found = sha256_of(bundle / name)
        except PerfusionError as error:
            raise BundleError(f"{error} Take an undamaged copy of the bundle, or export it again.") from error
        if found != checksum:
            raise BundleError(
                f"{bundle / name} does not have the checksum that bundle.json gives. "
                "Take an undamaged copy of the bundle, or export it again."
            )


def _build_one(
    trt: Any,
    bundle: Path,
    job: EngineJob,
    key: EngineKey,
    settings: EngineSettings,
    progress: Progress | None,
) -> EngineOutcome:
    """The engine of one job: the one that is there, or a new one."""

    def tell(phase: str, done: int, total: int) -> None:
        if progress is not None:
            progress(job.graph, phase, done, total)

    tell("looking for an engine", 0, 1)
    engine = find_engine(bundle, job.graph, key).engine  # found also where the bundle cannot be written to
    if engine is None:
        with building(bundle, key, waiting=lambda: tell("waiting for another process that builds it", 0, 1)):
            search = find_engine(bundle, job.graph, key)
            if search.engine is None:
                return _build_new(trt, bundle, job, key, settings, tell, search.reasons)
            engine = search.engine
    return EngineOutcome(engine=engine, built=False, seconds=0.0, reasons=())


def _build_new(
    trt: Any,
    bundle: Path,
    job: EngineJob,
    key: EngineKey,
    settings: EngineSettings,
    progress: Phase,
    reasons: Sequence[str],
) -> EngineOutcome:
    """Build an engine and store it; `reasons` say why those that are there would not do."""
    place = f"{folder_name(key.flavour, key.target)}/"  # in other folders are other GPUs'
    reasons = tuple(reason for reason in reasons if reason.startswith(place))
    for reason in reasons:
        _log.info("not used: %s", reason)
    _check_room(bundle, job)
    began = time.monotonic()
    with few_cores(settings.cores):
        built = build_engine(
            trt,
            bundle / job.file,
            shape_ranges=job.shape_ranges,
            options=settings.options,
            targets=settings.target.split("+") if settings.flavour == "trt-rtx" else None,
            timing=_timing(bundle, key),
            progress=progress,
        )
    seconds = time.monotonic() - began
    _check_files(bundle, [job])  # again: the bundle may have been exported anew meanwhile
    facts = {"perfusion-edge": __version__, "seconds": round(seconds, 1)}
    engine = store_engine(bundle, key, built, facts)
    _keep_timing(bundle, key, built)
    return EngineOutcome(engine=engine, built=True, seconds=seconds, reasons=reasons)


def room_for(bundle: Path, job: EngineJob) -> int:
    """Bytes that an engine may take on the disk.

    It has the weights in the precision they are computed in, and more for each shape range: about twice the graph's
    files where they are stored in half the bytes. And it has the code of its kernels.
    """
    return _CODE_BYTES + 2 * sum((bundle / name).stat().st_size for name in job.needs)


def _check_room(bundle: Path, job: EngineJob) -> None:
    """Refuse before the minutes of a build what the disk could not hold."""
    wanted = room_for(bundle, job)
    free = shutil.disk_usage(bundle).free
    if free < wanted:
        raise PerfusionError(
            f"{bundle}: the engine of {job.graph} may take {wanted / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. "
            "Free some space, or copy the bundle to a larger disk."
        )


def _timing_file(bundle: Path, key: EngineKey) -> Path:
    """What TensorRT timed on this kind of GPU with this version, for the next build."""
    return engine_folder(bundle, key.flavour, key.target) / f"timing-{key.version}.cache"


def _timing(bundle: Path, key: EngineKey) -> bytes | None:
    try:
        return _timing_file(bundle, key).read_bytes()
    except OSError:
        return None


def _keep_timing(bundle: Path, key: EngineKey, built: Built) -> None:
    if built.timing is not None:
        with writing(_timing_file(bundle, key)) as file:
            file.write(built.timing)
