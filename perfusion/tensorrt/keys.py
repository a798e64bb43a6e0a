"""What an engine belongs to. Two engines with one key are interchangeable; one with another key is another engine."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from perfusion.tensorrt.build import ShapeRange
from perfusion.tensorrt.rtx import PORTABLE
from perfusion.tensorrt.targets import TARGETS

__all__ = ["EngineKey", "differences", "folder_name", "platform_of", "serves"]

_PROCESSORS = {"amd64": "x86_64", "arm64": "aarch64"}
"""Windows' and macOS' names of processors, as Linux spells them."""

_TITLES = {
    "graph": "the graph",
    "graph_sha256": "the graph's checksum",
    "flavour": "the kind of TensorRT",
    "version": "TensorRT's version",
    "platform": "the system and processor",
    "target": "the GPU",
    "driver": "the driver's CUDA",
    "precision": "the precision",
}


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """All that decides whether an engine can be used, and for what."""

    graph: str  # "unet"
    graph_sha256: str  # over the graph and all weights it may refer to
    flavour: str  # "trt" or "trt-rtx"
    version: str  # TensorRT's, in full
    platform: str | None  # system and processor, see `platform_of`
    target: str  # "sm87", "sm86+sm89", "portable"
    driver: int | None  # CUDA's major version in the driver; None where it was built without one
    precision: str  # of the graph
    shape_ranges: tuple[ShapeRange, ...]
    options: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """64 hexadecimal digits, the same for the same key on every machine."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """What the engine's files are called, without their endings."""
        return f"{self.graph}-{self.digest[:16]}"

    def to_json(self) -> dict[str, Any]:
        """The key as JSON's own types."""
        values = asdict(self)
        values["shape_ranges"] = [
            {name: list(sizes) for name, sizes in ranges.items()} for ranges in self.shape_ranges
        ]
        return values

    @classmethod
    def from_json(cls, values: Any) -> EngineKey:
        """The key that `to_json` gave. Raises `ValueError` for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError("not an engine's key")
        try:
            shape_ranges = tuple(
                {str(name): _sizes(sizes) for name, sizes in ranges.items()}
                for ranges in values["shape_ranges"]
            )
            return cls(**{**values, "shape_ranges": shape_ranges, "options": dict(values["options"])})
        except (AttributeError, TypeError) as error:
            raise ValueError("not an engine's key") from error


def _sizes(values: Any) -> tuple[int, int, int]:
    smallest, usual, largest = (int(value) for value in values)
    return smallest, usual, largest


def platform_of(flavour: str) -> str | None:
    """What this machine is to engines of a flavour: "linux-x86_64", "linux-aarch64", "windows-x86_64".

    None for TensorRT for RTX, whose engines serve every system it runs on. Those of the full TensorRT are neither
    portable between systems nor between processors (its support matrix, "Hardware and Precision").
    """
    if flavour != "trt":
        return None
    system = {"win32": "windows"}.get(sys.platform, sys.platform)
    machine = platform.machine().lower()
    return f"{system}-{_PROCESSORS.get(machine, machine)}"


def folder_name(flavour: str, target: str) -> str:
    """The folder below `engines` that holds the engines of a flavour for a target."""
    return f"{flavour}-{target}"


def serves(target: str, gpu: str) -> bool:
    """Whether an engine built for `target` runs on `gpu` ("sm89", or a target of the same spelling)."""
    if target == gpu:
        return True
    if target == PORTABLE:
        return gpu in TARGETS and TARGETS[gpu].portable
    return gpu in target.split("+")


def differences(key: EngineKey, expected: Mapping[str, Any]) -> list[str]:
    """What a key has otherwise than wanted, each as a phrase; `expected` names the fields that matter.

    The target matches where the engine serves it.
    """
    phrases = []
    for name, value in expected.items():
        have = getattr(key, name)
        if have == value or (name == "target" and serves(have, value)):
            continue
        if name == "shape_ranges":
            phrases.append(f"the sizes are {_sizes_text(have)}, expected {_sizes_text(value)}")
        elif name == "options":
            have, value = (
                dict(set(one.items()) - set(other.items())) for one, other in ((have, value), (value, have))
            )
            phrases.append(
                f"the builder's options are {_options_text(have)}, expected {_options_text(value)}"
            )
        else:
            phrases.append(f"{_TITLES[name]} is {_short(have)}, expected {_short(value)}")
    return phrases


def _short(value: Any) -> str:
    """A value for a message; a checksum by its first digits."""
    text = "none" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text


def _sizes_text(shape_ranges: Sequence[ShapeRange]) -> str:
    """Profiles as "batch 2/4, height 32-64"."""
    ranges: dict[str, list[str]] = {}
    for shape_range in shape_ranges:
        for name, (least, _, most) in shape_range.items():
            text = f"{least}" if least == most else f"{least}-{most}"
            if text not in ranges.setdefault(name, []):
                ranges[name].append(text)
    return ", ".join(f"{name} {'/'.join(texts)}" for name, texts in ranges.items())


def _options_text(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in sorted(options.items()))
