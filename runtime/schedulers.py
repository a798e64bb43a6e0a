"""Which noise levels a picture passes through, and the step between two of them: DDIM and Euler, in numpy.

One convention inside: a sample at level `alpha` (the papers' cumulative product of alphas) is

    sqrt(alpha) · clean + sqrt(1 - alpha) · noise

and what the UNet predicts is turned into (clean, noise) at the border. Written like this, DDIM's step and an
Euler step of the probability-flow equation are the same line; the two differ only in the levels they visit,
where they start and where they stop. k-diffusion's variable is this one times sqrt(1 + sigma²), where
sigma² = (1 - alpha) / alpha.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import RequestError

__all__ = ["SCHEDULERS", "NoiseModel", "Schedule", "make_schedule"]

Floats = NDArray[np.float64]
Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """How a base model was trained to see noise, in the words of diffusers' scheduler config.

    Raises ValueError for a setting that is none of ours; the bundle's reader turns that into a sentence.
    """

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str = "scaled_linear"  # or linear, squaredcos_cap_v2
    prediction_type: str = "epsilon"  # or v_prediction
    timestep_spacing: str = "leading"  # or trailing, linspace
    steps_offset: int = 0
    set_alpha_to_one: bool = True  # DDIM's last level: 1, or that of timestep 0
    clip_sample: bool = False  # DDIM clips the clean sample; only models of pixels want it
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        _among("beta_schedule", self.beta_schedule, ("scaled_linear", "linear", "squaredcos_cap_v2"))
        _among("prediction_type", self.prediction_type, ("epsilon", "v_prediction"))
        _among("timestep_spacing", self.timestep_spacing, ("leading", "trailing", "linspace"))
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps is {self.num_train_timesteps}, expected at least 1")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"betas go from {self.beta_start} to {self.beta_end}, expected 0 < start <= end < 1"
            )
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise ValueError(
                f"steps_offset is {self.steps_offset}, expected 0 to {self.num_train_timesteps - 1}"
            )

    def alphas(self) -> Floats:
        """(num_train_timesteps,) the share of the clean sample's variance left at every timestep, falling."""
        count = self.num_train_timesteps
        if self.beta_schedule == "linear":
            betas: Floats = np.linspace(self.beta_start, self.beta_end, count)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        else:  # "Improved Denoising Diffusion Probabilistic Models", eq. 17
            bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        return np.cumprod(1.0 - betas, dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """The steps of one picture: `timesteps` for the UNet, the level before and after each step."""

    timesteps: Array  # (steps,)
    alphas: Floats  # (steps,)
    next_alphas: Floats  # (steps,)
    prediction_type: str
    initial_scale: float = 1.0  # what unit noise is multiplied by to be the first sample
    clip: float | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    def clean_and_noise(self, index: int, latents: Array, prediction: Array) -> tuple[Array, Array]:
        """What the UNet's `prediction` says `latents` are made of, both of `latents`' shape."""
        signal, spread = _amplitudes(self.alphas[index])
        if self.prediction_type == "v_prediction":  # v = signal · noise - spread · clean
            clean = signal * latents - spread * prediction
            noise = spread * latents + signal * prediction
        else:
            clean = (latents - spread * prediction) / signal
            noise = prediction
        return (clean if self.clip is None else clean.clip(-self.clip, self.clip)), noise

    def mix(self, index: int, clean: Array, noise: Array) -> Array:
        """The sample after step `index`: both mixed at the next level (DDIM, eq. 12 with eta = 0)."""
        signal, spread = _amplitudes(self.next_alphas[index])
        return signal * clean + spread * noise


def make_schedule(name: str, model: NoiseModel, steps: int) -> Schedule:
    """The `steps` steps of scheduler `name` ("ddim" or "euler") for a base model.

    Raises:
        RequestError: no such scheduler, or more steps than the model has timesteps.
    """
    if name not in SCHEDULERS:
        raise RequestError(f"The scheduler is {name!r}; choose one of {', '.join(sorted(SCHEDULERS))}.")
    if not 1 <= steps <= model.num_train_timesteps:
        raise RequestError(
            f"The number of steps is {steps}; this model takes 1 to {model.num_train_timesteps}, "
            "and 20 to 50 are usual."
        )
    return SCHEDULERS[name](model, steps)


def _ddim(model: NoiseModel, steps: int) -> Schedule:
    """Denoising Diffusion Implicit Models, Song et al. 2020, without added noise."""
    alphas = model.alphas()
    timesteps = np.round(_spaced(model, steps)).astype(np.int64)
    following = timesteps - model.num_train_timesteps // steps
    last = 1.0 if model.set_alpha_to_one else alphas[0]
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        alphas=alphas[timesteps],
        next_alphas=np.where(following >= 0, alphas[following], last),
        prediction_type=model.prediction_type,
        clip=model.clip_sample_range if model.clip_sample else None,
    )


def _euler(model: NoiseModel, steps: int) -> Schedule:
    """Algorithm 2 of Karras et al. 2022 without churn: straight lines in sigma, down to no noise at all."""
    alphas = model.alphas()
    timesteps = _spaced(model, steps)
    sigmas = np.interp(timesteps, np.arange(len(alphas)), np.sqrt((1 - alphas) / alphas))
    levels = np.append(1 / (1 + sigmas**2), 1.0)
    # As diffusers does: noise alone where the spacing begins at the last timestep, unit variance elsewhere.
    noise_only = model.timestep_spacing in ("linspace", "trailing")
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        alphas=levels[:-1],
        next_alphas=levels[1:],
        prediction_type=model.prediction_type,
        initial_scale=float(np.sqrt(1 - levels[0])) if noise_only else 1.0,
    )


SCHEDULERS: Mapping[str, Callable[[NoiseModel, int], Schedule]] = {"ddim": _ddim, "euler": _euler}


def _spaced(model: NoiseModel, steps: int) -> Floats:
    """(steps,) falling timesteps, fractional under "linspace" (Lin et al. 2023, table 2)."""
    count = model.num_train_timesteps
    if model.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps)[::-1]
    if model.timestep_spacing == "leading":
        # The offset can push the first of very many steps past the end.
        return np.minimum(np.arange(steps)[::-1] * (count // steps) + model.steps_offset, count - 1.0)
    return np.round(count - np.arange(steps) * (count / steps)) - 1.0


def _amplitudes(alpha: float) -> tuple[float, float]:
    """The amplitudes of clean and noise at a level, as Python floats so that float32 arrays stay float32."""
    return float(np.sqrt(alpha)), float(np.sqrt(1.0 - alpha))


def _among(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
