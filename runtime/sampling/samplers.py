"""From one noise level to the next: DDIM, Euler, Euler ancestral, DPM++ 2M, Heun and LCM.

A sample at level `alpha` (the papers' cumulative product of alphas) is

    sqrt(alpha) · clean + sqrt(1 - alpha) · noise

and what the UNet predicts was turned into (clean, noise) before it comes here. Written like this DDIM's step and
an Euler step of the probability-flow equation are the same line, and DPM++ 2M is that line with one term more.
k-diffusion's variable is this one times sqrt(1 + sigma²), where sigma² = (1 - alpha) / alpha; it never appears, so
nothing has to be scaled for the UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from perfusion.runtime.sampling.schedulers import Schedule

__all__ = ["Draw", "Parts", "Sampler", "ddim", "dpmpp_2m", "euler_ancestral", "heun", "lcm"]

Array = NDArray[np.float32]
Draw = Callable[[], Array]
"""Fresh unit noise for every picture, of the latents' shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A sample, and what the UNet says it is made of."""

    latents: Array
    clean: Array
    noise: Array


Sampler = Callable[["Schedule", int, Sequence[Parts], Draw], tuple[Array, Array]]
"""The sample after evaluation `index`, and the clean one it leads to; of the parts the last are the newest."""


def ddim(schedule: Schedule, index: int, parts: Sequence[Parts], draw: Draw) -> tuple[Array, Array]:
    """Song et al. 2020, eq. 12 with eta = 0; and Karras et al. 2022, algorithm 1, in this variable."""
    return schedule.mix(index, parts[-1].clean, parts[-1].noise), parts[-1].clean


def euler_ancestral(
    schedule: Schedule, index: int, parts: Sequence[Parts], draw: Draw
) -> tuple[Array, Array]:
    """An Euler step further down than asked for, and fresh noise up to the level again (k-diffusion)."""
    sigma, following = schedule.sigma(index), schedule.next_sigma(index)
    up = following * np.sqrt(1 - (following / sigma) ** 2)
    down = np.sqrt(following**2 - up**2)
    moved = parts[-1].clean + float(down) * parts[-1].noise + float(up) * draw()
    return moved * float(1 / np.sqrt(1 + following**2)), parts[-1].clean


def dpmpp_2m(schedule: Schedule, index: int, parts: Sequence[Parts], draw: Draw) -> tuple[Array, Array]:
    """Lu et al. 2022, DPM-Solver++(2M): the clean sample is extrapolated along lambda = -log(sigma)."""
    newest, clean = parts[-1], parts[-1].clean
    moved = schedule.mix(index, clean, newest.noise)
    following = schedule.next_sigma(index)
    if len(parts) == 1 or following == 0:  # no slope is known yet, or lambda is infinite
        return moved, clean
    before, sigma = schedule.sigma(index - 1), schedule.sigma(index)
    step, last = np.log(sigma / following), np.log(before / sigma)  # h and h_last
    if last <= 0:  # two evaluations at one level, when there are as many steps as timesteps
        return moved, clean
    weight = (1 - following / sigma) / np.sqrt(1 + following**2) * step / (2 * last)
    return moved + float(weight) * (clean - parts[-2].clean), clean


def heun(schedule: Schedule, index: int, parts: Sequence[Parts], draw: Draw) -> tuple[Array, Array]:
    """Karras et al. 2022, algorithm 1: Euler to the next level, then again with the mean of both slopes.

    Evaluations come in pairs, the first at the level left and the second at the level reached; the step to no
    noise at all has no second.
    """
    if index % 2 == 0:
        return ddim(schedule, index, parts, draw)
    start, end = parts[-2], parts[-1]
    sigma, following = schedule.sigma(index - 1), schedule.sigma(index)
    slope: Array = np.float32(0.5) * (start.noise + end.noise)
    moved = start.clean + sigma * start.noise + (following - sigma) * slope
    return moved * float(1 / np.sqrt(1 + following**2)), end.clean


def lcm(schedule: Schedule, index: int, parts: Sequence[Parts], draw: Draw) -> tuple[Array, Array]:
    """Luo et al. 2023, algorithm 3: the clean sample at once, and fresh noise up to the next level."""
    time = float(schedule.timesteps[index]) * schedule.timestep_scaling
    skip = 0.5**2 / (time**2 + 0.5**2)
    out = float(time / np.sqrt(time**2 + 0.5**2))
    clean = out * parts[-1].clean + skip * parts[-1].latents
    if schedule.next_sigma(index) == 0:
        return clean, clean
    return schedule.mix(index, clean, draw()), clean
