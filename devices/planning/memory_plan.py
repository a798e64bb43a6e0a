"""What drawing with a bundle takes in memory, stage by stage, and how to make it fit.

The numbers come from the graphs: weights as they are computed with, and the arrays of one run played through
onnxruntime's arena. docs/devices.md says how near they are to what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.names import CONTROLNET, UNET_CONTROLNET
from perfusion.devices.graph_reader.onnx_file import GraphFile, read_graph
from perfusion.devices.graph_reader.shapes import trace
from perfusion.devices.planning.costs import Costs, costs_of
from perfusion.devices.planning.float32_parts import kept_places
from perfusion.devices.profiles import DeviceProfile
from perfusion.errors import RequestError

if TYPE_CHECKING:
    from perfusion.bundle.description import Bundle

__all__ = [
    "DENOISING",
    "LIBRARY",
    "STAGES",
    "MemoryPlan",
    "Need",
    "SmallerCall",
    "Workload",
    "graph_costs",
    "graph_files",
    "graph_sizes",
    "open_size",
    "plan_graphs",
    "plan_memory",
    "workload_of",
]

STAGES = ("encode", "denoise", "decode")
DENOISING = frozenset({"unet", CONTROLNET, UNET_CONTROLNET})
_HALVINGS = (2, 4, 8, 16)  # of the latents' sides within a UNet
TILES = (64, 32)  # sides in latents, from the larger down
MIB, GIB = 1 << 20, 1 << 30

# Fitted to what onnxruntime 1.32 takes on a processor, see benchmarks/plan.py.
LIBRARY = 9 * MIB  # what the library sets up with its first graph
_NODE = 12 << 10  # a node of an open graph
_COPY = 1.05  # weights in the layout that its kernels read
_FOLDED = 1.6  # what turning stored weights into these leaves behind
_CONTEXT = int(0.4 * GIB)  # a CUDA context with its libraries: assumed, not measured
_MOST_PIXELS = 1 << 26
_MOST_ROWS = 1 << 16  # pictures in a batch, concepts


@dataclass(frozen=True, kw_only=True)
class SmallerCall:
    """A smaller call that fits; `precision` is that of another export where this one's does not fit at all."""

    width: int
    height: int
    batch: int
    precision: str | None = None

    def __str__(self) -> str:
        export = f", exported as {self.precision}" if self.precision else ""
        return f"{self.width}×{self.height} in batches of {self.batch}{export}"


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one graph needs: bytes while it is open, and bytes more while and after it runs."""

    opened: int
    running: int


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Whether a call fits into a budget, and what is in memory when."""

    size: CallSize
    precision: str
    budget: int  # bytes
    base: int  # bytes that are there whatever is open: the library, and a GPU's context
    needs: Mapping[str, Need]  # by graph, at this plan's tile
    stages: Mapping[str, int]  # bytes at the fullest moment of each stage
    resident: Mapping[str, frozenset[str]]  # the graphs open in each stage
    tile: int | None  # side in latents of the tiles in which the VAE decodes; None: all at once
    nearest: SmallerCall | None = None  # where it does not fit: what does

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment."""
        return max(self.stages.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget."""
        return self.peak <= self.budget

    def explain(self) -> str:
        """The plan in a sentence or two."""
        size = self.size
        readings = f" with {size.readings} readings of each prompt" if size.readings > 1 else ""
        what = f"{size.width}×{size.height} in batches of {size.batch}{readings}, {self.precision}"
        keeps_all = len(set(self.resident.values())) == 1
        stage = max(self.stages, key=lambda name: self.stages[name])
        where = "" if keeps_all else f" to {stage}"
        need = f"needs {_bytes(self.peak)}{where} of {_bytes(self.budget)}"
        if self.fits:
            how = "with all graphs open" if keeps_all else "with only the graphs open that a stage uses"
            tiles = f", decoding in tiles of {self.tile} latents" if self.tile else ""
            return f"{what} {need}, {how}{tiles}."
        if self.nearest is None:
            return (
                f"{what} {need}, and nothing smaller fits. Take a smaller model or a device with more memory."
            )
        return f"{what} {need}, which does not fit. The nearest that does is {self.nearest}."


