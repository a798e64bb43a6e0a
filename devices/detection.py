"""Which machine this is: a Jetson by its files, a card by its driver, otherwise a processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perfusion.devices import system
from perfusion.devices.host_facts import main_memory, processor_name
from perfusion.devices.jetpack import JetPack, find_jetpack, find_module
from perfusion.devices.nvml import Card, Cards, read_cards
from perfusion.devices.profiles import PROFILES, DeviceProfile, processor_profile

__all__ = ["Detected", "detect"]

_LEAST_SHARE = 0.75
"""Of a module's memory that Linux has; below it, this is a smaller module of the same name."""


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What machine this is, and the facts it was told by."""

    profile: DeviceProfile | None  # None: a board or card that no profile describes
    facts: Mapping[str, Any]  # plain values, for a reader or for JSON
    jetpack: JetPack | None = None
    l4t: tuple[int, ...] | None = None
    cards: Cards = field(default_factory=Cards)
    memory: Mapping[str, int]  # bytes, named as in /proc/meminfo, within the limits of a container

    @property
    def is_jetson(self) -> bool:
        """Whether its system is Jetson Linux."""
        return self.l4t is not None or self.jetpack is not None

    @property
    def free(self) -> int | None:
        """Bytes free now in the memory that the graphs would be in, None where it is not told."""
        if self.profile is not None and not self.profile.unified and self.cards.cards:
            return self.cards.cards[0].free
        return self.memory.get("MemAvailable")  # on unified memory the driver's own figure misleads


def detect(root: Path = Path("/"), *, cards: Callable[[], Cards] | None = None) -> Detected:
    """Find out which machine this is. Takes some milliseconds, imports nothing heavy and never fails.

    Args:
        root: where the system's files are.
        cards: asks the driver; by default the real one for the real root, and none for another.
    """
    ask = cards or (read_cards if root == Path("/") else Cards)
    memory = main_memory(root)
    model, compatible = system.device_tree(root, "model"), system.device_tree(root, "compatible")
    l4t = system.l4t_version(root)
    tree = f"{compatible} {system.device_tree(root, 'nvidia,dtsfilename')}"
    if l4t is not None or "tegra" in tree.lower() or "jetson" in model.lower():
        return _jetson(root, model, tree, l4t, memory, ask())
    gpus = ask()
    return _desktop(gpus, memory) if gpus.cards else _processor(root, gpus, memory)


def _jetson(
    root: Path, model: str, tree: str, l4t: tuple[int, ...] | None, memory: Mapping[str, int], cards: Cards
) -> Detected:
    # the module's own memory, whatever a container may have of it
    total = system.meminfo(root).get("MemTotal")
    name = find_module(tree, model, total)
    profile = PROFILES.get(name) if name else None
    if (
        profile is None and not model and cards.cards
    ):  # a container without the device tree: the driver tells the chip
        profile = _card_profile(cards.cards[0], total)
    elif profile is not None and total is not None and total < _LEAST_SHARE * profile.memory:
        less = "with the memory that Linux tells, which is less than usual"
        profile = replace(profile, memory=total, note=f"{profile.note}; {less}" if profile.note else less)
    jetpack = find_jetpack(l4t) if l4t else None
    mode = system.power_mode(root)
    facts: dict[str, Any] = {
        "machine": model or "a Jetson that does not tell its model",
        "module": profile.title if profile else "not in the table of modules",
        "jetson_linux": ".".join(map(str, l4t)) if l4t else "not told",
        "jetpack": jetpack.version if jetpack else "not in the table",
        "power_mode": mode[0] if mode else "not told",
        "memory": memory.get("MemTotal"),
        "memory_free": memory.get("MemAvailable"),
        "swap": memory.get("SwapTotal"),
        "container": system.in_container(root),
    }
    if jetpack:
        facts["cuda"] = ".".join(map(str, jetpack.cuda))
        facts["tensorrt"] = ".".join(map(str, jetpack.tensorrt))
    return Detected(
        profile=profile,
        facts=MappingProxyType(facts),
        jetpack=jetpack,
        l4t=l4t,
        cards=cards,
        memory=MappingProxyType(dict(memory)),
    )


def _desktop(cards: Cards, memory: Mapping[str, int]) -> Detected:
    card = cards.cards[0]
    profile = _card_profile(card, memory.get("MemTotal"))
    facts = {
        "machine": card.name,
        "compute_capability": ".".join(map(str, card.capability)) if card.capability else "not told",
        "driver": cards.driver,
        "driver_cuda": ".".join(map(str, cards.cuda)) if cards.cuda else "not told",
        "power_limit_watts": card.power_limit,
        "memory": card.memory,
        "memory_free": card.free,
        "cards": len(cards.cards),
        "main_memory": memory.get("MemTotal"),
    }
    return Detected(
        profile=profile, facts=MappingProxyType(facts), cards=cards, memory=MappingProxyType(dict(memory))
    )


def _processor(root: Path, cards: Cards, memory: Mapping[str, int]) -> Detected:
    count, name = system.cores(root), processor_name(root)
    total = memory.get("MemTotal")
    facts = {
        "machine": name or "a processor that does not tell its name",
        "cores": count,
        "memory": total,
        "memory_free": memory.get("MemAvailable"),
        "swap": memory.get("SwapTotal"),
        "driver": cards.problem or "none",
        "container": system.in_container(root),
    }
    profile = processor_profile(cores=count, memory=total, title=name)
    return Detected(
        profile=profile, facts=MappingProxyType(facts), cards=cards, memory=MappingProxyType(dict(memory))
    )


def _card_profile(card: Card, main_memory: int | None) -> DeviceProfile | None:
    """The table's row for a card, with what the card itself says in place of the table's memory and bandwidth."""
    row = _named(card.name) or _alike(card, main_memory)
    if row is None:
        return None
    if row.unified or not card.memory:
        return row
    return replace(row, memory=card.memory, bandwidth=card.bandwidth or row.bandwidth)


def _named(name: str) -> DeviceProfile | None:
    """By name: "NVIDIA GeForce RTX 4070" and "NVIDIA A100-SXM4-80GB" are rows, "… RTX 4070 Ti SUPER" is none."""
    words = (
        name.lower()
        .replace("nvidia", "")
        .replace("geforce", "")
        .replace("tesla", "")
        .replace(" gpu", "")
        .split()
    )
    key = "-".join(words).removesuffix("gb")  # "NVIDIA RTX A2000 12GB"
    if key in PROFILES:
        return PROFILES[key]
    special = {
        "a100": ("a100-40", "a100-80"),
        "h100": ("h100-80",),
        "h200": ("h200",),
        "gb10": ("dgx-spark",),
    }
    for word, names in special.items():
        if key.startswith(word):
            return PROFILES[
                next((one for one in names if one.rsplit("-", 1)[-1] in key[len(word) :]), names[-1])
            ]
    if key == "rtx-a2000":  # the one of 12 GB has it in its name
        return PROFILES["rtx-a2000-6"]
    if key == "rtx-4060-ti":
        return replace(PROFILES["rtx-4060-ti-16"], title="GeForce RTX 4060 Ti")  # it may have 8 GB
    return None


def _alike(card: Card, main_memory: int | None) -> DeviceProfile | None:
    """A profile for a card that has no row: what its compute capability allows, and nothing of its speed.

    A board that shares the processor's memory, as in a container that hides the device tree, has what Linux tells.
    """
    like = next((row for row in PROFILES.values() if row.compute_capability == card.capability), None)
    if like is None:
        return None
    memory, teller = like.memory, "driver"
    if like.unified and main_memory:
        memory, teller = main_memory, "system"
    return replace(
        like,
        name="-".join(card.name.lower().split()),
        title=card.name,
        memory=memory,
        bandwidth=0.0,
        fp16_flops=0.0,
        source="driver",
        note=f"no row of its own: what holds for its compute capability, with the memory that its {teller} tells",
    )
