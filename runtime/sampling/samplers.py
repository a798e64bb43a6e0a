"""From one noise level to the next: DDIM, PLMS, Euler, Euler ancestral, DPM++ 2M, Heun and LCM.

A sample at level `alpha` (the papers' cumulative product of alphas) is

    sqrt(alpha) · clean + sqrt(1 - alpha) · noise

and what the UNet predicts was turned into (clean, noise) before it comes here. Written like this DDIM's step and
an Euler step of the probability-flow equation are the same line, and DPM++ 2M is that line with one term more.
k-diffusion's variable is this one times sqrt(1 + sigma²), where sigma² = (1 - alpha) / alpha; it never appears, so
nothing has to be scaled for the UNet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perfusion.runtime.sampling.schedule import Estimate, NoiseSource, Schedule

__all__ = ["ddim", "dpmpp_2m", "euler_ancestral", "heun", "lcm", "plms"]

Array = NDArray[np.float32]

_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""How much the newest predictions count, the newest first, by how many there are."""


def ddim(
    schedule: Schedule, index: int, estimates: Sequence[Estimate], fresh: NoiseSource
) -> tuple[Array, Array]:
    """Song et al. 2020, eq. 12 with eta = 0; and Karras et al. 2022, algorithm 1, in this variable."""
    return schedule.mix(index, estimates[-1].clean, estimates[-1].noise), estimates[-1].clean


def euler_ancestral(
    schedule: Schedule, index: int, estimates: Sequence[Estimate], fresh: NoiseSource
) -> tuple[Array, Array]:
    """An Euler step further down than asked for, and fresh noise up to the level again (k-diffusion)."""
    sigma, following = schedule.sigma(index), schedule.next_sigma(index)
    up = following * np.sqrt(1 - (following / sigma) ** 2)
    down = np.sqrt(following**2 - up**2)
    moved = estimates[-1].clean + float(down) * estimates[-1].noise + float(up) * fresh()
    return moved * float(1 / np.sqrt(1 + following**2)), estimates[-1].clean


def dpmpp_2m(
    schedule: Schedule, index: int, estimates: Sequence[Estimate], fresh: NoiseSource
) -> tuple[Array, Array]:
    """Lu et al. 2022, DPM-Solver++(2M): the clean sample is extrapolated along lambda = -log(sigma)."""
    newest, clean = estimates[-1], estimates[-1].clean
    moved = schedule.mix(index, clean, newest.noise)
    following = schedule.next_sigma(index)
    if len(estimates) == 1 or following == 0:  # no slope is known yet, or lambda is infinite
        return moved, clean
    before, sigma = schedule.sigma(index - 1), schedule.sigma(index)
    step, last = np.log(sigma / following), np.log(before / sigma)  # h and h_last
    if last <= 0:  # two evaluations at one level, when there are as many steps as timesteps
        return moved, clean
    weight = (1 - following / sigma) / np.sqrt(1 + following**2) * step / (2 * last)
    return moved + float(weight) * (clean - estimates[-2].clean), clean


def heun(
    schedule: Schedule, index: int, estimates: Sequence[Estimate], fresh: NoiseSource
) -> tuple[Array, Array]:
    """Karras et al. 2022, algorithm 1: Euler to the next level, then again with the mean of both slopes.

    Evaluations come in pairs, the first at the level left and the second at the level reached; the step to no
    noise at all has no second.
    """
    if index % 2 == 0:
        return ddim(schedule, index, estimates, fresh)
    start, end = estimates[-2], estimates[-1]
    sigma, following = schedule.sigma(index - 1), schedule.sigma(index)
    slope: Array = np.float32(0.5) * (start.noise + end.noise)
    moved = start.clean + sigma * start.noise + (following - sigma) * slope
    return moved * float(1 / np.sqrt(1 + following**2)), end.clean


def plms(
    schedule: Schedule, index: int, estimates: Sequence[Estimate], fresh: NoiseSource
) -> tuple[Array, Array]:
    """Liu et al. 2022, pseudo linear multi-step: DDIM's step with a prediction extrapolated from the last four.

    The first step is made twice: to its end, where the UNet is asked again, and anew with the mean of both answers.
    That second answer is left out of the later steps.
    """
    latents, alpha = estimates[-1].latents, float(schedule.alphas[index])
    predictions = [estimate.prediction for estimate in estimates]
    if index == 1 and schedule.origins is not None:
        latents, alpha = estimates[0].latents, float(schedule.origins[1])
        prediction: Array = (predictions[0] + predictions[1]) / np.float32(2)
    else:
        if 1 < index <= len(predictions):  # the second evaluation is among them
            del predictions[-index]
        newest = predictions[:-5:-1]
        weights = _ADAMS_BASHFORTH[len(newest)]
        parts = (np.float32(weight) * part for weight, part in zip(weights, newest, strict=True))
        prediction = sum(parts, start=np.zeros_like(latents))
    clean, noise = schedule.separated(alpha, latents, prediction)
    return schedule.mix(index, clean, noise), clean


def lcm(
    schedule: Schedule, index: int, estimates: Sequence[Estimate], fresh: NoiseSource
) -> tuple[Array, Array]:
    """Luo et al. 2023, algorithm 3: the clean sample at once, and fresh noise up to the next level."""
    time = float(schedule.timesteps[index]) * schedule.timestep_scaling
    skip = 0.5**2 / (time**2 + 0.5**2)
    out = float(time / np.sqrt(time**2 + 0.5**2))
    clean = out * estimates[-1].clean + skip * estimates[-1].latents
    if schedule.next_sigma(index) == 0:
        return clean, clean
    return schedule.mix(index, clean, fresh()), clean
