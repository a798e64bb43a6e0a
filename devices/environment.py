"""What this Python has installed, as far as drawing is concerned. Nothing is imported but onnxruntime and OpenVINO, to
ask them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from perfusion.devices.fat_binary import Kernels, read_kernels
from perfusion.errors import DeviceError

__all__ = ["Environment", "read_environment"]

_OF_INTEREST = re.compile(r"(onnxruntime|openvino|tensorrt|nvidia|torch|numpy|perfusion)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python with its packages."""

    python: tuple[int, int]
    packages: Mapping[str, str]  # versions by distribution, names in lower case with dashes
    modules: frozenset[str]  # of those asked about, the ones that can be imported
    providers: tuple[str, ...] = ()  # onnxruntime's
    problem: str = ""  # why onnxruntime could not be imported
    openvino_devices: tuple[str, ...] = ()  # that OpenVINO sees
    openvino_problem: str = ""  # why OpenVINO is installed and could not be asked
    virtual: bool = False  # a virtual environment
    system_packages: bool = field(default=True)  # which sees the system's packages
    kernels: Kernels | None = None  # those of onnxruntime's library for CUDA, where there is one

    def tensorrt_version(self, flavour: str) -> str | None:
        """The release of "trt" or "trt-rtx" that is installed, as engines' keys spell it; None where it is not told."""
        name = re.compile(("tensorrt" if flavour == "trt" else "tensorrt-rtx") + r"(-cu\d+)?(-bindings)?")
        found = (version for package, version in self.packages.items() if name.fullmatch(package))
        version = next(found, None)
        return re.sub(r"\.post\d+$", "", version) if version else None


def read_environment() -> Environment:
    """This Python's own."""
    providers, problem = _providers()
    openvino_devices, openvino_problem = _openvino_devices()
    return Environment(
        python=(sys.version_info.major, sys.version_info.minor),
        packages=_packages(),
        modules=frozenset(
            name
            for name in ("onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
            if _has(name)
        ),
        providers=providers,
        problem=problem,
        openvino_devices=openvino_devices,
        openvino_problem=openvino_problem,
        virtual=sys.prefix != sys.base_prefix,
        system_packages=_sees_system(Path(sys.prefix) / "pyvenv.cfg"),
        kernels=_kernels(),
    )


def _kernels() -> Kernels | None:
    """What the installed onnxruntime has for GPUs; None for one without CUDA."""
    try:
        spec = importlib.util.find_spec("onnxruntime")
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "capi"
    names = ("libonnxruntime_providers_cuda.so", "onnxruntime_providers_cuda.dll")
    return next((read_kernels(folder / name) for name in names if (folder / name).is_file()), None)


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"] if distribution.metadata else None
        if name and _OF_INTEREST.match(name):
            # the first on the path is the one that is imported
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def _has(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _providers() -> tuple[tuple[str, ...], str]:
    """onnxruntime's providers, or why it cannot be imported ("" where it is not installed)."""
    from perfusion.onnx_runtime import import_onnxruntime

    try:
        return tuple(import_onnxruntime("").get_available_providers()), ""
    except (DeviceError, AttributeError) as error:
        if not _has("onnxruntime"):
            return (), ""
        return (), _first_line(error.__cause__ or error)
    except OSError as error:  # one of its libraries is damaged or missing
        return (), _first_line(error)


def _openvino_devices() -> tuple[tuple[str, ...], str]:
    """What OpenVINO sees, or why it cannot be asked ("" where it is not installed)."""
    if not _has("openvino"):
        return (), ""
    try:
        import openvino

        return tuple(openvino.Core().available_devices), ""
    except Exception as error:  # its libraries fail in ways of their own
        return (), _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _sees_system(config: Path) -> bool:
    try:
        text = config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # not a virtual environment
    found = re.search(r"^include-system-site-packages\s*=\s*(\w+)", text, re.MULTILINE)
    return found is not None and found[1].lower() == "true"
