"""Running one engine: the same face as a graph in onnxruntime, over fixed buffers on the GPU.

Everything goes through tensors' names and one path serves TensorRT 10.3 to 11 and TensorRT for RTX. An engine has
static shape_ranges: a batch is split to them (and filled up by repeating its last row), and the concepts of a call are
filled up with zeros to the engine's slots.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import BundleError, PerfusionError, RequestError
from perfusion.files import writing
from perfusion.tensorrt.cuda import Cuda
from perfusion.tensorrt.deserialise import load_engine
from perfusion.tensorrt.logger import KeptErrors

__all__ = ["Arena", "TensorRTGraph"]

Array = NDArray[np.float32]
Shape = tuple[int, ...]

_log = logging.getLogger(__name__)

_CONCEPT_AXIS = {
    "key_gate": 2, "value_gate": 2, "concept_keys": 0, "concept_values": 0, "concept_embeddings": 0,
}  # fmt: skip
_WITHOUT_ROWS = frozenset({"timestep", "concept_keys", "concept_values", "concept_embeddings"})
"""Inputs that all rows of a call share; every other has a row a prompt or picture in its first dimension. The timestep
has too where the bundle is of format version 2."""


class Arena:
    """The GPU memory in which all engines of one runtime compute, one after the other."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.address = 0
        self.size = 0

    def reserve(self, size: int) -> None:
        """Make it at least this large. What was in it is lost, and its address may change."""
        if size > self.size:
            self.close()
            self.address, self.size = self.cuda.allocate(size), size

    def close(self) -> None:
        if self.address:
            self.cuda.activate()
            self.cuda.release(self.address)
        self.address = self.size = 0


