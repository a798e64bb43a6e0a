"""The way of one picture from noise to latents, an evaluation of the UNet at a time.

Several pictures may read the same call of the UNet, whatever step each of them is at (`predict`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.bundle.names import UNET_CONTROLNET
from perfusion.concept.phases import in_force
from perfusion.errors import PerfusionError
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.pictures import as_mask, as_sample
from perfusion.runtime.request import Request
from perfusion.runtime.sampling.control import Control, residuals
from perfusion.runtime.sampling.noise import NoiseStream
from perfusion.runtime.sampling.schedule import Estimate, Schedule
from perfusion.runtime.text.prompt_spec import Row

__all__ = ["NOT_FINITE", "Course", "Phase", "begin_courses", "predict"]

Array = NDArray[np.float32]

NOT_FINITE = (
    "Lower the guidance scale; if that does not help and the bundle is of precision fp16, export it as fp32."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Phase:
    """A picture's rows of the UNet's batch from a share of the noise levels on."""

    start: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Over:
    """What is drawn over; arrays (1, channels, height, width)."""

    latents: Array
    noise: Array
    mask: Array | None  # 1 where to draw

    def preserved(self, schedule: Schedule, index: int, latents: Array, clean: Array) -> tuple[Array, Array]:
        """Latents and clean sample after evaluation `index` with the picture's own where the mask keeps it."""
        if self.mask is None:
            return latents, clean
        last = index + 1 == len(schedule)
        own = self.latents if last else schedule.noised(index + 1, self.latents, self.noise)
        keep = 1 - self.mask
        return keep * own + self.mask * latents, keep * self.latents + self.mask * clean


@dataclass(kw_only=True, eq=False)
class Course:
    """One picture on its way: where it stands, and what its next evaluation of the UNet reads."""

    request: Request
    schedule: Schedule
    phases: Sequence[Phase]  # in the order of their starts, the first of which is 0
    stream: NoiseStream
    latents: Array  # (1, channels, height, width)
    over: _Over | None = None
    control: Control | None = None
    index: int = 0  # of the next evaluation
    history: list[Estimate] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clean = self.latents  # what the model believes they will be

    @property
    def finished(self) -> bool:
        """Whether no evaluation is left."""
        return self.index == len(self.schedule)

    @property
    def timestep(self) -> np.float32:
        """The timestep of the next evaluation."""
        return np.float32(self.schedule.timesteps[self.index])

    @property
    def rows(self) -> tuple[Row, ...]:
        """What the next evaluation reads: the unconditional row where there is guidance, and the prompt's."""
        return in_force(self.phases, self.schedule.share(self.index)).rows

    def advance(self, noise_pred: Array) -> None:
        """Take the step that an evaluation's prediction (1, channels, height, width) leads to.

        Raises:
            PerfusionError: the new latents are not finite.
        """
        latents, clean = self.schedule.step(
            self.index, self.latents, noise_pred, self.history, lambda: self.stream.draw(self.latents.shape)
        )
        if self.over is not None:
            latents, clean = self.over.preserved(self.schedule, self.index, latents, clean)
        if not np.isfinite(latents).all():
            raise PerfusionError(f"Step {self.index + 1} gave numbers that are not finite. {NOT_FINITE}")
        self.latents, self.clean = latents, clean
        self.index += 1


