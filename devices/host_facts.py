"""This machine's memory and processor, whichever system it has: Linux by its files, Windows and macOS by a call."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from perfusion.devices import system

__all__ = ["main_memory", "processor_name"]

_MOST_BYTES = 1 << 46  # 64 TiB; what tells more is not believed


def main_memory(root: Path = Path("/")) -> dict[str, int]:
    """Bytes of "MemTotal" and "MemAvailable", and of "SwapTotal" and more where they are told; named as Linux does.

    Empty where the system tells nothing; never raises. On Linux within the limits of control groups.

    Args:
        root: where a Linux system's files are; another than "/" is always read as Linux.
    """
    reader = _MEMORY.get(sys.platform) if root == Path("/") else None
    if reader is None:
        return system.usable_meminfo(root)
    try:
        sizes = reader()
    except (OSError, AttributeError, ValueError):  # no such library, call or number in it
        return {}
    return sizes if 0 < sizes["MemTotal"] <= _MOST_BYTES else {}


def processor_name(root: Path = Path("/")) -> str:
    """The processor's name as its system tells it, "" where it does not."""
    if root == Path("/") and sys.platform == "win32":
        return os.environ.get("PROCESSOR_IDENTIFIER", "")
    if root == Path("/") and sys.platform == "darwin":
        try:
            return _sysctl("machdep.cpu.brand_string", 256).split(b"\0")[0].decode("utf-8", "replace").strip()
        except (OSError, AttributeError):
            return ""
    return system.cpu_name(root)


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        ("total_commit", ctypes.c_uint64),
        ("available_commit", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    )


def _windows_memory() -> dict[str, int]:
    """Windows promises no more than it can back by memory and its page file, and refuses the rest at once."""
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel: Any = getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009 (on Windows alone)
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx failed")
    return {
        "MemTotal": status.total_physical,
        "MemAvailable": min(status.available_physical, status.available_commit),
        "SwapTotal": max(0, status.total_commit - status.total_physical),
    }


_HOST_VM_INFO64, _INTEGERS = 4, 38  # mach/host_info.h: the flavour, and the integers of vm_statistics64


def _macos_memory() -> dict[str, int]:
    """What can be had without swapping on macOS: pages that are free, and inactive ones, which give way."""
    library: Any = ctypes.CDLL(None)
    library.mach_host_self.restype = ctypes.c_uint32
    statistics, count = (ctypes.c_uint32 * _INTEGERS)(), ctypes.c_uint32(_INTEGERS)
    host = ctypes.c_uint32(library.mach_host_self())
    if library.host_statistics64(host, _HOST_VM_INFO64, statistics, ctypes.byref(count)):
        raise OSError("host_statistics64 failed")
    free, _active, inactive = statistics[:3]
    return {
        "MemTotal": _sysctl_number("hw.memsize"),
        "MemAvailable": (free + inactive) * _sysctl_number("hw.pagesize"),
    }


def _sysctl_number(name: str) -> int:
    return int.from_bytes(_sysctl(name, 8), sys.byteorder)


def _sysctl(name: str, most: int) -> bytes:
    """The bytes of a value of macOS's kernel, `most` of them at the most."""
    library: Any = ctypes.CDLL(None)
    value, length = ctypes.create_string_buffer(most), ctypes.c_size_t(most)
    if library.sysctlbyname(name.encode(), value, ctypes.byref(length), None, ctypes.c_size_t(0)):
        raise OSError(f"sysctl {name} failed")
    return value.raw[: length.value]


_MEMORY = {"win32": _windows_memory, "darwin": _macos_memory}
