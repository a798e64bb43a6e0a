"""ControlNets in an export: which there are, what they are called, and how they fit among the graphs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perfusion.base.base_model import BaseModel
from perfusion.base.controlnet import load_controlnet
from perfusion.bundle.names import CONTROLNET, UNET_CONTROLNET
from perfusion.errors import ExportError
from perfusion.export.control_graphs import control_graphs_of
from perfusion.export.graph_modules import Graph
from perfusion.export.weights import INLINE_LIMIT
from perfusion.files import sha256_of
from perfusion.hub import local_controlnet, origin_of

__all__ = [
    "control_entry",
    "control_graphs",
    "is_control",
    "local_controlnets",
    "places_of",
    "room_for_control",
    "with_control",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def local_controlnets(controlnets: Mapping[str, Path | str]) -> dict[str, Path]:
    """The paths of some ControlNets by their names; what is on the hub is fetched.

    Raises:
        ExportError: a name that cannot be a file's.
        HubError: what is named on the hub cannot be fetched.
    """
    for name in controlnets:
        if not _NAME.fullmatch(name):
            raise ExportError(
                f"{name!r} is no name for a ControlNet, expected small letters, digits, -, _ and dots, such as canny"
            )
    return {name: local_controlnet(path) for name, path in controlnets.items()}


def control_graphs(base: BaseModel, controlnets: Mapping[str, Path]) -> tuple[Graph, ...]:
    """The graphs that ControlNets add to those of ``base``. Raises `ModelError` for one that does not fit it."""
    return control_graphs_of(base, {name: load_controlnet(path, base) for name, path in controlnets.items()})


def with_control(graphs: Sequence[Graph], control: Sequence[Graph]) -> list[Graph]:
    """All graphs in the order in which they are written: the second UNet behind the first, whose weights it shares."""
    ordered = list(graphs)
    if control:
        second, *others = control
        place = next(at for at, graph in enumerate(ordered) if graph.name == "unet") + 1
        ordered[place:place] = [second]
        ordered += others
    return ordered


def is_control(graph: Graph) -> bool:
    """Whether a graph is there for ControlNets alone."""
    return graph.name == UNET_CONTROLNET or graph.name.startswith(f"{CONTROLNET}_")


def places_of(graph: Graph, places: Sequence[str]) -> Sequence[str]:
    """What stays in float32 in a graph: in the second UNet what stays so in the first."""
    if graph.name != UNET_CONTROLNET:
        return places
    own = [place for place in places if place == "unet" or place.startswith("unet.")]
    return [f"{UNET_CONTROLNET}{place.removeprefix('unet')}" for place in own]


def room_for_control(base: BaseModel, control: Sequence[Graph]) -> int:
    """Bytes that these graphs may take on the disk at most."""
    if not control:
        return 0
    own: int = sum(weight.numel() for graph in control[1:] for weight in graph.module.parameters()) * 4
    unet: int = sum(weight.numel() for weight in base.unet.parameters()) * 4
    return own + min(INLINE_LIMIT, unet)


def control_entry(control: Sequence[Graph], controlnets: Mapping[str, Path]) -> dict[str, Any]:
    """What bundle.json says of ControlNets."""
    second, *graphs = control
    models = [
        {
            "name": name,
            "file": f"{graph.name}.onnx",
            "conditions": {end.name: end.dims[1] for end in graph.inputs[5:]},
            **_made_from(path),
        }
        for (name, path), graph in zip(controlnets.items(), graphs, strict=True)
    ]
    return {"unet": f"{second.name}.onnx", "residuals": len(graphs[0].outputs), "models": models}


def _made_from(path: Path) -> dict[str, str]:
    origin = origin_of(path) or (sha256_of(path) if path.is_file() else None)
    return {"made_from": origin} if origin else {}
