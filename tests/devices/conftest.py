"""Machines that do not exist: file systems as the tables of modules and JetPacks say, and a driver's library."""

# ruff: noqa: N802 (the fake has the names of the driver's calls)
from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from perfusion.devices.environment import Environment

GIB = 1 << 30
MakeRoot = Callable[..., Path]


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def meminfo(total: float, free: float, swap: float = 0, swap_free: float | None = None) -> str:
    """/proc/meminfo from GiB."""
    values = {"MemTotal": total, "MemFree": free / 2, "MemAvailable": free}
    values |= {"SwapTotal": swap, "SwapFree": swap if swap_free is None else swap_free}
    return "".join(f"{name + ':':<16}{int(size * GIB / 1024):>12} kB\n" for name, size in values.items())


@pytest.fixture
def make_root(tmp_path: Path) -> MakeRoot:
    """Makes a root directory; each argument is left out of it when None."""

    def make(
        *,
        module: str | None = None,
        model: str | None = None,
        soc: str = "tegra234",
        l4t: str | None = None,
        memory: float | None = 7.4,
        free: float = 6.1,
        swap: float = 3.7,
        files: Mapping[str, str | bytes] | None = None,
    ) -> Path:
        if module is not None:
            write(
                tmp_path / "proc/device-tree/compatible",
                f"nvidia,p3768-0000+{module}\0nvidia,{module}\0nvidia,{soc}\0",
            )
        if model is not None:
            write(tmp_path / "proc/device-tree/model", model + "\0")
        if l4t is not None:
            major, rest = l4t.split(".", 1)
            write(
                tmp_path / "etc/nv_tegra_release",
                f"# R{major} (release), REVISION: {rest}, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
            )
        if memory is not None:
            write(tmp_path / "proc/meminfo", meminfo(memory, free, swap))
        for name, text in (files or {}).items():
            write(tmp_path / name, text)
        return tmp_path

    return make


@pytest.fixture
def environment() -> Callable[..., Environment]:
    """A Python with onnxruntime in working order; keywords change it."""

    def make(**changes: Any) -> Environment:
        values: dict[str, Any] = {
            "python": (3, 10),
            "packages": {"onnxruntime": "1.23.2"},
            "modules": frozenset({"onnxruntime"}),
            "providers": ("CPUExecutionProvider",),
        }
        return Environment(**(values | changes))

    return make


class FakeNVML:
    """The dozen calls of the driver's library that are made; `codes` makes some of them fail.

    A real library's function has the same names and fills the same pointers, see nvml.h.
    """

    def __init__(
        self,
        name: str = "NVIDIA GeForce RTX 3060",
        memory: int = 12884377600,
        capability: tuple[int, int] = (8, 6),
        cuda: int = 12040,
        count: int = 1,
        codes: Mapping[str, int] | None = None,
    ) -> None:
        self.name, self.memory, self.capability, self.cuda, self.count = name, memory, capability, cuda, count
        self.codes = dict(codes or {})
        self.open = 0

    def __getattr__(self, call: str) -> Callable[..., int]:
        if not call.startswith("nvml"):
            raise AttributeError(call)

        def called(*arguments: Any) -> int:
            if code := self.codes.get(call):
                return code
            return int(getattr(self, f"_{call}")(*arguments) or 0)

        return called

    def _nvmlInit_v2(self) -> None:
        self.open += 1

    def _nvmlShutdown(self) -> None:
        self.open -= 1

    def _nvmlSystemGetDriverVersion(self, buffer: Any, length: ctypes.c_uint) -> None:
        buffer.value = b"550.54.14"

    def _nvmlSystemGetCudaDriverVersion_v2(self, version: Any) -> None:
        version._obj.value = self.cuda

    def _nvmlDeviceGetCount_v2(self, count: Any) -> None:
        count._obj.value = self.count

    def _nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> None:
        handle._obj.value = 0x1000 + index.value

    def _nvmlDeviceGetName(self, handle: Any, buffer: Any, length: ctypes.c_uint) -> None:
        buffer.value = self.name.encode()

    def _nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> None:
        memory._obj.total, memory._obj.free = self.memory, self.memory - (1 << 29)

    def _nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> None:
        major._obj.value, minor._obj.value = self.capability

    def _nvmlDeviceGetPowerManagementLimit(self, handle: Any, limit: Any) -> None:
        limit._obj.value = 170_000

    def _nvmlDeviceGetMemoryBusWidth(self, handle: Any, width: Any) -> None:
        width._obj.value = 192

    def _nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: ctypes.c_uint, clock: Any) -> None:
        assert kind.value == 2  # NVML_CLOCK_MEM
        clock._obj.value = 7501


@pytest.fixture
def fake_nvml() -> type[FakeNVML]:
    return FakeNVML
