"""The denoising loop: from noise, or from a picture and noise, to latents; and from these to finished pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.concept.phases import in_force
from perfusion.errors import PerfusionError
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.pictures import as_mask, as_pictures, as_sample
from perfusion.runtime.request import Request
from perfusion.runtime.sampling.noise import NoiseStream
from perfusion.runtime.sampling.schedule import Estimate, Schedule
from perfusion.runtime.text.feeds import Feeds
from perfusion.runtime.text.prompt_encoder import Row

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Drawn", "Phase", "call_slices", "decode", "draw"]

Array = NDArray[np.float32]
_Group = tuple[slice, dict[str, Array]]

_NOT_FINITE = (
    "Lower the guidance scale; if that does not help and the bundle is of precision fp16, export it as fp32."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Phase:
    """A picture's rows of the UNet's batch from a share of the noise levels on."""

    start: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Where a batch stands after an evaluation of the UNet; arrays (pictures, channels, height, width)."""

    index: int
    total: int
    timestep: float
    latents: Array
    clean: Array  # what the model believes they will be


@dataclass(frozen=True, kw_only=True, eq=False)
class _Over:
    """A picture that is drawn over."""

    latents: Array
    noise: Array
    mask: Array | None  # 1 where to draw

    def kept(self, schedule: Schedule, index: int, latents: Array, clean: Array) -> tuple[Array, Array]:
        """Latents and clean sample after evaluation `index` with the picture's own where the mask keeps it."""
        if self.mask is None:
            return latents, clean
        last = index + 1 == len(schedule)
        own = self.latents if last else schedule.noised(index + 1, self.latents, self.noise)
        keep = 1 - self.mask
        return keep * own + self.mask * latents, keep * self.latents + self.mask * clean


