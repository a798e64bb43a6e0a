"""What computes the graphs: onnxruntime on a processor or on CUDA, OpenVINO, or TensorRT with engines built beforehand.

Each opens a bundle's graphs one by one, by name, and gives something that runs. Nothing above knows which it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.description import Bundle
from perfusion.bundle.graph_io import GraphIO, graph_io_of
from perfusion.errors import RequestError
from perfusion.runtime.compute.onnx_graph import OnnxGraph, available_providers, require_provider
from perfusion.runtime.compute.residency import free_device_memory, free_memory
from perfusion.tensorrt.flavour import FLAVOURS

__all__ = [
    "PRECISIONS", "PROVIDERS", "Backend", "OnnxBackend", "OpenGraph", "check_precision", "make_backend", "offers",
]  # fmt: skip

Array = NDArray[np.float32]

PROVIDERS = ("cpu", "cuda", "trt", "trt-rtx", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16")


class OpenGraph(Protocol):
    """One graph, ready to run."""

    def run(self, **feeds: NDArray[Any]) -> dict[str, Array]:
        """All outputs by name, in float32."""

    def tile(self, height: int, width: int) -> int | None:
        """The side of the tiles in which latents of this size must be decoded; None for all at once."""

    def close(self) -> None:
        """Give its memory back."""


class Backend(Protocol):
    """Opens graphs by their names."""

    provider: str
    planned: bool  # whether a memory plan, which is made for onnxruntime, holds for it

    @property
    def precision(self) -> str | None:
        """What it was told to compute in; None where it computes as the graphs were exported."""

    def open(self, name: str) -> OpenGraph:
        """Open the graph `name`. Raises BundleError or DeviceError."""

    def admit(self, size: CallSize) -> None:
        """Refuse a call whose pixels, rows of concepts or tokens no graph takes. Raises RequestError."""

    def free_memory(self) -> int | None:
        """Bytes free where the graphs compute; None where nobody can tell."""

    def close(self) -> None:
        """Give back what the graphs share."""


class OnnxBackend:
    """onnxruntime on "cpu" or "cuda"."""

    planned = True
    precision = None

    def __init__(
        self, graph_io: Mapping[str, GraphIO], provider: str, threads: int | None, *, capture: bool = False
    ) -> None:
        """`capture`: record the UNet's calls as CUDA graphs.

        Raises:
            DeviceError: onnxruntime is missing or was built without the provider.
        """
        require_provider(provider)
        self.provider = provider
        self._graph_io = graph_io
        self._threads = threads
        self._capture = capture

    def open(self, name: str) -> OpenGraph:
        graph_io = self._graph_io[name]
        capture = self._capture and name == "unet"
        return OnnxGraph(
            graph_io.file, graph_io.inputs, graph_io.outputs, self.provider, self._threads, capture=capture
        )

    def admit(self, size: CallSize) -> None:
        """Its graphs take any size."""

    def free_memory(self) -> int | None:
        """The main memory's, or the GPU's."""
        return free_memory() if self.provider == "cpu" else free_device_memory()

    def close(self) -> None:
        """Nothing is shared."""


def make_backend(
    bundle: Bundle,
    provider: str,
    threads: int | None = None,
    *,
    cuda_graph: bool = False,
    precision: str = "fp32",
) -> Backend:
    """The backend of that name; "openvino:GPU" and the like name a device of OpenVINO's.

    `precision`: what OpenVINO computes in, one of `PRECISIONS`; the others compute in the graphs' own.

    Raises:
        RequestError: no such provider or precision, CUDA graphs without CUDA, or a precision without OpenVINO.
        DeviceError: it is not installed, the machine has no such device, the device does not compute in the
            precision, or no engine of the bundle fits it.
    """
    name, colon, device = provider.partition(":")
    if name not in PROVIDERS or (colon and (name != "openvino" or not device)):
        raise RequestError(f"The provider is {provider!r}, expected one of auto, {', '.join(PROVIDERS)}.")
    if cuda_graph and provider != "cuda":
        raise RequestError(
            f"CUDA graphs were asked for, and the provider is {provider!r}. Use the provider 'cuda'."
        )
    check_precision(precision, name)
    for flavour in FLAVOURS:
        if provider == flavour:
            from perfusion.runtime.compute.engine_graph import TensorRTBackend

            return TensorRTBackend(bundle, flavour)
    if name == "openvino":
        from perfusion.runtime.compute.openvino_backend import OpenVINOBackend

        return OpenVINOBackend(bundle, device or "CPU", threads, precision)
    return OnnxBackend(graph_io_of(bundle), provider, threads, capture=cuda_graph)


def check_precision(precision: str, provider: str) -> None:
    """Refuse a precision that nobody computes in, or that this provider does not choose. Raises RequestError."""
    if precision not in PRECISIONS:
        raise RequestError(f"The precision is {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    if precision != PRECISIONS[0] and provider != "openvino":
        raise RequestError(
            f"The precision {precision} was asked for, and the provider is {provider!r}, which computes in the "
            "precision that the graphs were exported in. Use the provider 'openvino', or export the bundle with "
            "--precision."
        )


def offers(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """What "auto" may take, best first: the provider, and what speaks against it ("" for nothing so far).

    Raises:
        DeviceError: onnxruntime is missing, where the search comes that far.
    """
    for flavour, row in FLAVOURS.items():
        yield flavour, "" if _holds_engines(bundle, flavour) else f"the bundle holds no {row.title} engines"
    yield "cuda", "" if "cuda" in available_providers() else "onnxruntime has no CUDA here"
    yield "openvino", _against_openvino()
    yield "cpu", ""


def _against_openvino() -> str:
    """Why onnxruntime is the better choice on a processor where nobody asked for a shorter precision."""
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed"
    return "OpenVINO gains little in float32 and takes more memory; it is used where it is asked for"


def _holds_engines(bundle: Bundle, flavour: str) -> bool:
    """Whether there is an engine of this flavour; its folder is `trt-sm87` or `trt-rtx-portable`, and so on."""
    folders = {path.parent.name for path in bundle.folder.glob("engines/*/*.engine")}
    return any(
        (folder.startswith("trt-rtx-")) == (flavour == "trt-rtx")
        for folder in folders
        if folder.startswith("trt-")
    )
