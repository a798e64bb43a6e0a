"""One of a bundle's graphs on OpenVINO, compiled for each set of shapes that it is fed.

OpenVINO computes fastest with fixed shapes. Concepts and regions are inputs, as everywhere: another concept compiles
nothing, and rows of concepts are filled up to a few numbers, so that one more of them seldom does.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.graph_io import GraphIO
from perfusion.errors import BundleError, PerfusionError
from perfusion.runtime.compute.call_pieces import call_pieces, joined, piece_shapes
from perfusion.runtime.compute.compiled_models import CompiledModels
from perfusion.runtime.compute.graph_ends import check_ends, check_shape
from perfusion.runtime.compute.openvino_device import OpenVINODevice
from perfusion.runtime.compute.residency import free_memory
from perfusion.runtime.compute.waits import waits

__all__ = ["OpenVINOGraph", "slots_for"]

Array = NDArray[np.float32]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The shape of each input by its name, in the order of the names."""

_log = logging.getLogger(__name__)

_SLOTS = 4  # rows of concepts are filled up to a multiple of so many
_MOST_SHAPES = 4  # that stay ready: with and without guidance, of two sizes
_MOST_ROWS = 16  # computed at once
_HEAVY = 256 << 20  # bytes of weights from which on a processor computes two rows at once
_CONCEPT_AXES = {
    "key_gate": 2, "value_gate": 2, "concept_keys": 0, "concept_values": 0, "concept_embeddings": 0,
}  # fmt: skip


