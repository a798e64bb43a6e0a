"""One onnxruntime session with its inputs and outputs in buffers on the device, kept from call to call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHANGING", "Binding"]

CHANGING = frozenset({"sample", "timestep", "latent_sample"})
"""Inputs that are uploaded at every call; any other array that is fed a second time is on the device already."""

_MOST_SLOTS = 4  # sets of shapes: with and without guidance, and the last, smaller part of a batch

Array = NDArray[np.float32]


class Binding:
    """A session whose calls copy only what is new.

    For every set of input shapes there are buffers on the device with fixed addresses. An array that is the same
    object as in the last call of these shapes is not copied again, so it must not be changed in place; those
    named in `CHANGING` may be.
    """

    def __init__(
        self, onnxruntime: Any, session: Any, outputs: Sequence[str], device: str, *, capture: bool = False
    ) -> None:
        """`device`: "cpu" or "cuda". `capture`: record a CUDA graph for each set of shapes and replay it; the
        session must have been opened with `enable_cuda_graph`."""
        self._onnxruntime = onnxruntime
        self._session = session
        self._outputs = list(outputs)
        self._device = device
        self._capture = capture
        self._captured = 0
        self._slots: OrderedDict[tuple[Any, ...], _Slots] = OrderedDict()

    def run(
        self, feeds: Mapping[str, NDArray[Any]], cast: Callable[[str, NDArray[Any]], NDArray[Any]]
    ) -> dict[str, Array]:
        """All outputs by name, in float32, in memory of their own.

        `cast(name, array)` gives an input in the graph's own precision; it is asked only for what is uploaded.
        """
        slots = self._slots_of(feeds)
        for name, array in feeds.items():
            if name in CHANGING or slots.sources.get(name) is not array:
                slots.upload(name, cast(name, array))
                slots.sources[name] = array
        answers = slots.run(self._session, self._options(slots))
        return dict(zip(self._outputs, answers, strict=True))

    def _slots_of(self, feeds: Mapping[str, NDArray[Any]]) -> _Slots:
        signature = tuple((name, array.shape) for name, array in sorted(feeds.items()))
        if signature not in self._slots:
            self._make_room()
            number = self._captured + 1 if self._capture and self._captured < _MOST_SLOTS else None
            self._captured += number is not None
            self._slots[signature] = _Slots(
                self._onnxruntime, self._session.io_binding(), self._outputs, self._device, number
            )
        self._slots.move_to_end(signature)
        return self._slots[signature]

    def _make_room(self) -> None:
        """Drop the buffers used longest ago, never those whose addresses a recorded CUDA graph holds."""
        free = [key for key, slots in self._slots.items() if slots.graph is None]
        if len(free) >= _MOST_SLOTS:
            del self._slots[free[0]]

    def _options(self, slots: _Slots) -> Any:
        """Which recorded CUDA graph to replay; the first run of new shapes finds the outputs' sizes, unrecorded."""
        if not self._capture:
            return None
        options = self._onnxruntime.RunOptions()
        number = slots.graph if slots.outputs and slots.graph is not None else -1
        options.add_run_config_entry("gpu_graph_annotation_id", str(number))
        return options


class _Slots:
    """The buffers of one set of input shapes."""

    def __init__(
        self, onnxruntime: Any, binding: Any, names: list[str], device: str, graph: int | None
    ) -> None:
        self.sources: dict[str, NDArray[Any]] = {}
        self.outputs: list[Any] = []
        self.graph = graph
        self._onnxruntime = onnxruntime
        self._binding = binding
        self._names = names
        self._device = device
        self._buffers: dict[str, Any] = {}

    def upload(self, name: str, array: NDArray[Any]) -> None:
        """Copy an input to its buffer on the device, made and bound at the first call."""
        if name not in self._buffers:
            self._buffers[name] = self._buffer(array)
            self._binding.bind_ortvalue_input(name, self._buffers[name])
        if array.size:
            self._buffers[name].update_inplace(np.ascontiguousarray(array))

    def run(self, session: Any, options: Any) -> list[Array]:
        """Run the session on the buffers; copies of its outputs, in float32.

        The first call finds out how large the outputs are and makes buffers for them, so that every later one writes
        to the same addresses.
        """
        if not self.outputs:
            return self._first_run(session, options)
        session.run_with_iobinding(self._binding, options)
        return [np.array(buffer.numpy(), np.float32) for buffer in self.outputs]

    def _first_run(self, session: Any, options: Any) -> list[Array]:
        """Run with outputs that onnxruntime allocates, then bind buffers of the same shapes and kinds in their place.

        What `get_outputs` gives lies inside the binding: below onnxruntime 1.30 it is freed once the outputs are
        cleared or bound anew. So its contents are copied out before, and no reference to it is kept.
        """
        for name in self._names:
            self._binding.bind_output(name, self._device, 0)
        session.run_with_iobinding(self._binding, options)
        answers = [np.array(value.numpy()) for value in self._binding.get_outputs()]
        self._binding.clear_binding_outputs()
        for name, answer in zip(self._names, answers, strict=True):
            buffer = self._buffer(answer)
            self._binding.bind_ortvalue_output(name, buffer)
            self.outputs.append(buffer)
        return [answer.astype(np.float32, copy=False) for answer in answers]

    def _buffer(self, array: NDArray[Any]) -> Any:
        """A buffer on the device for arrays of this shape and kind."""
        make = self._onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return make(array.shape, array.dtype.type, self._device, 0)