def plan_memory(
    bundle: Bundle, size: CallSize, *, budget: int | DeviceProfile, precision: str | None = None
) -> MemoryPlan:
    """Plan what of a bundle is in memory when, so that a call fits into a budget.

    Args:
        bundle: as `perfusion.bundle.reader.read_bundle` gives it.
        size: what is drawn; `bundle.usual_call` is one picture of the bundle's own size.
        budget: bytes that the graphs may take together, or a device that does nothing else.
        precision: "fp16" counts an fp32 bundle as if it were exported in half; None is the bundle's own.

    Raises:
        RequestError: sizes that no picture of this bundle has, or an image and no encoder for it.
        BundleError: a graph that cannot be read or followed.
    """
    files = graph_files(bundle, image=size.image, control=size.control)
    return plan_graphs(files, workload_of(bundle, size, precision), budget)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A call and what its bundle says of its sizes: all of `plan_memory` but the graphs and the budget."""

    size: CallSize
    precision: str
    own_precision: str
    downscale: int
    step: int
    kept: frozenset[str] = frozenset()  # in float32 where `precision` is half and the bundle's own is not


def plan_graphs(files: Mapping[str, Path], workload: Workload, budget: int | DeviceProfile) -> MemoryPlan:
    """The plan for graphs by name, with the nearest call that fits where this one does not."""
    limit = budget.usable if isinstance(budget, DeviceProfile) else budget
    gpu = isinstance(budget, DeviceProfile) and len(budget.engines) > 1
    base = LIBRARY + (_CONTEXT if gpu else 0)
    plan = _best(files, workload, limit, base)
    if plan.fits:
        return plan
    smaller = _nearest(workload, gpu, lambda candidate: _best(files, candidate, limit, base).fits)
    if smaller is None:
        return plan
    size, other = smaller.size, smaller.precision if smaller.precision != workload.precision else None
    near = SmallerCall(width=size.width, height=size.height, batch=size.batch, precision=other)
    return replace(plan, nearest=near)


def graph_sizes(name: str, workload: Workload, tile: int | None = None) -> dict[str, int]:
    """Numbers for a graph's named dimensions; text and pictures are worked on one at a time."""
    size = workload.size
    height, width = size.height // workload.downscale, size.width // workload.downscale
    if name == "vae_decoder" and tile is not None:
        height, width = min(height, tile), min(width, tile)
    return {
        **{
            f"{side}_{factor}": latents // factor
            for factor in _HALVINGS
            for side, latents in (("height", height), ("width", width))
        },
        "batch": size.rows if name in DENOISING else 1,
        "height": height,
        "width": width,
        "picture_height": size.height,
        "picture_width": size.width,
        "tokens": size.tokens,
        "regions": size.readings,
        "concepts": size.concepts,
    }


def open_size(costs: Costs) -> int:
    """Bytes an open graph takes before it runs."""
    return int(_COPY * costs.weights + _FOLDED * costs.folded) + _NODE * costs.nodes


def _best(files: Mapping[str, Path], workload: Workload, limit: int, base: int) -> MemoryPlan:
    """The fastest way to draw that fits, or the smallest where none does.

    Keeping every graph open comes first, because opening one again takes longer than decoding in tiles.
    """
    smallest: MemoryPlan | None = None
    side = max(workload.size.width, workload.size.height) // workload.downscale
    for keep, tile in product((True, False), (None, *(one for one in TILES if one < side))):
        needs = {name: _need(path, name, workload, tile) for name, path in files.items()}
        plan = _arranged(needs, workload, limit, base, keep, tile)
        if plan.fits:
            return plan
        if smallest is None or plan.peak < smallest.peak:
            smallest = plan
    assert smallest is not None
    return smallest


def _arranged(
    needs: Mapping[str, Need], workload: Workload, limit: int, base: int, keep: bool, tile: int | None
) -> MemoryPlan:
    """A plan with every graph always open (`keep`), or with those alone that a stage runs."""
    everything = frozenset(needs)
    by_stage = {
        "encode": everything - {*DENOISING, "vae_decoder"},
        "denoise": everything & DENOISING,
        "decode": everything & {"vae_decoder"},
    }
    resident = dict.fromkeys(STAGES, everything) if keep else by_stage
    # an open graph keeps the memory of its last run
    stages = {
        stage: base + sum(needs[name].opened + needs[name].running for name in resident[stage])
        for stage in STAGES
    }
    return MemoryPlan(
        size=workload.size,
        precision=workload.precision,
        budget=limit,
        base=base,
        needs=MappingProxyType(dict(needs)),
        stages=MappingProxyType(stages),
        resident=MappingProxyType(resident),
        tile=tile,
    )


def _need(path: Path, name: str, workload: Workload, tile: int | None) -> Need:
    costs = graph_costs(path, name, workload, tile)
    return Need(opened=open_size(costs), running=costs.arena.touched)


