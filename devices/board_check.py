"""What stands in the way of a Jetson: its mode and clocks, its memory, what it starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from perfusion.devices import system
from perfusion.devices.detection import Detected
from perfusion.devices.finding import Finding

__all__ = ["examine_board"]

GIB = 1 << 30
_LOW_MEMORY = 2 * GIB
_SMALL_BOARD = 9 * GIB
_ENOUGH_SWAP = 4 * GIB
"""On a small board, beside compressed memory: less than this, and building an engine of Stable Diffusion may end it."""


def examine_board(machine: Detected, root: Path) -> Iterator[Finding]:
    """Findings about a board, none on other machines; `root` is where the system's files are."""
    if machine.is_jetson:
        yield from _module(machine)
        yield from _clocks(root)
        yield from _desktop(machine, root)
        yield from _root_disk(root)
        yield from _swap(machine, root)
    yield from _memory(machine)


def _module(machine: Detected) -> Iterator[Finding]:
    if machine.profile is None:
        yield Finding(
            name="module-unknown",
            level="warning",
            text=f"{machine.facts.get('machine')} is a Jetson that is not in the table of modules.",
            remedy="Name the nearest profile with --device; `perfusion-devices list` has them all.",
        )


def _clocks(root: Path) -> Iterator[Finding]:
    mode = system.power_mode(root)
    if mode is not None and mode[1] and mode[0] != mode[1]:
        yield Finding(
            name="power-mode",
            level="note",
            text=f"The power mode is {mode[0]}, and this board also has {mode[1]}.",
            remedy="sudo nvpmodel -m, with the number that /etc/nvpmodel.conf gives it, and sudo jetson_clocks.",
        )
    clock = system.gpu_clock(root)
    if clock is not None and clock[0] < clock[1]:
        yield Finding(
            name="clocks-free",
            level="note",
            text=f"The GPU's clock may fall to {clock[0] // 10**6} MHz, and {clock[1] // 10**6} MHz is its highest: "
            "the first steps of a picture are slower, and times differ.",
            remedy="sudo jetson_clocks; docs/jetson.md has a unit that does it at every start.",
        )


def _desktop(machine: Detected, root: Path) -> Iterator[Finding]:
    desktop, total = system.desktop(root), machine.memory.get("MemTotal", 0)
    if desktop and total < 2 * _SMALL_BOARD:
        yield Finding(
            name="desktop-running",
            level="note",
            text=f"A desktop is running ({desktop}); it takes about a gigabyte of the memory that the graphs share.",
            remedy="sudo systemctl set-default multi-user.target, and restart; sudo systemctl isolate "
            "graphical.target brings it back for once.",
        )


def _root_disk(root: Path) -> Iterator[Finding]:
    card = system.root_on_card(root)
    if card:
        yield Finding(
            name="root-on-card",
            level="note",
            text=f"The system is on an SD card ({card}): bundles load slowly, swap wears it out, and it is what power "
            "cuts damage first.",
            remedy="Put the system, or at least the bundles and the swap file, on an NVMe disk (docs/jetson.md).",
        )


def _swap(machine: Detected, root: Path) -> Iterator[Finding]:
    total, swap = machine.memory.get("MemTotal", 0), machine.memory.get("SwapTotal", 0)
    if not 0 < total < _SMALL_BOARD or not swap:
        return
    disk = system.disk_swap(root)
    if disk is not None and disk < _ENOUGH_SWAP:
        rest = (
            f"{disk / GIB:.1f} GiB of it are on a disk" if disk else "all of it is compressed memory (zram)"
        )
        yield Finding(
            name="swap-low",
            level="note",
            text=f"There are {swap / GIB:.1f} GiB of swap, and {rest}: building an engine of a large model may end "
            "the builder without a word.",
            remedy="Before building: sudo fallocate -l 8G /swapfile; sudo chmod 600 /swapfile; sudo mkswap /swapfile; "
            "sudo swapon /swapfile. Drawing does not need it.",
        )


def _memory(machine: Detected) -> Iterator[Finding]:
    free, total = machine.memory.get("MemAvailable"), machine.memory.get("MemTotal")
    unified = machine.profile is not None and machine.profile.unified
    if not unified or free is None or total is None:
        return
    if free < _LOW_MEMORY:
        yield Finding(
            name="memory-low",
            level="warning",
            text=f"Only {free / GIB:.1f} of {total / GIB:.1f} GiB are free; beyond that the machine swaps, which is a "
            "hundred times slower.",
            remedy="Close other programs, or the desktop (sudo systemctl isolate multi-user.target), or draw with "
            "--memory low.",
        )
    swap = machine.memory.get("SwapTotal", 0)
    if total < _SMALL_BOARD and machine.facts.get("module") and not swap:
        yield Finding(
            name="swap-none",
            level="note",
            text="There is no swap, so a program that needs too much is ended without a word.",
            remedy="Add some for building engines (sudo fallocate -l 8G /swapfile, mkswap, swapon); drawing should "
            "not need it.",
        )
    used = swap - machine.memory.get("SwapFree", swap)
    if used > total // 4:
        yield Finding(
            name="swapping",
            level="warning",
            text=f"{used / GIB:.1f} GiB are swapped out.",
            remedy="Close other programs before drawing.",
        )
