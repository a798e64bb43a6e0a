"""How much memory a runtime may use, and what follows: which graphs stay open, and whether pictures are tiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.description import Bundle
from perfusion.bundle.graph_io import SELDOM_NEEDED, graph_io_of
from perfusion.bundle.names import CONTROLNET, UNET_CONTROLNET
from perfusion.errors import DeviceError, RequestError

if TYPE_CHECKING:
    from perfusion.devices import MemoryPlan

__all__ = ["STAGES", "Residency", "free_device_memory", "free_memory"]

STAGES = ("encode", "denoise", "decode")
_DENOISING = frozenset({"unet", CONTROLNET, UNET_CONTROLNET})

GIB = 1 << 30
_MOST_GIB = 1 << 20
_MOST_PLANS = 64
_PIXEL_BYTES = 1 << 14
_PAIR_BYTES = 64
_PROGRAM = 1 << 27
_LOW_TILE = 32  # latents; 256 pixels of most models


class Residency:
    """Which graphs are open in which stage of a request, within a budget.

    `memory` is "auto" (nine tenths of what is free when the runtime opens; all graphs stay open where they have
    room), "low" (the same bound, but only what a stage needs is open, and large pictures are decoded in tiles) or a
    number of GiB that the graphs of this runtime may take together.
    """

    def __init__(
        self,
        bundle: Bundle,
        memory: str | float,
        free: Callable[[], int | None] | None = None,
        *,
        refuses: bool = True,
    ) -> None:
        """`free`: asks how many bytes are free now, None where nobody can tell; by default the main memory.

        `refuses`: whether a request that a plan finds too large is refused. Plans are made for onnxruntime; an
        engine needs less, so there they only say what stays open.

        Raises:
            RequestError: not one of the above.
        """
        self._bundle = bundle
        self._low = memory == "low"
        self._budget = _budget(memory, free_memory if free is None else free)
        self._refuses = refuses
        self._names = tuple(graph_io_of(bundle))
        self._needed = _needed(self._names)
        self._stored = sum(path.stat().st_size for path in _model_files(bundle.folder))
        if bundle.controlnet is not None:  # both UNets may be open, and their weights are stored once
            self._stored += sum(
                path.stat().st_size for path in bundle.folder.glob(f"{bundle.unet.file.name}*")
            )
        self._controlled = False  # the request that was admitted last
        self._plans: dict[CallSize, MemoryPlan] = {}
        self._plan = self._planned(bundle.usual_call)

    def first(self) -> frozenset[str]:
        """The graphs to open at once, so that a broken one is found early: all but what only some requests use."""
        if self._low or not self._keeps_all():
            return frozenset()
        return frozenset(self._names) - SELDOM_NEEDED

    def kept(self, stage: str) -> frozenset[str]:
        """The graphs that may stay open in a stage."""
        if self._low:
            others = {"unet"} if self._controlled else {CONTROLNET, UNET_CONTROLNET}
            return self._needed[stage] - others
        return frozenset(self._names) if self._plan is None else self._plan.resident[stage]

    def tile(self, height: int, width: int) -> int | None:
        """The side of the tiles in which latents of this size are decoded, None for all at once."""
        side = _LOW_TILE if self._low else self._plan.tile if self._plan is not None else None
        return side if side is not None and max(height, width) > side else None

    def admit(self, size: CallSize) -> None:
        """Plan for a request, or refuse it. Raises RequestError where it does not fit."""
        plan = self._planned(size)
        if plan is not None and not plan.fits and self._refuses:
            raise RequestError(plan.explain())
        self._plan, self._controlled = plan, size.control

    def at_most(self, size: CallSize) -> int:
        """Bytes that a call never needs more of, without reading a graph: a plan takes a tenth of a second.

        Weights stored in half are computed with in single precision and packed for the kernels; of activations the
        attention's weights grow with the latents times what they attend to: themselves, and the tokens of all readings.
        """
        pixels = size.width * size.height
        latents = pixels // self._bundle.decoder.downscale**2
        pairs = latents * max(latents, 2 * size.tokens)
        return 6 * self._stored + 2 * size.batch * (_PIXEL_BYTES * pixels + _PAIR_BYTES * pairs) + _PROGRAM

    def _keeps_all(self) -> bool:
        if self._plan is None:
            return True
        usual = frozenset(self._names) - SELDOM_NEEDED
        return all(usual <= frozenset(self._plan.resident[stage]) for stage in STAGES)

    def _planned(self, size: CallSize) -> MemoryPlan | None:
        """The plan for a call, None where none is needed: no limit is known, or it is far away."""
        if self._budget is None or self.at_most(size) <= self._budget:
            return None
        if size not in self._plans:
            from perfusion.devices import plan_memory

            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[size] = plan_memory(self._bundle, size, budget=self._budget)
        return self._plans[size]


def _model_files(folder: Path) -> Iterator[Path]:
    """Whatever may hold weights: all files of a bundle but its engines."""
    return (
        path
        for path in folder.rglob("*")
        if path.is_file() and "engines" not in path.relative_to(folder).parts
    )


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that can be had without swapping, within the limits of a container; None if unknown."""
    from perfusion.devices.host_facts import main_memory

    return main_memory(root).get("MemAvailable")


def free_device_memory() -> int | None:
    """Bytes free on the first NVIDIA GPU, the main memory's where the two are one; None where nobody can tell."""
    from perfusion.tensorrt.cuda import Cuda

    try:
        with Cuda() as cuda:
            return free_memory() if cuda.integrated else cuda.free_memory()
    except DeviceError:
        return None


def _budget(memory: str | float, free: Callable[[], int | None]) -> int | None:
    """Bytes that may be used; None where nothing sets a limit."""
    if memory in ("auto", "low"):
        from perfusion.devices.system import AUTO_SHARE

        found = free()
        return None if found is None else int(found * AUTO_SHARE)
    try:
        size = float(memory)
    except (TypeError, ValueError):
        size = math.nan
    if isinstance(memory, bool) or not 0 < size < _MOST_GIB:
        raise RequestError(
            f'The memory is {memory!r}, expected "auto", "low" or a number of GiB above 0, such as 4.'
        )
    return int(size * GIB)


def _needed(names: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """The graphs each stage runs; a picture to start from is encoded with the prompts."""
    return {
        "encode": frozenset(names) - {*_DENOISING, "vae_decoder"},
        "denoise": frozenset(names) & _DENOISING,
        "decode": frozenset({"vae_decoder"}),
    }