def begin_courses(
    bundle: Bundle,
    graphs: Graphs,
    request: Request,
    schedule: Schedule,
    phases: Sequence[Sequence[Phase]],
    check: Callable[[], None],
) -> list[Course]:
    """The courses of a request's pictures, before their first evaluation; `phases` are each picture's.

    Pictures to be drawn over are encoded here, equal ones once; `check` is called before each.

    Raises:
        RequestError: the image strength leaves no step.
        PerfusionError: a graph failed.
    """
    scale = bundle.decoder.downscale
    shape = (1, bundle.unet.in_channels, request.height // scale, request.width // scale)
    encoded = _encoded_images(bundle, graphs, request, check) if request.images else {}
    if request.images:
        schedule = schedule.last_part(request.image_strength)
    courses = []
    for number, (seed, picture_phases) in enumerate(zip(request.seeds, phases, strict=True)):
        stream = NoiseStream(seed)
        noise = stream.draw(shape)
        over = _over(bundle, request, number, encoded, noise) if request.images else None
        if over is None or (over.mask is not None and request.image_strength == 1):
            latents = noise * np.float32(schedule.initial_scale)
        else:
            latents = schedule.noised(0, over.latents, noise)
        courses.append(
            Course(
                request=request, schedule=schedule, phases=picture_phases, stream=stream,
                latents=latents, over=over, control=Control.of(bundle, request, number),
            )
        )  # fmt: skip
    return courses


def predict(graphs: Graphs, courses: Sequence[Course], fed: Mapping[str, Array]) -> list[Array]:
    """The UNet's prediction for each of some pictures, (1, channels, height, width), guided where asked for.

    All have one size, and all or none have guidance, and an image that controls. Each has its own timestep where the
    UNet reads one a row (bundles of format version 2); with others all timesteps are equal.

    Raises:
        PerfusionError: the graph failed.
    """
    guided = courses[0].request.guided
    latents = np.concatenate([course.latents for course in courses])
    timesteps = np.array([course.timestep for course in courses], np.float32)
    if guided:
        latents, timesteps = np.repeat(latents, 2, axis=0), np.repeat(timesteps, 2)
    if "regions" not in fed:
        timesteps = timesteps[:1]
    inputs = {"sample": latents, "timestep": timesteps}
    controls = [course.control for course in courses if course.control is not None]
    if controls:
        rows = [row for course in courses for row in course.rows]
        inputs |= residuals(graphs, controls, rows, inputs, fed)
    noise_pred = graphs.run(UNET_CONTROLNET if controls else "unet", **inputs, **fed)["out_sample"]
    if not guided:
        return [noise_pred[row : row + 1] for row in range(len(courses))]
    pairs = [noise_pred[row : row + 2] for row in range(0, 2 * len(courses), 2)]
    return [_guided(pair, course.request) for pair, course in zip(pairs, courses, strict=True)]


def _guided(pair: Array, request: Request) -> Array:
    """Away from the unconditional prediction, (1, channels, height, width); `pair` has that one first."""
    unconditional, conditional = pair[:1], pair[1:]
    guided = unconditional + np.float32(request.guidance_scale) * (conditional - unconditional)
    if not request.guidance_rescale:
        return guided
    return _rescaled(guided, conditional, request.guidance_rescale)


def _rescaled(guided: Array, conditional: Array, share: float) -> Array:
    """A share of the contrast that guidance adds taken back (Lin et al. 2023, section 3.4)."""
    axes = tuple(range(1, guided.ndim))
    usual: Array = conditional.std(axis=axes, keepdims=True) / guided.std(axis=axes, keepdims=True)
    return guided * (np.float32(share) * usual + np.float32(1 - share))


def _encoded_images(
    bundle: Bundle, graphs: Graphs, request: Request, check: Callable[[], None]
) -> dict[int, Array]:
    """The pictures to be drawn over as latents, by their ids."""
    encoded: dict[int, Array] = {}
    graphs.stage("encode")
    for image in request.images:
        if id(image) not in encoded:
            check()
            sample = as_sample(image, request.width, request.height)
            latents = graphs.run("vae_encoder", sample=sample)["latent_sample"]
            encoded[id(image)] = latents * np.float32(bundle.decoder.scaling_factor)
    return encoded


def _over(bundle: Bundle, request: Request, number: int, encoded: Mapping[int, Array], noise: Array) -> _Over:
    """What picture `number` of a request is drawn over."""
    scale = bundle.decoder.downscale
    mask = as_mask(request.masks[number], request.width, request.height, scale) if request.masks else None
    return _Over(latents=encoded[id(request.images[number])], noise=noise, mask=mask)
