"""A bundle's graphs as TensorRT engines, on the first GPU.

A bundle may hold engines of one graph for several sizes. Each call is computed by the one that takes its sizes, and
one engine of a graph is open at a time: another size costs opening another file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.description import Bundle
from perfusion.bundle.facts import graph_facts
from perfusion.bundle.graph_io import graph_io_of
from perfusion.bundle.names import CONTROLNET, UNET_CONTROLNET
from perfusion.errors import DeviceError, RequestError
from perfusion.runtime.compute.binding import CHANGING
from perfusion.runtime.compute.residency import free_memory
from perfusion.shell import quoted
from perfusion.tensorrt.cuda import Cuda
from perfusion.tensorrt.deserialise import make_runtime
from perfusion.tensorrt.driver import query_driver
from perfusion.tensorrt.engine_store import Engine, engine_damage, find_engines
from perfusion.tensorrt.execution import Arena, TensorRTGraph
from perfusion.tensorrt.flavour import FLAVOURS, Flavour, import_tensorrt, tensorrt_version
from perfusion.tensorrt.keys import platform_of

__all__ = ["TensorRTBackend"]

Array = NDArray[np.float32]

_SIZES: Mapping[str, Mapping[str, tuple[str, int]]] = {
    "unet": {
        "height": ("sample", 2),
        "width": ("sample", 3),
        "tokens": ("encoder_hidden_states", 1),
        "regions": ("regions", 1),
        "concepts": ("concept_keys", 0),
    },
    "vae_decoder": {"height": ("latent_sample", 2), "width": ("latent_sample", 3)},
    "vae_encoder": {"picture_height": ("sample", 2), "picture_width": ("sample", 3)},
    "text_encoder": {"concepts": ("concept_embeddings", 0)},
    "text_encoder_2": {"concepts": ("concept_embeddings", 0)},
}
"""Which dimension of which input of a graph is which named size of an engine's shape ranges."""


