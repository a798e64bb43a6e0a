"""A bundle's graphs on OpenVINO: Intel's and other processors, and Intel's GPUs and NPUs.

OpenVINO computes fastest with fixed shapes, so a graph is compiled for each set of input shapes that is fed and the
last few are held. Concepts and regions are inputs, as everywhere: another concept compiles nothing.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.graph_io import GraphIO
from perfusion.errors import BundleError, DeviceError, PerfusionError
from perfusion.runtime.compute.graph_ends import check_ends, check_shape
from perfusion.runtime.compute.residency import free_memory

__all__ = ["OpenVINOBackend", "OpenVINOGraph"]

Array = NDArray[np.float32]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

_MOST_SHAPES = 4  # with and without guidance, and the last, smaller part of a batch

_log = logging.getLogger(__name__)


class OpenVINOBackend:
    """OpenVINO on one of its devices, in float32."""

    planned = False

    def __init__(
        self, graph_io: Mapping[str, GraphIO], device: str = "CPU", threads: int | None = None
    ) -> None:
        """`device`: a name of OpenVINO's, such as "CPU", "GPU", "GPU.1" or "NPU". `threads`: of the processor.

        Raises:
            DeviceError: OpenVINO is missing, or sees no such device.
        """
        self._core = _openvino().Core()
        devices = self._core.available_devices
        if device not in devices and device not in {name.partition(".")[0] for name in devices}:
            raise DeviceError(
                f"OpenVINO's device {device} was asked for, and it sees {', '.join(devices)}. Install the driver of "
                "the device, or use the provider 'openvino' for the processor."
            )
        self.provider = "openvino" if device == "CPU" else f"openvino:{device}"
        self._graph_io, self._device = graph_io, device
        self._options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",  # else a processor with bfloat16 takes that unasked
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None and device == "CPU":
            self._options["INFERENCE_NUM_THREADS"] = threads

    def open(self, name: str) -> OpenVINOGraph:
        return OpenVINOGraph(self._core, self._graph_io[name], self._device, self._options)

    def admit(self, size: CallSize) -> None:
        """Its graphs take any size."""

    def free_memory(self) -> int | None:
        """The main memory's; how much a separate GPU has, nobody can tell."""
        return free_memory() if self._device in ("CPU", "NPU") else None

    def close(self) -> None:
        """Nothing is shared."""


class OpenVINOGraph:
    """One graph, compiled for the shapes it is fed."""

    def __init__(self, core: Any, graph_io: GraphIO, device: str, options: Mapping[str, Any]) -> None:
        """Read a graph that must have exactly these ends; it is compiled when it first runs.

        Raises:
            BundleError: not a graph, or one with other inputs or outputs.
        """
        self._core, self._path, self._device, self._options = core, graph_io.file, device, dict(options)
        outputs = graph_io.outputs
        self._outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        try:
            self._model = core.read_model(str(self._path))
        except Exception as error:  # OpenVINO's errors have no other base
            raise BundleError(f"{self._path} could not be opened as a graph: {_reason(error)}.") from error
        takes, gives = (
            [port.any_name for port in ports] for ports in (self._model.inputs, self._model.outputs)
        )
        check_ends(self._path, takes, gives, graph_io.inputs, self._outputs)
        self._inputs = {port.any_name: port for port in self._model.inputs}
        self._compiled: OrderedDict[Shapes, Any] = OrderedDict()

    def run(self, **feeds: NDArray[Any]) -> dict[str, Array]:
        """All outputs by name, in float32.

        Raises:
            BundleError: an input of a shape the graph does not take: bundle.json and the graph disagree.
            PerfusionError: OpenVINO failed, for example for lack of memory.
        """
        for name, array in feeds.items():
            self._check(name, array)
        tensors = {
            name: np.ascontiguousarray(array, self._inputs[name].element_type.to_dtype())
            for name, array in feeds.items()
        }
        shapes = tuple(sorted((name, array.shape) for name, array in tensors.items()))
        try:
            answers = self._request(shapes).infer(tensors)
        except Exception as error:  # OpenVINO's errors have no other base
            raise PerfusionError(f"{self._path} could not be run: {_reason(error)}.") from error
        return {name: np.array(answers[name], np.float32) for name in self._outputs}

    def tile(self, height: int, width: int) -> int | None:
        """None: latents of any size are taken whole."""

    def close(self) -> None:
        """Give the graph's memory back; it runs no more."""
        self._compiled.clear()
        self._inputs = {}
        self._model = None

    def _request(self, shapes: Shapes) -> Any:
        """An inference request for these shapes, compiled where none of the last few has them."""
        if shapes not in self._compiled:
            began = time.perf_counter()
            model = self._model.clone()
            model.reshape({name: list(shape) for name, shape in shapes})
            compiled = self._core.compile_model(model, self._device, self._options)
            self._compiled[shapes] = compiled.create_infer_request()
            seconds = time.perf_counter() - began
            _log.info("%s was compiled for %s in %.1f s", self._path.name, self._device, seconds)
        self._compiled.move_to_end(shapes)
        while len(self._compiled) > _MOST_SHAPES:
            self._compiled.popitem(last=False)
        return self._compiled[shapes]

    def _check(self, name: str, array: NDArray[Any]) -> None:
        """Hold an input's shape against the graph's."""
        shape = self._inputs[name].partial_shape
        sides = [None if side.is_dynamic else side.get_length() for side in shape]
        check_shape(self._path, name, sides, array, shape)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise DeviceError('OpenVINO is not installed. pip install "perfusion-edge[openvino]".') from error
    return openvino


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message: those before name its own source files."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).strip()[:300].rstrip(".")
