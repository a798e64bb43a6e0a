"""What stands in the way of drawing with one bundle on one machine: its files, its size, its engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.devices.detection import Detected
from perfusion.devices.environment import Environment
from perfusion.devices.finding import Finding
from perfusion.devices.profiles import DeviceProfile
from perfusion.devices.system import AUTO_SHARE
from perfusion.errors import BundleError, RequestError
from perfusion.shell import quoted

if TYPE_CHECKING:
    from perfusion.bundle.call_size import CallSize
    from perfusion.bundle.description import Bundle
    from perfusion.tensorrt.engine_store import EngineSearch

__all__ = ["examine_bundle"]

_GIB = 1 << 30


def examine_bundle(folder: Path, machine: Detected, python: Environment) -> Iterator[Finding]:
    """Findings about a bundle: whether it is whole, fits into what is free now, and has engines for this machine.

    Args:
        folder: the bundle's.
        found: the machine.
        python: the Python that would draw; engines belong to one release of TensorRT.
    """
    from perfusion.bundle.reader import read_bundle
    from perfusion.devices.planning.device_plan import engine_for

    try:
        bundle = read_bundle(folder, verify=False)
        yield from _size(bundle, machine)
        yield from _openvino_memory(bundle, machine, python)
        if machine.profile is not None and engine_for(bundle, machine.profile) != "onnx":
            yield from _engines(bundle, machine, python)
    except (BundleError, RequestError) as error:
        yield Finding(
            name="bundle-broken",
            level="stop",
            text=str(error),
            remedy="Copy the bundle again, or export it again.",
        )


def _size(bundle: Bundle, machine: Detected) -> Iterator[Finding]:
    """Whether the bundle's default picture fits into what is free, by the runtime's own bound."""
    from perfusion.devices.planning.memory_plan import plan_memory

    free = machine.free
    if free is None and machine.profile is not None:
        free = machine.profile.usable
    if free is None:
        return
    budget = int(AUTO_SHARE * free)
    plan = plan_memory(bundle, bundle.usual_call, budget=budget)
    if not plan.fits:
        half = ", or export it in half precision" if bundle.precision == "fp32" else ""
        yield Finding(
            name="bundle-too-large",
            level="stop",
            text=f"{bundle.folder}: {plan.explain()}",
            remedy=f"Close other programs, ask for smaller pictures{half}.",
        )
        return
    for name in bundle.controlnets:
        usual = replace(bundle.usual_call, control=True)
        controlled = plan_memory(bundle.with_controlnet(name), usual, budget=budget)
        if not controlled.fits:
            yield Finding(
                name="controlnet-too-large",
                level="note",
                text=f"A picture that the ControlNet {name} controls does not fit: {controlled.explain()}",
                remedy="Close other programs, or ask for smaller pictures.",
            )
    if bundle.has_regions and not (several := plan_memory(bundle, _two_readings(bundle), budget=budget)).fits:
        yield Finding(
            name="regions-too-large",
            level="note",
            text=f"A picture of two things does not fit: {several.explain()}",
            remedy="Close other programs, ask for smaller pictures, or draw with regions=None.",
        )


def _openvino_memory(bundle: Bundle, machine: Detected, python: Environment) -> Iterator[Finding]:
    """Whether OpenVINO, where it is installed, has the memory to compile the largest graph."""
    if "openvino" not in python.packages or machine.free is None:
        return
    from perfusion.devices.planning.openvino_memory import compile_memory

    need = compile_memory(bundle)
    if need > machine.free:
        yield Finding(
            name="openvino-memory",
            level="note",
            text=f"OpenVINO takes about {need / _GIB:.1f} GiB to compile this UNet for a size of pictures, and "
            f"{machine.free / _GIB:.1f} GiB are free.",
            remedy="Close other programs for the first picture of each size, or draw with --provider cpu.",
        )


def _two_readings(bundle: Bundle) -> CallSize:
    """The call for the bundle's own picture of two things, each with a region."""
    usual = bundle.usual_call
    return replace(usual, readings=2, tokens=2 * usual.tokens)


def _engines(bundle: Bundle, machine: Detected, python: Environment) -> Iterator[Finding]:
    """Whether every graph that a picture needs has an engine that runs here, as the runtime looks for them."""
    profile = machine.profile
    if profile is None or profile.compute_capability is None:
        return
    if machine.jetpack is not None and not machine.jetpack.has_engines:
        return  # which the machine's own findings say
    from perfusion.bundle.facts import graph_facts
    from perfusion.tensorrt.engine_store import find_engine

    folder, graphs = bundle.folder, graph_facts(bundle).values()
    lacking: dict[str, dict[str, EngineSearch]] = {}
    for flavour in profile.engines[1:]:
        key = _wanted(flavour, profile.compute_capability, machine, python)
        searches = {
            graph.name: find_engine(folder, graph.name, key | {"graph_sha256": graph.sha256}, verify=False)
            for graph in graphs
            if graph.name != "vae_encoder"  # only pictures to start from need it
        }
        lacking[flavour] = {name: search for name, search in searches.items() if search.engine is None}
    if not all(lacking.values()):
        return

    def distance(flavour: str) -> tuple[int, int, bool]:
        unbuilt = sum(not _nearest(search, flavour) for search in lacking[flavour].values())
        return len(lacking[flavour]), unbuilt, flavour != profile.engine

    flavour = min(lacking, key=distance)
    yield _no_engines(folder, profile, flavour, lacking[flavour])


def _wanted(
    flavour: str, capability: tuple[int, int], machine: Detected, python: Environment
) -> dict[str, Any]:
    """What an engine's key has to say here; what the machine does not tell is not asked for."""
    from perfusion.tensorrt.keys import platform_of
    from perfusion.tensorrt.targets import target_of

    key: dict[str, Any] = {
        "flavour": flavour,
        "platform": platform_of(flavour),
        "target": target_of(capability),
    }
    if version := python.tensorrt_version(flavour):
        key["version"] = version
    cuda = machine.cards.cuda or (machine.jetpack.cuda if machine.jetpack else None)
    if cuda and flavour == "trt":
        key["driver"] = cuda[0]
    return key


def _no_engines(
    folder: Path, profile: DeviceProfile, flavour: str, lacking: Mapping[str, EngineSearch]
) -> Finding:
    """A warning where there are engines and they do not run here, a note where none has been built."""
    built = [reason for search in lacking.values() if (reason := _nearest(search, flavour))]
    remedy = quoted("perfusion-export", "--bundle", folder, "--engine", flavour, "--device", profile.name)
    if not built:
        return Finding(
            name="engines-missing",
            level="note",
            text=f"{folder} has no engine for this {profile.title} of {', '.join(lacking)}.",
            remedy=f"{remedy}; without engines onnxruntime draws.",
        )
    return Finding(
        name="engines-unfit",
        level="warning",
        text=f"{folder} has engines that this {profile.title} cannot use: {', '.join(built)}.",
        remedy=f"{remedy}; an engine runs with the TensorRT and on the kind of GPU it was built for.",
    )


def _nearest(search: EngineSearch, flavour: str) -> str:
    """Of several engines of a flavour the reason against the one with the fewest differences, "" without any."""
    own = [reason for reason in search.reasons if reason.partition("/")[0].rpartition("-")[0] == flavour]
    # the last of equals, since those that are only damaged come last
    return min(reversed(own), key=lambda reason: reason.count(";"), default="")