class OpenVINOGraph:
    """One graph, ready to run."""

    def __init__(
        self,
        device: OpenVINODevice,
        graph_io: GraphIO,
        identity: str,
        compiled_models: CompiledModels | None = None,
        weights: Iterable[Path] = (),
    ) -> None:
        """Read a graph that must have exactly these ends; it is compiled when it first runs.

        `identity`: a checksum of all its files. `compiled_models`: where what was compiled is kept, if anywhere.
        `weights`: files that it may read beside those which begin with its own name.

        Raises:
            BundleError: not a graph, or one with other inputs or outputs.
        """
        self._device, self._path = device, graph_io.file
        self._store = compiled_models if device.keeps else None
        outputs = graph_io.outputs
        self._outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        self._model = _model(device, graph_io.file)
        takes, gives = (
            [port.any_name for port in ports] for ports in (self._model.inputs, self._model.outputs)
        )
        check_ends(self._path, takes, gives, graph_io.inputs, self._outputs)
        self._inputs = {port.any_name: port for port in self._model.inputs}
        files = sorted({self._path, *self._path.parent.glob(f"{self._path.name}*"), *weights})
        self._size = sum(file.stat().st_size for file in files)
        self._identity = [identity, *_stamp(files)]
        self._rows_in = graph_io.inputs[0]
        self._most_rows = 2 if device.name == "CPU" and self._size >= _HEAVY else _MOST_ROWS
        self._requests: OrderedDict[Shapes, Any] = OrderedDict()

    def run(self, **feeds: NDArray[Any]) -> dict[str, Array]:
        """All outputs by name, in float32.

        Raises:
            BundleError: an input of a shape the graph does not take: bundle.json and the graph disagree.
            PerfusionError: OpenVINO failed, for example for lack of memory.
        """
        for name, array in feeds.items():
            self._check(name, array)
        pieces = call_pieces(feeds, len(feeds[self._rows_in]), self._most_rows)
        return joined([self._infer(piece) for piece in pieces])

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Compile for a call of these shapes, or find that it has been done; whether anything was done now.

        Raises:
            PerfusionError: OpenVINO cannot compile the graph.
        """
        compiled = [self._prepare(piece) for piece in self._pieces(shapes)]
        return any(compiled)

    def is_stored(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a later start finds a call of these shapes compiled."""
        store = self._store
        return store is not None and all(store.has(self._key(piece)) for piece in self._pieces(shapes))

    def tile(self, height: int, width: int) -> int | None:
        """None: latents of any size are taken whole."""

    def close(self) -> None:
        """Give the graph's memory back; it runs no more."""
        self._requests.clear()
        self._inputs = {}
        self._model = None

    def _pieces(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Shapes]:
        """The shapes that a call is computed in."""
        pieces = piece_shapes(shapes, shapes[self._rows_in][0], self._most_rows)
        return [tuple(sorted(piece.items())) for piece in pieces]

    def _prepare(self, shapes: Shapes) -> bool:
        if shapes in self._requests or self._from_disk(shapes) is not None:
            return False
        return self._compile_in_turn(shapes)[1]

    def _infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
        """The answers to feeds of one of the few sizes that are compiled."""
        tensors = {
            name: np.ascontiguousarray(_filled(name, array), self._inputs[name].element_type.to_dtype())
            for name, array in feeds.items()
        }
        shapes = tuple(sorted((name, array.shape) for name, array in tensors.items()))
        try:
            answers = self._request(shapes).infer(tensors)
        except PerfusionError:
            raise
        except Exception as error:  # OpenVINO's errors have no other base
            raise PerfusionError(f"{self._path} could not be run: {_reason(error)}.") from error
        return {name: np.array(answers[name], np.float32) for name in self._outputs}

    def _request(self, shapes: Shapes) -> Any:
        """An inference request for these shapes, made where none of the last few has them."""
        if shapes not in self._requests:
            self._make_room()
            compiled = self._from_disk(shapes)
            if compiled is None:
                compiled, _ = self._compile_in_turn(shapes)
            self._requests[shapes] = compiled.create_infer_request()
        self._requests.move_to_end(shapes)
        while len(self._requests) > _MOST_SHAPES:
            self._requests.popitem(last=False)
        return self._requests[shapes]

    def _make_room(self) -> None:
        """Let go of what was not used the longest, where the memory has no room to compile another one."""
        need = 3 * self._size  # what is read, what is computed with, and some scratch
        while self._requests and (free := free_memory()) is not None and free < need:
            self._requests.popitem(last=False)

    def _key(self, shapes: Shapes) -> dict[str, Any]:
        """All that decides what these shapes are compiled to."""
        sizes = {name: list(shape) for name, shape in shapes}
        return {"graph": self._identity, "shapes": sizes, **self._device.facts}

    def _from_disk(self, shapes: Shapes) -> Any:
        """What an earlier run compiled; None where there is nothing, or OpenVINO does not take it."""
        if self._store is None:
            return None
        key = self._key(shapes)
        blob = self._store.load(key)
        if blob is None:
            return None
        try:
            return self._device.restore(blob)
        except Exception as error:  # OpenVINO's errors have no other base
            self._store.discard(key, _reason(error))
            return None

    def _compile_in_turn(self, shapes: Shapes) -> tuple[Any, bool]:
        """Compile, unless another process is at it, whose result is then waited for; whether it was done here."""
        if self._store is None:
            return self._compile(shapes), True
        with self._store.turn(self._key(shapes)):
            compiled = self._from_disk(shapes)
            return (self._compile(shapes), True) if compiled is None else (compiled, False)

    def _compile(self, shapes: Shapes) -> Any:
        """Compile for these shapes, and keep the result on the disk."""
        sizes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in shapes)
        waits.info("OpenVINO compiles %s for %s, once for these sizes", self._path.name, self._device.name)
        began = time.perf_counter()
        try:
            model = self._model.clone()
            model.reshape({name: list(shape) for name, shape in shapes})
            compiled = self._device.compile(model)
        except Exception as error:  # OpenVINO's errors have no other base
            raise PerfusionError(
                f"OpenVINO could not compile {self._path} for {self._device.name} and {sizes}: {_reason(error)}."
            ) from error
        waits.info("compiled %s in %.1f s", self._path.name, time.perf_counter() - began)
        _log.debug("it is for %s", sizes)
        self._keep(shapes, compiled)
        return compiled

    def _keep(self, shapes: Shapes, compiled: Any) -> None:
        """Store what was compiled, where memory and disk have room for a copy of it."""
        size, free = (
            2 * self._size,
            free_memory(),
        )  # weights may be stored in half of what is computed with
        if self._store is None or not self._store.room_for(size) or (free is not None and 2 * size > free):
            return
        self._store.store(self._key(shapes), self._device.serialised(compiled))

    def _check(self, name: str, array: NDArray[Any]) -> None:
        """Hold an input's shape against the graph's."""
        shape = self._inputs[name].partial_shape
        sides = [None if side.is_dynamic else side.get_length() for side in shape]
        check_shape(self._path, name, sides, array, shape)


def _model(device: OpenVINODevice, path: Path) -> Any:
    try:
        return device.read(path)
    except Exception as error:  # OpenVINO's errors have no other base
        raise BundleError(f"{path} could not be opened as a graph: {_reason(error)}.") from error


def _filled(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """An input with its rows of concepts filled up; those added are zero and so without effect."""
    axis = _CONCEPT_AXES.get(name)
    if axis is None:
        return array
    lacking = slots_for(array.shape[axis]) - array.shape[axis]
    return np.pad(array, [(0, lacking if side == axis else 0) for side in range(array.ndim)])


def slots_for(rows: int) -> int:
    """The number that so many rows of concepts are filled up to."""
    return max(_SLOTS, -(-rows // _SLOTS) * _SLOTS)


def _stamp(files: Iterable[Path]) -> list[int]:
    """Sizes and times of files: a checksum that nobody compared may be that of another file."""
    stats = [file.stat() for file in files]
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message: those before name its own source files."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).strip()[:300].rstrip(".")
