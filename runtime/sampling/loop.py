"""The denoising loop: from noise, or from a picture and noise, to latents; and from these to finished pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.errors import PerfusionError
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.pictures import as_pictures
from perfusion.runtime.request import Request
from perfusion.runtime.sampling.course import NOT_FINITE, Course, Phase, begin_courses, predict
from perfusion.runtime.sampling.schedule import Schedule
from perfusion.runtime.text.feeds import Feeds
from perfusion.runtime.text.prompt_spec import Row

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Drawn", "call_slices", "decode", "draw"]

Array = NDArray[np.float32]
_Group = tuple[slice, dict[str, Array]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Where a batch stands after an evaluation of the UNet; arrays (pictures, channels, height, width)."""

    index: int
    total: int
    timestep: float
    latents: Array
    clean: Array  # what the model believes they will be


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
    courses = begin_courses(bundle, graphs, request, schedule, phases, check)
    rows, groups = list[tuple[Row, ...]](), list[_Group]()
    while not courses[0].finished:
        graphs.stage("denoise")
        index, timestep = courses[0].index, courses[0].timestep
        now = [course.rows for course in courses]
        if now != rows:
            rows, groups = now, _groups(feeds, request, now, batch_size)
        predictions = list[Array]()
        for pictures, fed in groups:
            check()
            predictions += predict(graphs, courses[pictures], fed)
        for course, noise_pred in zip(courses, predictions, strict=True):
            course.advance(noise_pred)
        yield Drawn(
            index=index, total=len(courses[0].schedule), timestep=float(timestep),
            latents=_stacked(courses, "latents"), clean=_stacked(courses, "clean"),
        )  # fmt: skip


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
            raise PerfusionError(f"The decoder gave numbers that are not finite. {NOT_FINITE}")
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


def _stacked(courses: Sequence[Course], name: str) -> Array:
    """An array of each course, (pictures, channels, height, width)."""
    arrays: list[Array] = [getattr(course, name) for course in courses]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
