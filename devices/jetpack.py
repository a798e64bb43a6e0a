"""Tables of the Jetson family: modules by their part numbers, and what each Jetson Linux (L4T) brings with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["JETPACKS", "MODULES", "JetPack", "find_jetpack", "find_module"]

Version = tuple[int, ...]

# Part numbers as they stand in the device tree; two names where the same number has two memory sizes.
MODULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "p3767-0000": ("orin-nx-16",),
        "p3767-0001": ("orin-nx-8",),
        "p3767-0003": ("orin-nano-8",),
        "p3767-0004": ("orin-nano-4",),
        "p3767-0005": ("orin-nano-8",),  # the developer kit's
        "p3701-0000": ("agx-orin-32", "agx-orin-64"),  # the developer kit's
        "p3701-0004": ("agx-orin-32",),
        "p3701-0005": ("agx-orin-64",),
        "p3834-0008": ("agx-thor",),
        "p3668-0000": ("xavier-nx-8",),
        "p3668-0001": ("xavier-nx-8",),
        "p3668-0003": ("xavier-nx-16",),
        "p2888-0004": ("agx-xavier-32",),
        "p2888-0005": ("agx-xavier-64",),
    }
)
# The same, by the words of /proc/device-tree/model, for carriers whose makers changed the compatible strings.
_WORDS = (
    ("orin nano", ("orin-nano-4", "orin-nano-8")),
    ("orin nx", ("orin-nx-8", "orin-nx-16")),
    ("agx orin", ("agx-orin-32", "agx-orin-64")),
    ("thor", ("agx-thor",)),
    ("xavier nx", ("xavier-nx-8", "xavier-nx-16")),
    ("xavier", ("agx-xavier-32", "agx-xavier-64")),
)


@dataclass(frozen=True, kw_only=True)
class JetPack:
    """A JetPack release and what it installs."""

    version: str
    cuda: Version
    tensorrt: Version

    @property
    def has_engines(self) -> bool:
        """Whether its TensorRT is new enough for engines."""
        return self.tensorrt >= (10, 3)


# Releases of L4T, as jetson-stats 7.2.2 lists them; the newest that is not newer than the one found counts.
JETPACKS: Mapping[Version, JetPack] = MappingProxyType(
    {
        (35, 0, 0): JetPack(version="5.1", cuda=(11, 4), tensorrt=(8, 5)),
        (36, 3, 0): JetPack(version="6.0", cuda=(12, 2), tensorrt=(8, 6)),
        (36, 4, 0): JetPack(version="6.1", cuda=(12, 6), tensorrt=(10, 3)),
        (36, 4, 3): JetPack(version="6.2", cuda=(12, 6), tensorrt=(10, 3)),
        (36, 4, 4): JetPack(version="6.2.1", cuda=(12, 6), tensorrt=(10, 3)),
        (36, 4, 7): JetPack(version="6.2.1", cuda=(12, 6), tensorrt=(10, 3)),
        (36, 5, 0): JetPack(version="6.2.2", cuda=(12, 6), tensorrt=(10, 3)),
        (36, 5, 2): JetPack(version="6.2.3", cuda=(12, 6), tensorrt=(10, 3)),
        (38, 2, 0): JetPack(version="7.0", cuda=(13, 0), tensorrt=(10, 13)),
        (38, 4, 0): JetPack(version="7.1", cuda=(13, 0), tensorrt=(10, 13)),
        (39, 0, 0): JetPack(version="7.2 EA", cuda=(13, 2), tensorrt=(10, 16)),
        (39, 2, 0): JetPack(version="7.2", cuda=(13, 2), tensorrt=(10, 16)),
        (39, 2, 1): JetPack(version="7.2.1", cuda=(13, 2), tensorrt=(10, 16)),
        (39, 2, 2): JetPack(version="7.2.2", cuda=(13, 2), tensorrt=(10, 16)),
    }
)


def find_jetpack(l4t: Version) -> JetPack | None:
    """The JetPack that a version of Jetson Linux belongs to, None where it is older or newer than the table."""
    padded = (*l4t, 0, 0)[:3]
    older = [version for version in JETPACKS if version <= padded and version[0] == padded[0]]
    return JETPACKS[max(older)] if older else None


def find_module(compatible: str, model: str, memory: int | None) -> str | None:
    """The profile's name for what the device tree says; `memory` in bytes tells two sizes apart, else the smaller."""
    match = re.search(r"p(?:3767|3701|3834|3668|2888)-\d{4}", compatible.lower())
    names = MODULES.get(match[0], ()) if match else ()
    if not names:
        words = model.lower()
        names = next((names for word, names in _WORDS if word in words), ())
    if not names:
        return None
    name = names[0] if memory is None else min(names, key=lambda one: abs(_gib(one) - memory / (1 << 30)))
    faster = f"{name}-super"
    is_super = "super" in compatible.lower() or "super" in model.lower()
    return faster if is_super and name.startswith("orin-nano") else name


def _gib(name: str) -> int:
    size = name.rsplit("-", 1)[-1]
    return int(size) if size.isdigit() else 0
