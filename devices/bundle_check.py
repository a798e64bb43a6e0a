"""What stands in the way of drawing with one bundle on one machine: its files, its size, its engines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from perfusion.devices.detection import Detected
from perfusion.devices.doctor import Finding
from perfusion.errors import BundleError, RequestError

__all__ = ["examine_bundle"]


def examine_bundle(folder: Path, found: Detected) -> Iterator[Finding]:
    """Findings about a bundle: whether it is whole, fits into what is free now, and has engines for this machine."""
    from perfusion.devices.memory import guided_by_default, plan_memory
    from perfusion.runtime.bundle import read_bundle
    from perfusion.runtime.memory import AUTO_SHARE

    try:
        bundle = read_bundle(folder, verify=False)
        free = found.free
        if free is None and found.profile is not None:
            free = found.profile.usable
        if free is not None:
            defaults = bundle.defaults
            plan = plan_memory(
                bundle,
                budget=int(AUTO_SHARE * free),  # as the runtime does
                width=defaults.width,
                height=defaults.height,
                guided=guided_by_default(bundle),
            )
            if not plan.fits:
                yield Finding(
                    name="bundle-too-large",
                    level="stop",
                    text=f"{folder}: {plan.explain()}",
                    remedy="Close other programs, ask for smaller pictures, or export it in half precision.",
                )
        yield from _engines(folder, found)
    except (BundleError, RequestError) as error:
        yield Finding(
            name="bundle-broken",
            level="stop",
            text=str(error),
            remedy="Copy the bundle again, or export it again.",
        )


def _engines(folder: Path, found: Detected) -> Iterator[Finding]:
    """Whether every graph that a picture needs has an engine of its present form for this GPU."""
    profile = found.profile
    if profile is None or len(profile.engines) == 1 or profile.compute_capability is None:
        return
    from perfusion.tensorrt.bundle_facts import read_facts
    from perfusion.tensorrt.cache import find_engine
    from perfusion.tensorrt.targets import target_of

    facts, flavours = read_facts(folder), profile.engines[1:]
    if facts.precision == "int8":
        return
    target = target_of(profile.compute_capability)
    needed = [graph for graph in facts.graphs.values() if graph.name != "vae_encoder"]
    lacking: dict[str, list[str]] = {}
    for flavour in flavours:
        wanted = {"flavour": flavour, "target": target}
        searches = {
            graph.name: find_engine(
                folder, graph.name, {**wanted, "graph_sha256": graph.sha256}, verify=False
            )
            for graph in needed
        }
        lacking[flavour] = [
            f"{name} ({search.explain()})" for name, search in searches.items() if search.engine is None
        ]
    if all(lacking.values()):
        flavour = min(flavours, key=lambda one: (len(lacking[one]), one != profile.engine))
        yield Finding(
            name="engines-missing",
            level="note",
            text=f"{folder} has no engine for this {profile.title} of {', '.join(lacking[flavour])}.",
            remedy=f"perfusion-export --bundle {shlex.quote(str(folder))} --engine {flavour} --device {profile.name}; "
            "without engines onnxruntime draws.",
        )
