"""The way of one picture from noise to latents: its noise levels, and what a step between two of them is given.

A sample at level `alpha` (the papers' cumulative product of alphas) is

    sqrt(alpha) · clean + sqrt(1 - alpha) · noise

and that is the one convention of `perfusion.runtime.sampling.samplers` and `perfusion.runtime.sampling.schedulers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.noise_model import Floats
from perfusion.concept.phases import noise_share
from perfusion.errors import RequestError

__all__ = ["Estimate", "NoiseSource", "Sampler", "Schedule"]

Array = NDArray[np.float32]

_LONGEST_HISTORY = 5  # evaluations that a sampler looks back on, its own among them: PLMS'
_MOST_STEPS = 1000  # that a model is asked for

NoiseSource = Callable[[], Array]
"""Fresh unit noise for every picture, of the latents' shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A sample, what the UNet predicts for it, and what it is made of by that."""

    latents: Array
    prediction: Array
    clean: Array
    noise: Array


Sampler = Callable[["Schedule", int, Sequence[Estimate], NoiseSource], tuple[Array, Array]]
"""The sample after evaluation `index`, and the clean one it leads to; of the estimates the last are the newest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """The UNet's evaluations for one picture: `timesteps` to give it, the level before and after each.

    In most schedulers there is one evaluation a step. Heun has two, the last step excepted; PLMS has two in its first.
    """

    timesteps: Array  # (evaluations,)
    alphas: Floats  # (evaluations,)
    next_alphas: Floats  # (evaluations,)
    prediction_type: str
    sampler: Sampler
    order: int = 1  # evaluations a step
    initial_scale: float = 1.0  # what unit noise is multiplied by to be the first sample
    clip: float | None = None
    timestep_scaling: float = 10.0  # LCM's
    train_timesteps: int = 1000  # of the base model
    origins: Floats | None = None  # PLMS: the level one step above each; its first step has two evaluations

    def __len__(self) -> int:
        return len(self.timesteps)

    def sigma(self, index: int) -> float:
        """k-diffusion's noise level at evaluation `index`."""
        return _sigma(float(self.alphas[index]))

    def next_sigma(self, index: int) -> float:
        """k-diffusion's noise level after evaluation `index`."""
        return _sigma(float(self.next_alphas[index]))

    def step(
        self,
        index: int,
        latents: Array,
        prediction: Array,
        history: list[Estimate],
        fresh: NoiseSource,
    ) -> tuple[Array, Array]:
        """The sample after evaluation `index`, and the clean sample it is on the way to.

        `latents` and the UNet's `prediction` of them (pictures, channels, height, width). `history` is the
        caller's to keep from one call to the next, and empty before the first.
        """
        clean, noise = self.clean_and_noise(index, latents, prediction)
        history.append(Estimate(latents=latents, prediction=prediction, clean=clean, noise=noise))
        del history[:-_LONGEST_HISTORY]
        return self.sampler(self, index, history, fresh)

    def clean_and_noise(self, index: int, latents: Array, prediction: Array) -> tuple[Array, Array]:
        """What the UNet's `prediction` says `latents` are made of, both of `latents`' shape."""
        return self.separated(float(self.alphas[index]), latents, prediction)

    def separated(self, alpha: float, latents: Array, prediction: Array) -> tuple[Array, Array]:
        """The same for latents at any level."""
        signal, spread = _amplitudes(alpha)
        if self.prediction_type == "v_prediction":  # v = signal · noise - spread · clean
            clean = signal * latents - spread * prediction
            noise = spread * latents + signal * prediction
        else:
            clean = (latents - spread * prediction) / signal
            noise = prediction
        return (clean if self.clip is None else clean.clip(-self.clip, self.clip)), noise

    def mix(self, index: int, clean: Array, noise: Array) -> Array:
        """Both mixed at the level after evaluation `index`."""
        signal, spread = _amplitudes(self.next_alphas[index])
        return signal * clean + spread * noise

    def noised(self, index: int, clean: Array, noise: Array) -> Array:
        """Both mixed at the level that evaluation `index` sees: what a picture looks like there."""
        signal, spread = _amplitudes(self.alphas[index])
        return signal * clean + spread * noise

    def share(self, index: int) -> float:
        """How many of the base model's noise levels lie behind evaluation `index`, 0 to 1, from pure noise on."""
        return noise_share(float(self.timesteps[index]), self.train_timesteps)

    def check_start(self, start: float) -> None:
        """Raise RequestError where no evaluation is left at or after a share of the noise levels."""
        last = self.share(len(self) - 1)
        if start > last:
            raise RequestError(
                f"A concept's start is {start:g}, and the last of the steps stands at {last:.2f}: it would never come "
                "in. Give a lower start, or more steps."
            )

    def last_part(self, strength: float) -> Schedule:
        """The last of the steps, `strength` of them, as diffusers counts: for a picture that is drawn over.

        Raises:
            RequestError: not even one step is left.
        """
        steps = self.steps
        kept = min(int(steps * strength), steps)
        if strength <= 0:
            raise RequestError(
                "The image strength is 0, which leaves no step. Expected a number above 0, to 1."
            )
        if kept < 1:
            enough = next((count for count in range(steps, _MOST_STEPS + 1) if int(count * strength)), None)
            remedy = f"Raise one of them: {enough} steps would do." if enough else "Raise it."
            raise RequestError(f"An image strength of {strength:g} leaves none of {steps} steps. {remedy}")
        if self.origins is not None:
            return self._without_second()._from(steps - kept).with_second()
        return self._from((steps - kept) * self.order)

    @property
    def steps(self) -> int:
        """Steps, of one evaluation or more."""
        if self.origins is not None:
            return max(1, len(self) - 1)
        return (len(self) + self.order - 1) // self.order

    def with_second(self) -> Schedule:
        """PLMS: the first step evaluated at both of its ends, the second time to make it anew with both."""
        if len(self) == 1 or self.origins is None:
            return self
        return replace(
            self,
            timesteps=np.insert(self.timesteps, 1, self.timesteps[1]),
            alphas=np.insert(self.alphas, 1, self.alphas[1]),
            next_alphas=np.insert(self.next_alphas, 1, self.alphas[1]),
            origins=np.insert(self.origins, 1, self.origins[1]),
        )

    def _without_second(self) -> Schedule:
        return self if len(self) == 1 else self._only(np.delete(np.arange(len(self)), 1))

    def _from(self, start: int) -> Schedule:
        return self._only(np.arange(start, len(self)))

    def _only(self, evaluations: NDArray[np.intp]) -> Schedule:
        return replace(
            self,
            timesteps=self.timesteps[evaluations],
            alphas=self.alphas[evaluations],
            next_alphas=self.next_alphas[evaluations],
            origins=None if self.origins is None else self.origins[evaluations],
        )


def _amplitudes(alpha: float) -> tuple[float, float]:
    """The amplitudes of clean and noise at a level, as Python floats so that float32 arrays stay float32."""
    return float(np.sqrt(alpha)), float(np.sqrt(1.0 - alpha))


def _sigma(alpha: float) -> float:
    return float(np.sqrt((1.0 - alpha) / alpha))