def draw(
    bundle: Bundle,
    graphs: Graphs,
    feeds: Feeds,
    request: Request,
    schedule: Schedule,
    phases: Sequence[Sequence[Phase]],
    *,
    batch_size: int,
    check: Callable[[], None],
) -> Iterator[Drawn]:
    """One `Drawn` after each evaluation.

    Args:
        phases: of each picture, in the order of their starts, the first of which is 0.
        check: raises where the work is to stop.

    Raises:
        RequestError: the image strength leaves no step.
        PerfusionError: a graph failed, or gave numbers that are not finite.
    """
    scale = bundle.decoder.downscale
    shape = (1, bundle.unet.in_channels, request.height // scale, request.width // scale)
    streams = [NoiseStream(seed) for seed in request.seeds]

    def fresh() -> Array:
        return np.concatenate([stream.draw(shape) for stream in streams])

    noise = fresh()
    over = _over(bundle, graphs, request, noise, check) if request.images else None
    if over is not None:
        schedule = schedule.last_part(request.image_strength)
    if over is None or (over.mask is not None and request.image_strength == 1):
        latents = noise * np.float32(schedule.initial_scale)
    else:
        latents = schedule.noised(0, over.latents, noise)
    read, groups = list[tuple[Row, ...]](), list[_Group]()
    history: list[Estimate] = []
    for index, timestep in enumerate(schedule.timesteps):
        graphs.stage("denoise")
        share = schedule.share(index)
        now = [in_force(one, share).rows for one in phases]
        if now != read:
            read, groups = now, _groups(feeds, request, now, batch_size)
        parts = []
        for pictures, fed in groups:
            check()
            parts.append(_predict(graphs, latents[pictures], timestep, fed, request))
        prediction = parts[0] if len(parts) == 1 else np.concatenate(parts)
        latents, clean = schedule.step(index, latents, prediction, history, fresh)
        if over is not None:
            latents, clean = over.kept(schedule, index, latents, clean)
        if not np.isfinite(latents).all():
            raise PerfusionError(f"Step {index + 1} gave numbers that are not finite. {_NOT_FINITE}")
        yield Drawn(index=index, total=len(schedule), timestep=float(timestep), latents=latents, clean=clean)


def decode(bundle: Bundle, graphs: Graphs, latents: Array, check: Callable[[], None]) -> list[Image]:
    """Pictures of latents (pictures, channels, height, width), one at a time: a decoder needs the most memory of all
    graphs. `check` is called before each.

    Raises:
        PerfusionError: the decoder failed, or gave numbers that are not finite.
    """
    pictures: list[Image] = []
    with np.errstate(all="ignore"):  # what overflows here is refused below
        scaled = latents / np.float32(bundle.decoder.scaling_factor)
    graphs.stage("decode")
    for one in scaled:
        check()
        sample = graphs.run("vae_decoder", latent_sample=one[None])["sample"]
        if not np.isfinite(sample).all():
            raise PerfusionError(f"The decoder gave numbers that are not finite. {_NOT_FINITE}")
        pictures += as_pictures(sample)
    return pictures


def call_slices(shapes: Sequence[tuple[int, int]], batch_size: int) -> list[slice]:
    """The pictures of each call of the UNet: neighbours of equally many tokens and readings, `batch_size` at most."""
    slices, start = [], 0
    while start < len(shapes):
        end = start + 1
        while end < len(shapes) and end - start < batch_size and shapes[end] == shapes[start]:
            end += 1
        slices.append(slice(start, end))
        start = end
    return slices


def _groups(feeds: Feeds, request: Request, rows: Sequence[tuple[Row, ...]], batch_size: int) -> list[_Group]:
    """The pictures of each call of the UNet and what it is fed."""
    shapes = [picture[0].shape for picture in rows]
    return [
        (group, feeds.of([row for one in rows[group] for row in one], request))
        for group in call_slices(shapes, batch_size)
    ]


def _over(bundle: Bundle, graphs: Graphs, request: Request, noise: Array, check: Callable[[], None]) -> _Over:
    """The pictures to be drawn over, as latents; equal ones are encoded once."""
    size = (request.width, request.height)
    encoded: dict[int, Array] = {}
    graphs.stage("encode")
    for image in request.images:
        if id(image) not in encoded:
            check()
            sample = graphs.run("vae_encoder", sample=as_sample(image, *size))["latent_sample"]
            encoded[id(image)] = sample * np.float32(bundle.decoder.scaling_factor)
    masks = [as_mask(mask, *size, bundle.decoder.downscale) for mask in request.masks]
    return _Over(
        latents=np.concatenate([encoded[id(image)] for image in request.images]),
        noise=noise,
        mask=np.concatenate(masks) if masks else None,
    )


def _predict(
    graphs: Graphs, latents: Array, timestep: np.float32, fed: Mapping[str, Array], request: Request
) -> Array:
    """The UNet's prediction for some pictures, (pictures, channels, height, width), guided when asked for."""
    rows = np.repeat(latents, 2, axis=0) if request.guided else latents
    timesteps = np.full(len(rows) if "regions" in fed else 1, timestep, np.float32)
    outputs = graphs.run("unet", sample=rows, timestep=timesteps, **fed)
    noise_pred = outputs["out_sample"]
    if not request.guided:
        return noise_pred
    unconditional, conditional = noise_pred[0::2], noise_pred[1::2]
    guided = unconditional + np.float32(request.guidance_scale) * (conditional - unconditional)
    if not request.guidance_rescale:
        return guided
    return _rescaled(guided, conditional, request.guidance_rescale)


def _rescaled(guided: Array, conditional: Array, share: float) -> Array:
    """A share of the contrast that guidance adds taken back (Lin et al. 2023, section 3.4)."""
    axes = tuple(range(1, guided.ndim))
    usual: Array = conditional.std(axis=axes, keepdims=True) / guided.std(axis=axes, keepdims=True)
    return guided * (np.float32(share) * usual + np.float32(1 - share))
