"""OpenVINO as a backend: Intel's and other processors, and Intel's GPUs and NPUs."""

from __future__ import annotations

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.description import Bundle
from perfusion.bundle.facts import control_facts, graph_facts
from perfusion.bundle.graph_io import graph_io_of
from perfusion.runtime.compute.compiled_models import CompiledModels
from perfusion.runtime.compute.openvino_device import OpenVINODevice
from perfusion.runtime.compute.openvino_graph import OpenVINOGraph
from perfusion.runtime.compute.residency import free_memory

__all__ = ["OpenVINOBackend"]


class OpenVINOBackend:
    """A bundle's graphs on one of OpenVINO's devices, in one precision."""

    planned = False

    def __init__(
        self, bundle: Bundle, device: str = "CPU", threads: int | None = None, precision: str = "fp32"
    ) -> None:
        """`device`: a name of OpenVINO's, such as "CPU", "GPU", "GPU.1" or "NPU". `threads`: of the processor.

        Raises:
            DeviceError: OpenVINO is missing, sees no such device, or the device does not compute in the precision.
        """
        self._device = OpenVINODevice(device, threads, precision)
        self.precision = precision
        self.provider = "openvino" if device == "CPU" else f"openvino:{device}"
        self._graph_io = graph_io_of(bundle)
        self._facts, self._folder = graph_facts(bundle) | control_facts(bundle), bundle.folder
        self._compiled_models = CompiledModels()

    def open(self, name: str) -> OpenVINOGraph:
        facts = self._facts[name]
        weights = [self._folder / file for file in facts.needs]
        return OpenVINOGraph(self._device, self._graph_io[name], facts.sha256, self._compiled_models, weights)

    def admit(self, size: CallSize) -> None:
        """Its graphs take any size."""

    def free_memory(self) -> int | None:
        """The main memory's; how much a separate GPU has, nobody can tell."""
        return free_memory() if self._device.name in ("CPU", "NPU") else None

    def close(self) -> None:
        """Nothing is shared."""
