"""onnxruntime sessions that say what they got and what they were fed.

onnxruntime falls back to the CPU in silence and reports a wrong input by its graph's insides; both are
answered with a sentence here.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import BundleError, DeviceError, PerfusionError
from perfusion.onnx_runtime import import_onnxruntime, session_options
from perfusion.runtime.compute.binding import Binding
from perfusion.runtime.compute.graph_ends import check_ends, check_shape

__all__ = ["PROVIDERS", "OnnxGraph", "available_providers", "require_provider"]

PROVIDERS = ("cpu", "cuda")

_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CUDA_OPTIONS = {
    # The default times several algorithms and keeps the fastest: two runs may then differ in their last bits.
    "cudnn_conv_algo_search": "HEURISTIC",
}
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def available_providers() -> tuple[str, ...]:
    """What this onnxruntime was built for: "cpu", and "cuda" where it is onnxruntime-gpu.

    Raises:
        DeviceError: onnxruntime is missing.
    """
    available = _onnxruntime().get_available_providers()
    return tuple(name for name in PROVIDERS if _NAMES[name] in available)


def require_provider(provider: str) -> None:
    """Refuse a provider that this onnxruntime was built without.

    Raises:
        DeviceError: onnxruntime is missing or was built without it.
    """
    if provider not in available_providers():
        available = ", ".join(_onnxruntime().get_available_providers())
        raise DeviceError(
            f"{_NAMES[provider]} was asked for, and onnxruntime has {available}. Uninstall it "
            f'and pip install "perfusion-edge[{provider}]", or use the provider "cpu".'
        )


class OnnxGraph:
    """One graph, opened; called with its inputs by name it gives its first output in float32.

    On CUDA its inputs and outputs stay in buffers on the device (`Binding`): an array that is the same object as
    in the last call is not uploaded again and must not be changed in place, but for those in `binding.CHANGING`.
    """

    def __init__(
        self,
        path: Path,
        inputs: Sequence[str],
        outputs: str | Sequence[str],
        provider: str,
        threads: int | None = None,
        *,
        bound: bool | None = None,
        capture: bool = False,
    ) -> None:
        """Open a graph that must have exactly these ends.

        `bound`: keep inputs and outputs in buffers on the device, by default only on CUDA: on the CPU arrays are
        read where they lie. `capture`: record CUDA graphs; the provider must then serve every node.

        Raises:
            BundleError: not a graph, or one with other inputs or outputs.
            DeviceError: the provider could not be had.
        """
        self._path = path
        self._outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        self._session = _open(path, provider, threads, capture)
        takes, gives = (
            [end.name for end in ends] for ends in (self._session.get_inputs(), self._session.get_outputs())
        )
        check_ends(path, takes, gives, inputs, self._outputs)
        self._inputs = {end.name: (end.type, tuple(end.shape)) for end in self._session.get_inputs()}
        self._binding = (
            Binding(_onnxruntime(), self._session, self._outputs, provider, capture=capture)
            if (provider == "cuda" if bound is None else bound)
            else None
        )

    def __call__(self, **feeds: NDArray[Any]) -> NDArray[np.float32]:
        """The first output; see `run`."""
        return self.run(**feeds)[self._outputs[0]]

    def run(self, **feeds: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run the graph; all outputs by name.

        Raises:
            BundleError: an input of a shape the graph does not take: bundle.json and the graph disagree.
            PerfusionError: onnxruntime failed, for example for lack of memory.
        """
        for name, array in feeds.items():
            self._check(name, array)
        try:
            if self._binding is not None:
                return self._binding.run(feeds, self._cast)
            fed = {name: self._cast(name, array) for name, array in feeds.items()}
            answers = self._session.run(self._outputs, fed)
        except Exception as error:  # onnxruntime's errors have no other base
            raise PerfusionError(f"{self._path} could not be run: {_first_line(error)}.") from error
        return {
            name: np.asarray(answer, np.float32) for name, answer in zip(self._outputs, answers, strict=True)
        }

    def tile(self, height: int, width: int) -> int | None:
        """None: latents of any size are taken whole."""

    def close(self) -> None:
        """Give the graph's memory back; it runs no more."""
        self._binding = None
        self._session = None

    def _check(self, name: str, array: NDArray[Any]) -> None:
        """Hold an input's shape against the graph's."""
        shape = self._inputs[name][1]
        sides = [size if isinstance(size, int) else None for size in shape]
        check_shape(self._path, name, sides, array, list(shape))

    def _cast(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """The array in the graph's own precision."""
        kind = self._inputs[name][0]
        return array.astype(_FLOATS[kind], copy=False) if kind in _FLOATS else array


def _open(path: Path, provider: str, threads: int | None, capture: bool) -> Any:
    """A session on the provider that was asked for, and on no other."""
    onnxruntime = _onnxruntime()
    options = session_options(onnxruntime, _allowed_threads() if threads is None else threads)
    options.enable_mem_pattern = capture  # else the second run takes as much memory again, and is no faster
    if provider == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's and cuDNN's libraries, where pip installed them
    settings = {**_CUDA_OPTIONS, **({"enable_cuda_graph": "1"} if capture else {})}
    wanted: list[Any] = [(_NAMES["cuda"], settings)] if provider == "cuda" else []
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[*wanted, _NAMES["cpu"]])
    except Exception as error:  # onnxruntime's errors have no other base
        raise BundleError(f"{path} could not be opened as a graph: {_first_line(error)}.") from error
    if session.get_providers()[0] != _NAMES[provider]:
        raise DeviceError(
            f"{_NAMES[provider]} was asked for and onnxruntime took {session.get_providers()[0]}, probably "
            "because CUDA's or cuDNN's libraries were not found. Install them, or use the provider 'cpu'."
        )
    return session


def _allowed_threads() -> int:
    """onnxruntime's own choice (0), unless this process may use only some cores, or a share of them."""
    from perfusion.devices.system import cores

    allowed = cores(Path("/"))
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _onnxruntime() -> Any:
    return import_onnxruntime(
        'onnxruntime is not installed. pip install "perfusion-edge[cpu]", or [cuda] for an NVIDIA GPU.'
    )


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (text if len(text) <= 300 else text[:297] + "...").rstrip(".")
