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
from typing import TYPE_CHECKING

from perfusion.devices.graph_reader.onnx_file import GraphFile, read_graph
from perfusion.devices.graph_reader.shapes import trace
from perfusion.devices.planning.costs import Costs, costs_of
from perfusion.devices.planning.float32_parts import kept_places
from perfusion.devices.profiles import DeviceProfile
from perfusion.errors import RequestError

if TYPE_CHECKING:
    from perfusion.bundle.description import Bundle

__all__ = [
    "LIBRARY",
    "STAGES",
    "MemoryPlan",
    "Need",
    "Request",
    "Smaller",
    "graph_costs",
    "graph_files",
    "graph_sizes",
    "guided_by_default",
    "open_size",
    "plan_graphs",
    "plan_memory",
    "request_of",
]

STAGES = ("encode", "denoise", "decode")
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
class Smaller:
    """A smaller request that fits; `precision` is that of another export where this one's does not fit at all."""

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
    """Whether a request fits into a budget, and what is in memory when."""

    width: int
    height: int
    batch: int
    guided: bool
    concepts: int
    precision: str
    budget: int  # bytes
    base: int  # bytes that are there whatever is open: the library, and a GPU's context
    needs: Mapping[str, Need]  # by graph, at this plan's tile
    stages: Mapping[str, int]  # bytes at the fullest moment of each stage
    resident: Mapping[str, frozenset[str]]  # the graphs open in each stage
    tile: int | None  # side in latents of the tiles in which the VAE decodes; None: all at once
    nearest: Smaller | None = None  # where it does not fit: what does

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
        what = f"{self.width}×{self.height} in batches of {self.batch}, {self.precision}"
        keeps_all = len(set(self.resident.values())) == 1
        stage = max(self.stages, key=lambda name: self.stages[name])
        where = "" if keeps_all else f" to {stage}"
        need = f"needs {_size(self.peak)}{where} of {_size(self.budget)}"
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
    bundle: Bundle,
    *,
    budget: int | DeviceProfile,
    width: int,
    height: int,
    batch: int = 1,
    guided: bool = True,
    concepts: int = 4,
    precision: str | None = None,
    image: bool = False,
) -> MemoryPlan:
    """Plan what of a bundle is in memory when, so that a request fits into a budget.

    Args:
        bundle: as `perfusion.bundle.reader.read_bundle` gives it.
        budget: bytes that the graphs may take together, or a device that does nothing else.
        width, height: of a picture, in pixels.
        batch: pictures in one call of the UNet; `guided` doubles its rows.
        concepts: rows of concepts given to the UNet.
        precision: "fp16" counts an fp32 bundle as if it were exported in half; None is the bundle's own.
        image: whether a picture is drawn over, which the VAE's encoder has to encode first.

    Raises:
        RequestError: sizes that no picture of this bundle has, or an image and no encoder for it.
        BundleError: a graph that cannot be read or followed.
    """
    request = request_of(
        bundle, width=width, height=height, batch=batch, guided=guided, concepts=concepts, precision=precision
    )
    return plan_graphs(graph_files(bundle, image=image), request, budget)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of `plan_memory`, without the bundle."""

    width: int
    height: int
    batch: int
    guided: bool
    concepts: int
    precision: str
    own_precision: str
    downscale: int
    step: int
    tokens: int
    kept: frozenset[str] = (
        frozenset()
    )  # what is float32 where `precision` is half and the bundle's own is not


def plan_graphs(files: Mapping[str, Path], request: Request, budget: int | DeviceProfile) -> MemoryPlan:
    """The plan for graphs by name, with the nearest request that fits where this one does not."""
    limit = budget.usable if isinstance(budget, DeviceProfile) else budget
    gpu = isinstance(budget, DeviceProfile) and len(budget.engines) > 1
    base = LIBRARY + (_CONTEXT if gpu else 0)
    plan = _best(files, request, limit, base)
    if plan.fits:
        return plan
    smaller = _nearest(request, gpu, lambda one: _best(files, one, limit, base).fits)
    if smaller is None:
        return plan
    other = smaller.precision if smaller.precision != request.precision else None
    near = Smaller(width=smaller.width, height=smaller.height, batch=smaller.batch, precision=other)
    return replace(plan, nearest=near)


def graph_sizes(name: str, request: Request, tile: int | None = None) -> dict[str, int]:
    """Numbers for a graph's named dimensions; text and pictures are worked on one at a time."""
    rows = request.batch * (2 if request.guided else 1)
    height, width = request.height // request.downscale, request.width // request.downscale
    if name == "vae_decoder" and tile is not None:
        height, width = min(height, tile), min(width, tile)
    return {
        "batch": rows if name == "unet" else 1,
        "height": height,
        "width": width,
        "picture_height": request.height,
        "picture_width": request.width,
        "tokens": request.tokens,
        "concepts": request.concepts,
    }


def open_size(costs: Costs) -> int:
    """Bytes an open graph takes before it runs."""
    return int(_COPY * costs.weights + _FOLDED * costs.folded) + _NODE * costs.nodes


def _best(files: Mapping[str, Path], request: Request, limit: int, base: int) -> MemoryPlan:
    """The fastest way to draw that fits, or the smallest where none does.

    Keeping every graph open comes first, because opening one again takes longer than decoding in tiles.
    """
    smallest: MemoryPlan | None = None
    side = max(request.width, request.height) // request.downscale
    for keep, tile in product((True, False), (None, *(one for one in TILES if one < side))):
        needs = {name: _need(path, name, request, tile) for name, path in files.items()}
        plan = _arranged(needs, request, limit, base, keep, tile)
        if plan.fits:
            return plan
        if smallest is None or plan.peak < smallest.peak:
            smallest = plan
    assert smallest is not None
    return smallest


