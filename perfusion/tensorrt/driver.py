"""What the NVIDIA driver of this machine says, asked through ctypes. Standard library only."""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass

__all__ = ["Driver", "driver_ready", "query_driver"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A driver that can be used, and the first GPU it has."""

    cuda: tuple[int, int]  # the newest CUDA the driver runs: (12, 6)
    compute_capability: tuple[int, int]

    @property
    def target(self) -> str:
        """The GPU as an engine's target: "sm87"."""
        return "sm{}{}".format(*self.compute_capability)


def driver_ready() -> bool:
    """Whether there is a driver with a GPU. TensorRT 11's `Runtime` crashes the process where there is none."""
    return query_driver() is not None


@functools.cache
def query_driver() -> Driver | None:
    """The driver and its first GPU; None where there is no driver, no GPU, or one that cannot be used."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version, device, major, minor = (ctypes.c_int(0) for _ in range(4))
    if (
        cuda.cuInit(0)
        or cuda.cuDriverGetVersion(ctypes.byref(version))
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    ):
        return None
    return Driver(
        cuda=(version.value // 1000, version.value % 1000 // 10),
        compute_capability=(major.value, minor.value),
    )