def graph_costs(path: Path, name: str, workload: Workload, tile: int | None = None) -> Costs:
    """The costs of a graph's file for a workload; read once for every state of the file."""
    half = workload.precision == "fp16" and workload.own_precision != "fp16" and name not in workload.kept
    wide = f"{name}.attention" in workload.kept
    stamp, sizes = path.stat(), tuple(sorted(graph_sizes(name, workload, tile).items()))
    return _costs(path, (stamp.st_mtime_ns, stamp.st_size), sizes, half, half and wide)


@lru_cache(maxsize=256)
def _costs(
    path: Path, state: tuple[int, int], sizes: tuple[tuple[str, int], ...], half: bool, wide: bool
) -> Costs:
    return costs_of(trace(_graph(path, state), dict(sizes), half=half, wide_attention=wide))


@lru_cache(maxsize=8)
def _graph(path: Path, _state: tuple[int, int]) -> GraphFile:
    return read_graph(path)


def _nearest(workload: Workload, gpu: bool, fits: Callable[[Workload], bool]) -> Workload | None:
    """The largest smaller call that fits: smaller batches first, then half precision, then smaller pictures."""
    if batch := _most(workload.size.batch - 1, lambda count: fits(_resized(workload, batch=count))):
        return _resized(workload, batch=batch)
    single = _resized(workload, batch=1)
    if gpu and workload.precision == "fp32":
        single = replace(single, precision="fp16")
        if fits(single):
            return single
    sides, step = (workload.size.width, workload.size.height), workload.step
    steps = max(sides) // step

    def scaled(part: int) -> Workload:
        width, height = (max(1, side // step * part // steps) * step for side in sides)
        return _resized(single, width=width, height=height)

    part = _most(steps - 1, lambda part: fits(scaled(part)))
    return scaled(part) if part else None


def _resized(workload: Workload, **sizes: Any) -> Workload:
    return replace(workload, size=replace(workload.size, **sizes))


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that fits, by halves; 0 where 1 does not."""
    if limit < 1 or not fits(1):
        return 0
    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def workload_of(bundle: Bundle, size: CallSize, precision: str | None = None) -> Workload:
    """A call of a bundle, with what the bundle says of its sizes. Arguments and errors as in `plan_memory`."""
    _check(bundle, size)
    return Workload(
        size=size,
        precision=precision or bundle.precision,
        own_precision=bundle.precision,
        downscale=bundle.decoder.downscale,
        step=bundle.size_step,
        kept=kept_places(bundle.base),
    )


def graph_files(bundle: Bundle, *, image: bool = False, control: bool = False) -> dict[str, Path]:
    """The graphs that drawing from a prompt uses, over an `image` or with a ControlNet, by their names in the bundle.

    Raises:
        RequestError: an image, and the bundle has no encoder for it; or control, and it has no ControlNet that draws.
    """
    files = {encoder.name: encoder.file for encoder in bundle.text_encoders}
    if image:
        if bundle.decoder.encoder is None:
            raise RequestError(
                f"{bundle.folder} has no vae_encoder, so it draws over no image. Export it again with all graphs."
            )
        files["vae_encoder"] = bundle.decoder.encoder
    denoising = {"unet": bundle.unet.file}
    if control:
        if bundle.controlnet is None:
            raise RequestError(
                f"{bundle.folder} has no ControlNet that draws. Export it with --controlnet, or name one."
            )
        denoising = {CONTROLNET: bundle.controlnet.file, UNET_CONTROLNET: bundle.controlnet.unet_file}
    return files | denoising | {"vae_decoder": bundle.decoder.file}


def _check(bundle: Bundle, size: CallSize) -> None:
    step, pixels = bundle.size_step, size.width * size.height
    if (
        min(size.width, size.height) < step
        or size.width % step
        or size.height % step
        or pixels > _MOST_PIXELS
    ):
        raise RequestError(
            f"The size is {size.width}×{size.height}, expected multiples of {step} and at most {_MOST_PIXELS:,} "
            "pixels."
        )
    if not (1 <= size.batch <= _MOST_ROWS and 0 <= size.concepts <= _MOST_ROWS):
        raise RequestError(
            f"The batch is {size.batch} and there are {size.concepts} concepts, expected at least 1 and 0, and at "
            f"most {_MOST_ROWS:,}."
        )
    if not 1 <= size.readings <= size.tokens or size.tokens % size.readings:
        raise RequestError(
            f"There are {size.readings} readings in {size.tokens} tokens, expected at least 1, all of one length."
        )
    if size.readings > 1 and not bundle.has_regions:
        raise RequestError(
            f"{bundle.folder} is of format version 1, whose UNet reads a prompt once. Export it again for more."
        )


def _bytes(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
