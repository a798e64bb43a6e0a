"""The graphs of a bundle, run by name: on which backend, which of them are open, and in how much memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.description import Bundle
from perfusion.bundle.graph_io import graph_io_of
from perfusion.errors import BundleError, DeviceError, PerfusionError, RequestError
from perfusion.runtime.compute.backend import Backend, OpenGraph, check_precision, make_backend, offers
from perfusion.runtime.compute.residency import STAGES, Residency
from perfusion.runtime.compute.tiles import decode_in_tiles

__all__ = ["Graphs"]

Array = NDArray[np.float32]

_log = logging.getLogger(__name__)

_BEST = {
    "trt": "the bundle holds TensorRT engines for this machine",
    "trt-rtx": "the bundle holds engines of TensorRT for RTX for this machine",
    "cuda": "onnxruntime has CUDA here",
    "cpu": "onnxruntime on the processor",
}


class Graphs:
    """What a runtime computes with. Its calls come one after another: it is not for several threads at once."""

    def __init__(
        self,
        bundle: Bundle,
        provider: str | Backend = "auto",
        threads: int | None = None,
        memory: str | float = "auto",
        *,
        cuda_graph: bool = False,
        precision: str = "fp32",
    ) -> None:
        """Open the graphs that a first picture needs, as far as the memory allows.

        `provider`: one of `backend.PROVIDERS`, "auto" (the best that the bundle and the machine allow), or a backend.
        `memory`: how much may be used, see `Residency`. `cuda_graph`: record the UNet's calls once and replay them.
        `precision`: what OpenVINO computes in.

        Raises:
            BundleError: a graph cannot be opened, or has other inputs or outputs than the bundle says.
            RequestError: no such provider or kind of memory.
            DeviceError: the provider could not be had, or no graph fits into the memory.
        """
        _check_name(bundle.folder)
        self._bundle = bundle
        self._known = tuple(graph_io_of(bundle))
        self._memory = memory
        self._opened: dict[str, OpenGraph] = {}
        self._backend: Backend | None = None
        self.precision: str | None = None  # that was chosen; None where the graphs' own is computed in
        self.provider, self.reason = self._start(
            provider, {"threads": threads, "cuda_graph": cuda_graph, "precision": precision}
        )
        _log.info("drawing with %s: %s", self.provider, self.reason)

    def admit(self, size: CallSize) -> None:
        """Make ready for a request, or refuse it: what stays open and whether to decode in tiles hold until the next.

        Raises:
            RequestError: it does not fit, and the message has the numbers and a request that would; or no engine
                takes its sizes.
        """
        if self._backend is not None:
            self._backend.admit(size)
        self._residency.admit(size)

    def stage(self, stage: str) -> None:
        """Where a request is: "encode", "denoise" or "decode"; closes what the memory has no room for in it."""
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}, expected one of {STAGES}")
        for name in set(self._opened) - self._residency.kept(stage):
            self.release(name)

    def run(self, name: str, **feeds: NDArray[Any]) -> dict[str, Array]:
        """Run a graph ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"); all its outputs.

        Arrays are fed as they are; one that is the same object as in the last call may be on the device already
        and must not have been changed in place, `sample`, `timestep` and `latent_sample` excepted.

        Raises:
            RequestError: the runtime is closed, the bundle has no such graph, or an engine is too small for it.
            BundleError: an input of a shape the graph does not take, or pictures of another size than they should
                have.
            PerfusionError: the graph failed, for example for lack of memory.
        """
        if name == "vae_decoder":
            return {"sample": self._decode(feeds["latent_sample"])}
        return self._open(name).run(**feeds)

    def release(self, name: str) -> None:
        """Close a graph; it opens again when it is run."""
        graph = self._opened.pop(name, None)
        if graph is not None:
            graph.close()

    def close(self) -> None:
        """Give all memory back; nothing runs afterwards."""
        for name in list(self._opened):
            self.release(name)
        if self._backend is not None:
            self._backend.close()
        self._backend = None

    def _decode(self, latents: Array) -> Array:
        """Latents to pictures, in tiles where the memory asks for it or an engine takes no more at once."""
        scale = self._bundle.decoder.downscale
        graph, planned = self._open("vae_decoder"), self._backend is not None and self._backend.planned
        tile = (self._residency if planned else graph).tile(*latents.shape[2:])

        def decode(piece: Array) -> Array:
            sample = graph.run(latent_sample=piece)["sample"]
            expected = (len(piece), 3, piece.shape[2] * scale, piece.shape[3] * scale)
            if sample.shape != expected:
                raise BundleError(
                    f"{self._bundle.decoder.file} made {list(sample.shape)} of latents {list(piece.shape)}, and "
                    f"with the 'downscale' {scale} of bundle.json it should be {list(expected)}: they do not "
                    "belong together. Export the bundle again."
                )
            return sample

        return decode_in_tiles(decode, latents, scale, tile)

    def _open(self, name: str) -> OpenGraph:
        if self._backend is None:
            raise RequestError("This runtime is closed. Open another one.")
        if name not in self._opened:
            if name not in self._known:
                raise RequestError(
                    f"This bundle has no {name}; it has {', '.join(self._known)}. Export it again with all graphs."
                )
            self._opened[name] = self._backend.open(name)
        return self._opened[name]

    def _start(self, provider: str | Backend, options: Mapping[str, Any]) -> tuple[str, str]:
        """Take the backend and open what is to be open at first; the provider and why it was chosen."""
        if not isinstance(provider, str):
            check_precision(options["precision"], f"{provider.provider}, handed over")
            self._use(provider)
            return provider.provider, "it was handed over"
        if provider != "auto":
            try:
                self._take(provider, options)
            except PerfusionError:
                self.close()
                raise
            return provider, "it was asked for"
        check_precision(options["precision"], "auto")
        passed_over: list[str] = []
        for candidate, obstacle in offers(self._bundle):
            if obstacle:
                passed_over.append(obstacle)
                continue
            try:
                self._take(
                    candidate, {**options, "cuda_graph": options["cuda_graph"] and candidate == "cuda"}
                )
            except DeviceError as error:
                self.close()
                if candidate == "cpu":
                    raise
                _log.warning("%s Drawing without it.", error)
                passed_over.append(f"{candidate} could not be had")
                continue
            return candidate, "; ".join([_BEST[candidate], *passed_over])
        raise AssertionError("the last offer is the CPU")

    def _take(self, provider: str, options: Mapping[str, Any]) -> None:
        self._use(make_backend(self._bundle, provider, **options))

    def _use(self, backend: Backend) -> None:
        self._backend = backend
        self.precision = backend.precision
        self._residency = Residency(self._bundle, self._memory, backend.free_memory, refuses=backend.planned)
        for name in self._known:
            if name in self._residency.first():
                self._open(name)


def _check_name(folder: Path) -> None:
    """Refuse a folder that no library here can open files in, before one says so in words of its own."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        shown = str(folder).encode("utf-8", "backslashreplace").decode()
        raise BundleError(
            f"The folder {shown} has a name that is not UTF-8, and onnxruntime opens no file in such a folder. "
            "Rename it, or the folder above it of which this is true."
        ) from error
