"""One device of OpenVINO's, in one precision: what it is, and what compiles for it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import DeviceError

__all__ = ["OpenVINODevice"]

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # in OpenVINO's words

_TELLING = ("NAME", "ARCHITECTURE", "CAPABILITIES", "VERSION")  # ends of properties that say what a device is


class OpenVINODevice:
    """Reads, compiles and restores graphs for one device."""

    def __init__(self, name: str = "CPU", threads: int | None = None, precision: str = "fp32") -> None:
        """`name`: of OpenVINO's, such as "CPU", "GPU", "GPU.1" or "NPU". `threads`: of the processor.

        Raises:
            DeviceError: OpenVINO is missing, sees no such device, or the device does not compute in the precision.
        """
        self._openvino = _openvino()
        self._core = self._openvino.Core()
        self.name = name
        devices = self._core.available_devices
        if name not in devices and name not in {device.partition(".")[0] for device in devices}:
            raise DeviceError(
                f"OpenVINO's device {name} was asked for, and it sees {', '.join(devices)}. Install the driver of "
                "the device, or use the provider 'openvino' for the processor."
            )
        self._capabilities = [
            str(word) for word in self._core.get_property(name, "OPTIMIZATION_CAPABILITIES")
        ]
        self._check_precision(precision)
        self._options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],  # else it takes a shorter one unasked
            "PERFORMANCE_HINT": "LATENCY",
        }
        if name == "CPU" and (threads or _allowed_threads()):
            self._options["INFERENCE_NUM_THREADS"] = threads or _allowed_threads()

    @property
    def keeps(self) -> bool:
        """Whether what it compiles can be stored and restored."""
        return "EXPORT_IMPORT" in self._capabilities

    @property
    def facts(self) -> Mapping[str, Any]:
        """All of the machine, the library and the options that decides what a graph is compiled to."""
        from perfusion.devices.system import cores

        return {
            "openvino": self._openvino.get_version(),
            "device": self._description(),
            "options": self._options,
            "cores": cores(Path("/")),
        }

    def read(self, path: Path) -> Any:
        """A graph's model. Raises what OpenVINO raises, as the others do."""
        return self._core.read_model(str(path))

    def compile(self, model: Any) -> Any:
        """A model of fixed shapes, compiled."""
        return self._core.compile_model(model, self.name, self._options)

    def serialised(self, compiled: Any) -> bytes:
        """What was compiled, to be stored."""
        stream = io.BytesIO()
        compiled.export_model(stream)
        return stream.getvalue()

    def restore(self, blob: NDArray[np.uint8]) -> Any:
        """What `serialised` gave, compiled."""
        return self._core.import_model(self._openvino.Tensor(blob), self.name, self._options)

    def _description(self) -> dict[str, str]:
        """What the device says it is; of a processor also its instructions, since a name may stand for several."""
        telling = [
            name
            for name in self._core.get_property(self.name, "SUPPORTED_PROPERTIES")
            if name.endswith(_TELLING)
        ]
        facts = {name: str(self._core.get_property(self.name, name)) for name in sorted(telling)}
        if self.name == "CPU":
            from perfusion.devices.system import cpu_flags

            flags = " ".join(cpu_flags(Path("/")))
            facts["flags"] = hashlib.sha256(flags.encode()).hexdigest()[:16]
        return facts

    def _check_precision(self, precision: str) -> None:
        if precision.upper() not in self._capabilities:
            known = [name for name in _PRECISIONS if name.upper() in self._capabilities]
            title = self._core.get_property(self.name, "FULL_DEVICE_NAME")
            raise DeviceError(
                f"The precision {precision} was asked for, and OpenVINO's device {self.name} ({title}) has no "
                f"instructions for it; it computes in {' or '.join(known)}. Ask for one of these."
            )


def _allowed_threads() -> int:
    """OpenVINO's own choice (0), unless this process may use only some cores, or a share of them."""
    from perfusion.devices.system import cores

    allowed = cores(Path("/"))
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise DeviceError('OpenVINO is not installed. pip install "perfusion-edge[openvino]".') from error
    return openvino