class TensorRTBackend:
    """TensorRT ("trt") or TensorRT for RTX ("trt-rtx") with the engines below the bundle's folder."""

    planned = False
    precision = None

    def __init__(self, bundle: Bundle, flavour: Flavour) -> None:
        """Find the library, the device and the engines.

        Raises:
            DeviceError: TensorRT, the driver, or an engine of a graph that every picture needs is missing.
        """
        self.provider: str = flavour
        self._trt = import_tensorrt(flavour)
        self._graph_io = graph_io_of(bundle)
        self._downscale, self._tokens = bundle.decoder.downscale, bundle.text_encoder.context_length
        self._has_regions = bundle.has_regions
        self._build = f"perfusion-export --bundle {quoted(bundle.folder)} --engine {flavour}"
        self._engines = _engines(bundle, flavour, self._trt)
        self._whole = {engines[0].file for engines in self._engines.values()}  # whose checksums were compared
        self._runtime, self._logger = make_runtime(self._trt)
        self._cuda = Cuda()
        self._arena = Arena(self._cuda)

    def open(self, name: str) -> EngineGraph:
        """Open the engine of a graph for the bundle's own size of pictures, or any where there is none for it."""
        if name in (CONTROLNET, UNET_CONTROLNET):
            raise DeviceError(
                "Engines are not built of ControlNets. Use the provider 'cuda' or 'cpu' to draw with one."
            )
        if name not in self._engines:
            raise DeviceError(
                f"There is no {self.provider} engine for {name}. Build one with perfusion-export --engine."
            )
        return EngineGraph(_SIZES[name], self._engines[name], self._open)

    def admit(self, size: CallSize) -> None:
        """Refuse a request that no engine takes. Raises RequestError with the sizes there are."""
        latents = {"height": size.height // self._downscale, "width": size.width // self._downscale}
        text = {"tokens": size.tokens} | ({"regions": size.readings} if self._has_regions else {})
        concepts, unets = size.concepts, self._engines["unet"]
        if _choose(unets, text) is None:
            raise RequestError(self._no_text(size))
        if _choose(unets, latents) is None or not _decodes(self._engines["vae_decoder"], latents):
            raise RequestError(
                f"A picture of {size.width} × {size.height} pixels was asked for, and the engines of this bundle draw "
                f"{self._drawn()}. Choose such a size, build engines for this one with {self._build} --resolution "
                f"{max(size.width, size.height)}, or use the provider 'cuda' or 'cpu'."
            )
        if _choose(unets, {**latents, **text, "concepts": concepts}) is None:
            slots = max(
                (one.get("concepts", (0, 0, 0))[2] for engine in unets for one in engine.shape_ranges),
                default=0,
            )
            raise RequestError(
                f"{concepts} rows of concepts are used at once, and the engines have slots for {slots}. Use fewer "
                f"concepts at once, build engines with {self._build} --concepts {concepts}, or use the provider 'cuda' "
                "or 'cpu'."
            )

    def _no_text(self, size: CallSize) -> str:
        """Why no engine takes a prompt of so many readings and tokens, and what to do."""
        tokens = size.tokens // size.readings
        build = f"{self._build} --readings {size.readings} --tokens {tokens}"
        what = f"read in {tokens // self._tokens} parts, together {tokens} tokens"
        if size.readings == 1:
            shorter = f"Shorten it to {self._tokens - 2} tokens"
        else:
            what = f"read {size.readings} times, once for each region, {tokens} tokens each"
            shorter = "Draw with regions=None"
        return (
            f"The prompt is {what}, and no engine of this bundle takes that. {shorter}, build engines for it with "
            f"{build}, or use the provider 'cuda' or 'cpu'."
        )

    def free_memory(self) -> int | None:
        """The GPU's, or the main memory's where the two are one."""
        return free_memory() if self._cuda.integrated else self._cuda.free_memory()

    def close(self) -> None:
        """Give the arena, the stream and the device back."""
        self._runtime = None
        self._arena.close()
        self._cuda.close()

    def _open(self, engine: Engine) -> TensorRTGraph:
        if engine.file not in self._whole:
            if (damage := engine_damage(engine)) is not None:
                raise DeviceError(f"{engine.file} cannot be used: {damage}. Build the engine again.")
            self._whole.add(engine.file)
        graph_io = self._graph_io[engine.key.graph]
        return TensorRTGraph(
            engine.file,
            inputs=graph_io.inputs,
            outputs=graph_io.outputs,
            trt=self._trt,
            runtime=self._runtime,
            logger=self._logger,
            arena=self._arena,
            compiles=self.provider == "trt-rtx",
            changing=CHANGING,
        )

    def _drawn(self) -> str:
        """The sizes of pictures that the UNet's engines draw, as a phrase."""
        sizes: dict[str, None] = {}
        for engine in self._engines["unet"]:
            for one in (one for one in engine.shape_ranges if {"width", "height"} <= one.keys()):
                low, high = (
                    " × ".join(str(one[side][which] * self._downscale) for side in ("width", "height"))
                    for which in (0, 2)
                )
                sizes[low if low == high else f"{low} to {high}"] = None
        return " or ".join(sizes) or "none"


class EngineGraph:
    """One graph, computed by that of its engines which takes the sizes of a call."""

    def __init__(
        self,
        sizes: Mapping[str, tuple[str, int]],
        engines: list[Engine],
        open_engine: Callable[[Engine], TensorRTGraph],
    ) -> None:
        """Open the first of `engines`; `sizes`: which dimension of which input is which named size of a shape range.

        Raises:
            DeviceError: it was built by another TensorRT or for another GPU.
            BundleError: it has other inputs or outputs than expected.
        """
        self._sizes, self._engines, self._open = sizes, engines, open_engine
        self._engine = engines[0]
        self._graph: TensorRTGraph | None = open_engine(self._engine)

    def run(self, **feeds: NDArray[Any]) -> dict[str, Array]:
        """All outputs by name.

        Raises:
            RequestError: no engine takes these sizes.
            PerfusionError: TensorRT failed, for example for lack of memory.
        """
        sizes = {
            name: feeds[source].shape[axis] for name, (source, axis) in self._sizes.items() if source in feeds
        }
        if self._engine.range_for(**sizes) is None:
            other = _choose(self._engines, sizes)
            if other is not None:
                self.close()
                self._engine = other
        if self._graph is None:
            self._graph = self._open(self._engine)
        return self._graph.run(**feeds)

    def tile(self, height: int, width: int) -> int | None:
        """The side of the tiles to decode latents of this size in; None where they are taken whole, or never."""
        if _choose(self._engines, {"height": height, "width": width}) is not None:
            return None
        return _tile(self._engines, height, width)

    def close(self) -> None:
        """Give the engine's memory back."""
        if self._graph is not None:
            self._graph.close()
        self._graph = None


def _choose(engines: Iterable[Engine], sizes: Mapping[str, int]) -> Engine | None:
    """The best engine that takes these sizes."""
    return next((engine for engine in engines if engine.range_for(**sizes) is not None), None)


def _tile(engines: list[Engine], height: int, width: int) -> int | None:
    """The largest side of tiles such that an engine takes every piece of latents of this size; None where none does."""
    squares = (
        one for engine in engines for one in engine.shape_ranges if one.get("height") == one.get("width")
    )
    sides = {one["height"][2] for one in squares if "height" in one}
    for side in sorted(sides, reverse=True):
        if _choose(engines, {"height": min(side, height), "width": min(side, width)}) is not None:
            return side
    return None


def _decodes(engines: list[Engine], latents: Mapping[str, int]) -> bool:
    """Whether latents of this size can be decoded, whole or in tiles."""
    return _choose(engines, latents) is not None or _tile(engines, **latents) is not None


def _usual(bundle: Bundle, name: str) -> dict[str, int]:
    """The sizes of a graph's call for a picture of the bundle's own size."""
    size, downscale = bundle.usual_call, bundle.decoder.downscale
    sizes = {
        "height": size.height // downscale,
        "width": size.width // downscale,
        "picture_height": size.height,
        "picture_width": size.width,
        "tokens": size.tokens,
        **({"regions": size.readings} if bundle.has_regions else {}),
    }
    return {key: length for key, length in sizes.items() if key in _SIZES[name]}


def _engines(bundle: Bundle, flavour: Flavour, trt: Any) -> dict[str, list[Engine]]:
    """The engines of each graph for this TensorRT and this GPU, that for the bundle's own size of pictures first.

    The first one's bytes are compared with their checksum.

    Raises:
        DeviceError: there is none for a graph that every picture needs; with what is wrong with those there are.
    """
    driver = query_driver()
    if driver is None:  # without one, TensorRT 11 crashes the process where it should say so
        raise DeviceError(
            f"{flavour} was asked for, and this machine has no NVIDIA GPU with a working driver. Install the driver, "
            "or use the provider 'cpu'."
        )
    wanted: dict[str, Any] = {
        "flavour": flavour,
        "version": tensorrt_version(trt),
        "platform": platform_of(flavour),
        "target": driver.target,
    }
    if flavour == "trt":
        wanted["driver"] = driver.cuda[0]
    folder, facts, found = bundle.folder, graph_facts(bundle), {}
    for name in (
        name for name in graph_io_of(bundle) if name in facts
    ):  # a ControlNet's graphs have no engines
        key = {**wanted, "graph_sha256": facts[name].sha256}
        matching, reasons = find_engines(folder, name, key)
        usual = _usual(bundle, name)
        left = sorted(matching, key=lambda one: one.range_for(**usual) is None)
        while left and (damage := engine_damage(left[0])) is not None:
            reasons = (*reasons, f"{left.pop(0).file}: {damage}")
        if left:
            found[name] = left
        elif name != "vae_encoder":  # only pictures to start from need it
            raise DeviceError(
                f"{folder} has no {FLAVOURS[flavour].title} engine of {name} for this machine ({driver.target}): "
                f"{'; '.join(reasons) or 'none has been built'}. Build one with perfusion-export --engine {flavour}, "
                "or use another provider."
            )
    return found
