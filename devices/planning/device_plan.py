"""All that is decided for a bundle on a device before anything is built or opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perfusion.devices.planning.float32_parts import kept_places
from perfusion.devices.planning.latency import Latency, estimate_latency
from perfusion.devices.planning.memory_plan import (
    MemoryPlan,
    graph_files,
    plan_memory,
    workload_of,
)
from perfusion.devices.profiles import DeviceProfile
from perfusion.embedded import embedded_fingerprint
from perfusion.shell import quoted

if TYPE_CHECKING:
    from perfusion.bundle.call_size import CallSize
    from perfusion.bundle.description import Bundle
    from perfusion.tensorrt.build import ShapeRange

__all__ = ["DevicePlan", "engine_for", "fitting_batches", "plan_device"]


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """What runs a bundle on a device, in what sizes, and what that takes."""

    profile: DeviceProfile
    engine: str  # "onnx", "trt" or "trt-rtx"
    precision: str  # to export in, where it is not the bundle's own
    exported: bool  # whether the bundle is in that precision
    embedded: bool  # whether it is the embedded model's
    workspace: int | None  # bytes an engine's builder may use; None where no engine is built
    shapes: Mapping[str, tuple[ShapeRange, ...]]  # an engine's shape ranges by graph; empty without engines
    resolution: int | None  # width and height to build engines for; None: the bundle's own
    memory: MemoryPlan
    tokens: (
        tuple[int, ...] | None
    )  # of one reading, to build engines for; None: those of a prompt of one part
    latency: Latency | None  # None where the device's speed is not known
    built_here: bool = False  # whether the machine that asks is such a device

    def export_command(self, folder: object) -> str | None:
        """What builds it, or the nearest that fits; None where nothing is to be built. `folder` is the bundle's."""
        memory, near, side = self.memory, self.memory.nearest, self.resolution
        if self.engine == "onnx" or (near is None and not memory.fits):
            return None
        batch = memory.size.batch if near is None else near.batch
        if near is not None and (near.width, near.height) != (memory.size.width, memory.size.height):
            side = max(near.width, near.height)
        source = f"--bundle {quoted(folder)}"
        if not self.exported:
            model = "" if self.embedded else "--model MODEL "
            source = f"{model}--output BUNDLE --precision {self.precision}"
        size = f" --resolution {side}" if side is not None else ""
        counts = _engine_readings(memory.size)
        readings = f" --readings {','.join(map(str, counts))}" if counts != (1, 2) else ""
        if self.tokens is not None:
            readings += f" --tokens {','.join(map(str, self.tokens))}"
        script = " --script" if self.engine == "trt" and not self.built_here else ""
        return (
            f"perfusion-export {source} --engine {self.engine} --device {self.profile.name}{size} "
            f"--batch {batch} --concepts {memory.size.concepts}{readings}{script}"
        )


def plan_device(
    bundle: Bundle, profile: DeviceProfile, size: CallSize | None = None, *, here: bool = False
) -> DevicePlan:
    """Plan a bundle on a device.

    Args:
        bundle: as `perfusion.bundle.reader.read_bundle` gives it.
        profile: the device, which does nothing else.
        size: what is drawn; None is one picture of the bundle's own size. Pictures of another size are squares.
        here: whether this machine is the device.

    Raises:
        RequestError: sizes that no picture of this bundle has, or no engine.
        BundleError: a graph that cannot be read or followed.
    """
    usual = bundle.usual_call
    size = size or usual
    own_size = (size.width, size.height) == (usual.width, usual.height)
    resolution = None if own_size else max(size.width, size.height)
    engine = engine_for(bundle, profile)
    precision = profile.precision if bundle.precision == "fp32" else bundle.precision
    memory = plan_memory(bundle, size, budget=profile, precision=precision)
    latency = estimate_latency(
        graph_files(bundle, image=size.image),
        workload_of(bundle, size, precision),
        profile,
        steps=bundle.defaults.num_inference_steps,
        tile=memory.tile,
    )
    return DevicePlan(
        profile=profile,
        engine=engine,
        precision=precision,
        exported=precision == bundle.precision,
        embedded=bundle.base_fingerprint == embedded_fingerprint(),
        workspace=None if engine == "onnx" else profile.workspace,
        shapes={} if engine == "onnx" else _shapes(bundle, resolution, memory),
        resolution=resolution,
        memory=memory,
        tokens=_engine_tokens(bundle, size),
        latency=latency,
        built_here=here,
    )


def engine_for(bundle: Bundle, profile: DeviceProfile) -> str:
    """What runs a bundle best on a device: "onnx", "trt" or "trt-rtx"."""
    if bundle.precision == "int8":  # TensorRT has no operators of ours for it
        return "onnx"
    kept = kept_places(bundle.base) & {"unet.attention", "vae_decoder"}
    if profile.engine == "trt-rtx" and profile.compute_capability == (7, 5) and kept:
        return "onnx"  # TensorRT for RTX has no matrix products in float32 there
    return profile.engine


def fitting_batches(
    bundle: Bundle, profile: DeviceProfile, size: CallSize, batches: Sequence[int]
) -> tuple[list[int], MemoryPlan]:
    """The batches that a device has the memory for, and the plan of the largest; graphs are taken as they are.

    Where it has none for any, they are the smallest, whose plan says what would fit.
    """
    for count in sorted(batches, reverse=True):
        plan = plan_memory(bundle, replace(size, batch=count), budget=profile)
        if plan.fits:
            break
    return [batch for batch in batches if batch <= count], plan


def _shapes(bundle: Bundle, resolution: int | None, memory: MemoryPlan) -> dict[str, tuple[ShapeRange, ...]]:
    """The shape ranges of every graph of the bundle, since the export builds them all."""
    from perfusion.bundle.facts import graph_facts
    from perfusion.tensorrt.shape_ranges import ShapeOptions, shape_ranges_of

    size = memory.size
    options = ShapeOptions(
        batches=(size.batch,),
        concepts=size.concepts,
        resolution=resolution,
        readings=_engine_readings(size),
        tokens=_engine_tokens(bundle, size),
        tile=memory.tile,
    )
    return {name: shape_ranges_of(name, bundle, options) for name in graph_facts(bundle)}


def _engine_readings(size: CallSize) -> tuple[int, ...]:
    """For how many readings engines are built: for the usual one and two, and for all up to what is planned."""
    return tuple(range(1, max(2, size.readings) + 1))


def _engine_tokens(bundle: Bundle, size: CallSize) -> tuple[int, ...] | None:
    """For how many tokens of one reading: for all parts up to what is planned."""
    part, tokens = bundle.text_encoder.context_length, size.tokens // size.readings
    return tuple(range(part, tokens + 1, part)) if tokens > part else None