def _arranged(
    needs: Mapping[str, Need], request: Request, limit: int, base: int, keep: bool, tile: int | None
) -> MemoryPlan:
    """A plan with every graph always open (`keep`), or with those alone that a stage runs."""
    everything = frozenset(needs)
    by_stage = {
        "encode": everything - {"unet", "vae_decoder"},
        "denoise": everything & {"unet"},
        "decode": everything & {"vae_decoder"},
    }
    resident = dict.fromkeys(STAGES, everything) if keep else by_stage
    # an open graph keeps the memory of its last run
    stages = {
        stage: base + sum(needs[name].opened + needs[name].running for name in resident[stage])
        for stage in STAGES
    }
    return MemoryPlan(
        width=request.width,
        height=request.height,
        batch=request.batch,
        guided=request.guided,
        concepts=request.concepts,
        precision=request.precision,
        budget=limit,
        base=base,
        needs=MappingProxyType(dict(needs)),
        stages=MappingProxyType(stages),
        resident=MappingProxyType(resident),
        tile=tile,
    )


def _need(path: Path, name: str, request: Request, tile: int | None) -> Need:
    costs = graph_costs(path, name, request, tile)
    return Need(opened=open_size(costs), running=costs.arena.touched)


def graph_costs(path: Path, name: str, request: Request, tile: int | None = None) -> Costs:
    """The costs of a graph's file for a request; read once for every state of the file."""
    half = request.precision == "fp16" and request.own_precision != "fp16" and name not in request.kept
    wide = f"{name}.attention" in request.kept
    stamp, sizes = path.stat(), tuple(sorted(graph_sizes(name, request, tile).items()))
    return _costs(path, (stamp.st_mtime_ns, stamp.st_size), sizes, half, half and wide)


@lru_cache(maxsize=256)
def _costs(
    path: Path, state: tuple[int, int], sizes: tuple[tuple[str, int], ...], half: bool, wide: bool
) -> Costs:
    return costs_of(trace(_graph(path, state), dict(sizes), half=half, wide_attention=wide))


@lru_cache(maxsize=8)
def _graph(path: Path, _state: tuple[int, int]) -> GraphFile:
    return read_graph(path)


def _nearest(request: Request, gpu: bool, fits: Callable[[Request], bool]) -> Request | None:
    """The largest smaller request that fits: smaller batches first, then half precision, then smaller pictures."""
    if batch := _most(request.batch - 1, lambda count: fits(replace(request, batch=count))):
        return replace(request, batch=batch)
    single = replace(request, batch=1)
    if gpu and request.precision == "fp32":
        single = replace(single, precision="fp16")
        if fits(single):
            return single
    steps = max(request.width, request.height) // request.step

    def scaled(part: int) -> Request:
        sides = [max(1, side // request.step * part // steps) for side in (request.width, request.height)]
        return replace(single, width=sides[0] * request.step, height=sides[1] * request.step)

    part = _most(steps - 1, lambda part: fits(scaled(part)))
    return scaled(part) if part else None


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that fits, by halves; 0 where 1 does not."""
    if limit < 1 or not fits(1):
        return 0
    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def request_of(
    bundle: Bundle,
    *,
    width: int,
    height: int,
    batch: int = 1,
    guided: bool = True,
    concepts: int = 4,
    precision: str | None = None,
) -> Request:
    """A request to a bundle, with what the bundle says of its sizes. Arguments and errors as in `plan_memory`."""
    _check(bundle, width, height, batch, concepts)
    return Request(
        width=width,
        height=height,
        batch=batch,
        guided=guided,
        concepts=concepts,
        precision=precision or bundle.precision,
        own_precision=bundle.precision,
        downscale=bundle.decoder.downscale,
        step=bundle.size_step,
        tokens=bundle.text_encoder.context_length,
        kept=kept_places(bundle.base),
    )


def graph_files(bundle: Bundle, *, image: bool = False) -> dict[str, Path]:
    """The graphs that drawing from a prompt uses, or over an `image`, by their names in the bundle.

    Raises:
        RequestError: an image, and the bundle has no encoder for it.
    """
    files = {encoder.name: encoder.file for encoder in bundle.text_encoders}
    if image:
        if bundle.decoder.encoder is None:
            raise RequestError(
                f"{bundle.folder} has no vae_encoder, so it draws over no image. Export it again with all graphs."
            )
        files["vae_encoder"] = bundle.decoder.encoder
    return files | {"unet": bundle.unet.file, "vae_decoder": bundle.decoder.file}


def guided_by_default(bundle: Bundle) -> bool:
    """Whether a request that does not say otherwise has an unconditional row beside each picture's own."""
    return bundle.is_guided()


def _check(bundle: Bundle, width: int, height: int, batch: int, concepts: int) -> None:
    step = bundle.size_step
    if min(width, height) < step or width % step or height % step or width * height > _MOST_PIXELS:
        raise RequestError(
            f"The size is {width}×{height}, expected multiples of {step} and at most {_MOST_PIXELS:,} pixels."
        )
    if not (1 <= batch <= _MOST_ROWS and 0 <= concepts <= _MOST_ROWS):
        raise RequestError(
            f"The batch is {batch} and there are {concepts} concepts, expected at least 1 and 0, and at most "
            f"{_MOST_ROWS:,}."
        )


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