@dataclass(frozen=True, kw_only=True)
class _ShapeRange:
    """The shapes one shape range of an engine takes, by input: the smallest and the largest."""

    index: int
    least: Mapping[str, Shape]
    most: Mapping[str, Shape]
    shared: frozenset[str]  # inputs without a row a prompt or picture

    @property
    def rows(self) -> range:
        """How many rows a call may have."""
        name = next(name for name in self.least if name not in self.shared)
        return range(self.least[name][0], self.most[name][0] + 1)

    def takes(self, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Whether every shape fits, the number of rows apart."""
        return all(
            array.ndim == len(self.least[name])
            and all(
                low <= size <= high
                for axis, (low, size, high) in enumerate(
                    zip(self.least[name], array.shape, self.most[name], strict=True)
                )
                if axis > 0 or name in self.shared
            )
            for name, array in feeds.items()
        )


class TensorRTGraph:
    """One engine, opened; called with a graph's inputs by name it gives the graph's outputs in float32.

    An array that is the same object as in the last call is not uploaded again and must not be changed in place;
    `changing` names the inputs for which this does not hold.
    """

    def __init__(
        self,
        file: Path,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        trt: Any,
        runtime: Any,
        logger: KeptErrors,
        arena: Arena,
        compiles: bool = False,
        changing: frozenset[str] = frozenset({"sample", "timestep", "latent_sample"}),
    ) -> None:
        """Load the engine in `file`; `runtime` and `logger` are of `deserialise.make_runtime`.

        `compiles`: this TensorRT compiles for the GPU at the first run (TensorRT for RTX); what it compiled is kept
        beside the engine.

        Raises:
            DeviceError: it was built by another TensorRT or for another GPU.
            BundleError: it has other inputs or outputs than expected.
        """
        self._path = file
        self._trt = trt
        self._logger = logger
        self._arena = arena
        self._cuda = arena.cuda
        self._cuda.activate()
        self._changing = changing
        self._engine = load_engine(file, trt, runtime, logger)
        self._inputs, self._outputs = self._ends(inputs, outputs)
        self._kinds = {
            name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            for name in (*self._inputs, *self._outputs)
        }
        # a bundle of format version 2 has regions, and a timestep for each row
        self._shared = _WITHOUT_ROWS - {"timestep"} if "regions" in self._inputs else _WITHOUT_ROWS
        self._shape_ranges = [
            self._shape_range(index) for index in range(self._engine.num_optimization_profiles)
        ]
        self._context = self._make_context(compiles)
        self._buffers: dict[str, tuple[int, int]] = {}
        self._sources: dict[str, tuple[NDArray[Any], int, int]] = {}
        self._active = 0

    def run(self, **feeds: NDArray[Any]) -> dict[str, Array]:
        """Run the engine; all outputs by name.

        Raises:
            RequestError: more concepts than the engine has slots for, or a size it was not built for.
            PerfusionError: TensorRT failed, for example for lack of memory, or the inputs are not the graph's.
        """
        self._cuda.activate()
        total = self._rows(feeds)
        filled = {name: self._filled(name, array) for name, array in feeds.items()}
        fitting = [shape_range for shape_range in self._shape_ranges if shape_range.takes(filled)]
        if not fitting:
            raise RequestError(self._unfit(filled))
        pieces = []
        at = 0
        try:
            while at < total:
                shape_range, count = _split(fitting, total - at)
                pieces.append(self._piece(feeds, filled, shape_range, at, count))
                at += count
        except BaseException:
            self._sources.clear()  # nobody knows what lies in the buffers now
            with suppress(PerfusionError):
                self._cuda.wait()  # a copy may still read an array
            raise
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in self._outputs}

    def close(self) -> None:
        """Give the engine's memory back; it runs no more."""
        buffers, self._buffers, self._sources = self._buffers, {}, {}
        try:
            self._cuda.activate()
            for address, _ in buffers.values():
                self._cuda.release(address)
            self._save_cache()
        finally:
            self._context = self._engine = None

    def _ends(self, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The engine's inputs and outputs, held against what is expected."""
        engine, mode = self._engine, self._trt.TensorIOMode.INPUT
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = [name for name in names if engine.get_tensor_mode(name) == mode]
        given = [name for name in names if name not in found]
        if sorted(found) != sorted(inputs) or sorted(given) != sorted(outputs):
            raise BundleError(
                f"{self._path} takes {', '.join(found)} and gives {', '.join(given)}; expected "
                f"{', '.join(inputs)} and {', '.join(outputs)}. Build the engine again."
            )
        return tuple(found), tuple(given)

    def _rows(self, feeds: Mapping[str, NDArray[Any]]) -> int:
        """How many rows a call has, whose inputs are held against the engine's."""
        if feeds.keys() != set(self._inputs):
            raise PerfusionError(
                f"{self._path.name} takes {', '.join(self._inputs)} and was given {', '.join(feeds) or 'nothing'}."
            )
        rows = {name: array.shape[:1] for name, array in feeds.items() if name not in self._shared}
        if len(set(rows.values())) > 1:
            found = ", ".join(f"{name} {list(feeds[name].shape)}" for name in rows)
            raise PerfusionError(f"The inputs of {self._path.name} do not have equally many rows: {found}.")
        return math.prod(next(iter(rows.values())))

    def _shape_range(self, index: int) -> _ShapeRange:
        least, most = {}, {}
        for name in self._inputs:
            shape = tuple(self._engine.get_tensor_shape(name))
            if -1 in shape:
                smallest, _, largest = self._engine.get_tensor_profile_shape(name, index)
                least[name], most[name] = tuple(smallest), tuple(largest)
            else:
                least[name] = most[name] = shape
        return _ShapeRange(index=index, least=least, most=most, shared=self._shared)

    def _make_context(self, compiles: bool) -> Any:
        """A context without memory of its own: it computes in the arena."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._cache, self._compiled = None, b""
        if compiles:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            self._cache = config.create_runtime_cache()
            with suppress(OSError):  # there is none at first
                kept = self._cache_path.read_bytes()
                if self._cache.deserialize(kept):
                    self._compiled = kept
                else:
                    _log.info("%s is of another driver or GPU and is made anew", self._cache_path)
            config.set_runtime_cache(self._cache)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise PerfusionError(
                f"{self._path} could not be prepared: {self._logger.last or 'TensorRT gave no reason'}."
            )
        return context

    @property
    def _cache_path(self) -> Path:
        return self._path.with_suffix(".jit")

    def _save_cache(self) -> None:
        """Keep what was compiled for this GPU, so that the next start need not; a folder may be read-only."""
        if self._cache is None:
            return
        data = self._cache.serialize()
        self._cache = None
        try:
            if data is not None and memoryview(data).cast("B") != self._compiled:
                with writing(self._cache_path) as file:
                    file.write(memoryview(data))
        except PerfusionError as error:
            _log.info("what was compiled for this GPU is not kept: %s", error)

    def _filled(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """An input with as many concepts as the engine wants, the added ones zero and so without effect."""
        axis = _CONCEPT_AXIS.get(name)
        if axis is None:
            return array
        slots = max(shape_range.most[name][axis] for shape_range in self._shape_ranges)
        least = min(shape_range.least[name][axis] for shape_range in self._shape_ranges)
        if array.shape[axis] > slots:
            raise RequestError(
                f"{array.shape[axis]} rows of concepts are used at once, and the engine {self._path.name} has slots "
                f"for {slots}. Use fewer concepts, build an engine with --concepts {array.shape[axis]}, or use the "
                "provider 'cuda' or 'cpu'."
            )
        if array.shape[axis] >= least:
            return array
        added = [(0, 0)] * array.ndim
        added[axis] = (0, least - array.shape[axis])
        return np.pad(array, added)

    def _unfit(self, feeds: Mapping[str, NDArray[Any]]) -> str:
        """Which input no shape range takes, and what would be taken."""
        for name, array in feeds.items():
            if not any(shape_range.takes({name: array}) for shape_range in self._shape_ranges):
                built = " or ".join(
                    dict.fromkeys(
                        f"{list(shape_range.least[name])}"
                        + (
                            f" to {list(shape_range.most[name])}"
                            if shape_range.least[name] != shape_range.most[name]
                            else ""
                        )
                        for shape_range in self._shape_ranges
                    )
                )
                return (
                    f"The engine {self._path.name} was built for {name} of {built} and is asked for "
                    f"{list(array.shape)}. Draw pictures of the size it was built for, build one for this size with "
                    "perfusion-export --engine, or use the provider 'cuda' or 'cpu'."
                )
        return f"The engine {self._path.name} was not built for these sizes together. Build one with perfusion-export."

    def _piece(
        self,
        feeds: Mapping[str, NDArray[Any]],
        filled: Mapping[str, NDArray[Any]],
        shape_range: _ShapeRange,
        at: int,
        count: int,
    ) -> dict[str, Array]:
        """Rows `at` to `at + count` in one execution."""
        rows = max(count, shape_range.rows.start)
        if shape_range.index != self._active:
            self._must(
                self._context.set_optimization_profile_async(shape_range.index, self._cuda.stream),
                "take a shape range",
            )
            self._active = shape_range.index
        kept = []  # an upload reads its array until the end
        for name, array in filled.items():
            part = array if name in self._shared else array[at : at + count]
            if len(part) < rows and name not in self._shared:
                part = np.concatenate([part, np.repeat(part[-1:], rows - count, axis=0)])
            kept.append(self._feed(name, part, (feeds[name], at, rows)))
        if missing := self._context.infer_shapes():
            raise PerfusionError(f"{self._path} does not know the shapes of {', '.join(missing)}.")
        results = {name: self._bind_output(name) for name in self._outputs}
        self._execute()
        for name, result in results.items():
            self._cuda.download(self._buffers[name][0], result)
        self._cuda.wait()
        return {name: result[:count].astype(np.float32, copy=False) for name, result in results.items()}

    def _feed(
        self, name: str, part: NDArray[Any], source: tuple[NDArray[Any], int, int]
    ) -> NDArray[Any] | None:
        """Put an input into its buffer, unless it lies there already; gives the array that is being copied."""
        self._must(self._context.set_input_shape(name, part.shape), f"take {name} of shape {part.shape}")
        size = part.size * self._kinds[name].itemsize
        self._reserve(name, size)
        last = self._sources.get(name)
        same = last is not None and last[0] is source[0] and last[1:] == source[1:]
        if (same and name not in self._changing) or not size:
            return None
        array = np.ascontiguousarray(part, self._kinds[name])
        self._cuda.upload(array, self._buffers[name][0])
        self._sources[name] = source
        return array

    def _bind_output(self, name: str) -> NDArray[Any]:
        result = np.empty(tuple(self._context.get_tensor_shape(name)), self._kinds[name])
        self._reserve(name, result.nbytes)
        return result

    def _execute(self) -> None:
        self._arena.reserve(int(self._engine.device_memory_size_v2))
        self._context.set_device_memory(self._arena.address, self._arena.size)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise PerfusionError(
                f"{self._path} could not be run: {self._logger.last or 'TensorRT gave no reason'}."
            )

    def _reserve(self, name: str, size: int) -> None:
        """A buffer of at least `size` bytes for a tensor, at an address that stays while it is large enough."""
        address, room = self._buffers.get(name, (0, -1))
        if size > room:
            if address:
                self._cuda.wait()
                del self._buffers[name]  # before there may be no room for the new one
                self._cuda.release(address)
            self._sources.pop(name, None)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
            self._must(self._context.set_tensor_address(name, address), f"take the address of {name}")

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise PerfusionError(
                f"{self._path} does not {what}: {self._logger.last or 'TensorRT gave no reason'}."
            )


def _split(shape_ranges: Sequence[_ShapeRange], left: int) -> tuple[_ShapeRange, int]:
    """The shape range for the next rows of a batch and how many it serves: as many as possible with few in vain."""
    exact = [shape_range for shape_range in shape_ranges if left in shape_range.rows]
    if exact:
        return min(exact, key=lambda shape_range: shape_range.rows.stop), left
    smaller = [shape_range for shape_range in shape_ranges if shape_range.rows.stop - 1 < left]
    if smaller:
        largest = max(smaller, key=lambda shape_range: shape_range.rows.stop)
        return largest, largest.rows.stop - 1
    return min(shape_ranges, key=lambda shape_range: shape_range.rows.start), left
