"""The two TensorRTs: the full one (Jetson, data centre, desktop) and TensorRT for RTX, with one Python interface."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from perfusion.errors import DeviceError
from perfusion.tensorrt.driver import driver_ready

__all__ = ["FLAVOURS", "Flavour", "driver_ready", "import_tensorrt", "tensorrt_version"]

Flavour = Literal["trt", "trt-rtx"]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One flavour: its name for people, the modules it is imported by, and the oldest release that will do."""

    title: str
    modules: tuple[str, ...]
    oldest: tuple[int, int]


FLAVOURS: Mapping[Flavour, _Row] = {
    "trt": _Row(title="TensorRT", modules=("tensorrt",), oldest=(10, 3)),
    # the bindings' wheel installs the second name, the metapackage beside it the first
    "trt-rtx": _Row(
        title="TensorRT for RTX", modules=("tensorrt_rtx", "tensorrt_rtx_bindings"), oldest=(1, 4)
    ),
}


def import_tensorrt(flavour: Flavour, root: Path = Path("/"), *, advice: str = "") -> Any:
    """The module of a flavour, imported when it is needed: it is large.

    Args:
        flavour: which of the two.
        root: where the system's files lie.
        advice: what else can be done on a machine without a GPU, for which the full TensorRT is of no use.

    Raises:
        DeviceError: it is not installed, cannot be loaded, or is too old; with the way to get it on this machine.
    """
    row = FLAVOURS[flavour]
    way = partial(_way_to_get, flavour, root, advice)
    problems = []
    for name in row.modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            problems.append(f"the module {error.name} is not installed")
        except (ImportError, OSError) as error:  # there, but its libraries are not
            problems.append(f"{name} cannot be loaded ({_first_line(error)})")
        else:
            return _recent_enough(module, row, way)
    raise DeviceError(f"{row.title} is not usable here: {problems[-1]}. {way()}")


def tensorrt_version(trt: Any) -> str:
    """The full version of a module: "10.3.0", "1.7.1.116"; engines belong to exactly one."""
    return str(trt.__version__)


def _recent_enough(module: Any, row: _Row, way: Callable[[], str]) -> Any:
    version = tensorrt_version(module)
    try:
        found = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        found = (0, 0)
    if found < row.oldest:
        oldest = ".".join(map(str, row.oldest))
        raise DeviceError(f"{row.title} {version} is too old, expected {oldest} or newer. {way()}")
    return module


def _way_to_get(flavour: Flavour, root: Path, advice: str) -> str:
    """How to come by a flavour on the machine whose system's files lie under `root`."""
    if _is_jetson(root):
        if flavour == "trt-rtx":
            return "It does not run on Jetson: use the engine 'trt', which comes with JetPack."
        return (
            "On a Jetson it comes with JetPack 6.1 or newer (sudo apt install tensorrt python3-libnvinfer) and a "
            "virtual environment sees it only when made by python3 -m venv --system-site-packages."
        )
    if flavour == "trt-rtx" and sys.platform not in ("linux", "win32"):
        return "It exists for Linux and Windows: build the engines there and copy the bundle's folder here."
    wanted = 'pip install "perfusion-edge[trt-rtx]"' if flavour == "trt-rtx" else "pip install tensorrt"
    if flavour == "trt" and not driver_ready():
        return (
            "This machine has no NVIDIA GPU that its driver can use, and TensorRT builds an engine only on the kind of "
            f"GPU that will run it.{advice}"
        )
    return f"Install it with {wanted}."


def _is_jetson(root: Path) -> bool:
    if (root / "etc/nv_tegra_release").exists():
        return True
    try:  # in a container the release file may be missing
        return b"tegra" in (root / "proc/device-tree/compatible").read_bytes()
    except OSError:
        return False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
