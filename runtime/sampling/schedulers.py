"""Which noise levels a picture passes through on its way from noise, for every scheduler by its name.

The step between two levels is in `perfusion.runtime.sampling.samplers`, with the one convention that both keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.noise_model import Floats, NoiseModel
from perfusion.concept.phases import noise_share
from perfusion.errors import RequestError
from perfusion.runtime.sampling import samplers
from perfusion.runtime.sampling.samplers import Draw, Parts, Sampler

__all__ = ["SCHEDULERS", "NoiseModel", "Schedule", "make_schedule"]

Array = NDArray[np.float32]

_LEAST_ALPHA = 2.0**-24  # where sigma is to stay finite; sigma is 4096 there
_MOST_STEPS = 1000  # that a model is asked for
_RHO = 7.0  # Karras et al. 2022, eq. 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """The UNet's evaluations for one picture: `timesteps` to give it, the level before and after each.

    In most schedulers there is one evaluation a step. Heun has two, the last step excepted.
    """

    timesteps: Array  # (evaluations,)
    alphas: Floats  # (evaluations,)
    next_alphas: Floats  # (evaluations,)
    prediction_type: str
    sampler: Sampler = samplers.ddim
    order: int = 1  # evaluations a step
    initial_scale: float = 1.0  # what unit noise is multiplied by to be the first sample
    clip: float | None = None
    timestep_scaling: float = 10.0  # LCM's
    train_timesteps: int = 1000  # of the base model

    def __len__(self) -> int:
        return len(self.timesteps)

    def sigma(self, index: int) -> float:
        """k-diffusion's noise level at evaluation `index`."""
        return _sigma(float(self.alphas[index]))

    def next_sigma(self, index: int) -> float:
        """k-diffusion's noise level after evaluation `index`."""
        return _sigma(float(self.next_alphas[index]))

    def step(
        self, index: int, latents: Array, prediction: Array, history: list[Parts], draw: Draw
    ) -> tuple[Array, Array]:
        """The sample after evaluation `index`, and the clean sample it is on the way to.

        `latents` and the UNet's `prediction` of them (pictures, channels, height, width). `history` is the
        caller's to keep from one call to the next, and empty before the first. `draw` gives fresh noise.
        """
        clean, noise = self.clean_and_noise(index, latents, prediction)
        history.append(Parts(latents=latents, clean=clean, noise=noise))
        del history[:-2]
        return self.sampler(self, index, history, draw)

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
        steps = (len(self) + self.order - 1) // self.order
        kept = min(int(steps * strength), steps)
        if strength <= 0:
            raise RequestError(
                "The image strength is 0, which leaves no step. Expected a number above 0, to 1."
            )
        if kept < 1:
            enough = next((count for count in range(steps, _MOST_STEPS + 1) if int(count * strength)), None)
            remedy = f"Raise one of them: {enough} steps would do." if enough else "Raise it."
            raise RequestError(f"An image strength of {strength:g} leaves none of {steps} steps. {remedy}")
        start = (steps - kept) * self.order
        return replace(
            self,
            timesteps=self.timesteps[start:],
            alphas=self.alphas[start:],
            next_alphas=self.next_alphas[start:],
        )


def make_schedule(name: str, model: NoiseModel, steps: int) -> Schedule:
    """The `steps` steps of a scheduler, one of `SCHEDULERS`, for a base model.

    Raises:
        RequestError: no such scheduler, or more steps than it can make with this model.
    """
    if name not in SCHEDULERS:
        raise RequestError(f"The scheduler is {name!r}; choose one of {', '.join(SCHEDULERS)}.")
    if not 1 <= steps <= model.num_train_timesteps:
        raise RequestError(
            f"The number of steps is {steps}; this model takes 1 to {model.num_train_timesteps}, "
            "and 20 to 50 are usual."
        )
    schedule = replace(SCHEDULERS[name](model, steps), train_timesteps=model.num_train_timesteps)
    if model.prediction_type == "epsilon" and not schedule.alphas.all():
        raise RequestError(
            f"With {name} this model begins at noise alone, of which its kind of prediction says nothing. "
            "Choose euler."
        )
    return schedule


def _ddim(model: NoiseModel, steps: int) -> Schedule:
    alphas = model.alphas()
    timesteps = np.round(_spaced(model, steps)).astype(np.int64)
    following = timesteps - model.num_train_timesteps // steps
    last = 1.0 if model.set_alpha_to_one else alphas[0]
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        alphas=alphas[timesteps],
        next_alphas=np.where(following >= 0, alphas[following], last),
        prediction_type=model.prediction_type,
        clip=_clip(model),
    )


def _lcm(model: NoiseModel, steps: int) -> Schedule:
    """Some of the timesteps that the model was distilled on."""
    most = model.original_inference_steps
    if not 1 <= most <= model.num_train_timesteps or steps > most:
        raise RequestError(
            f"The number of steps is {steps}, and lcm takes at most the {most} that the model was distilled on. "
            "4 to 8 are usual."
        )
    alphas = model.alphas()
    distilled = np.arange(1, most + 1)[::-1] * (model.num_train_timesteps // most) - 1
    timesteps = distilled[np.floor(np.linspace(0, most, steps, endpoint=False)).astype(np.int64)]
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        alphas=alphas[timesteps],
        next_alphas=np.append(alphas[timesteps[1:]], 1.0),
        prediction_type=model.prediction_type,
        sampler=samplers.lcm,
        clip=_clip(model),
        timestep_scaling=model.timestep_scaling,
    )


def _dpmpp_2m(model: NoiseModel, steps: int, karras: bool = False) -> Schedule:
    table = _sigmas(model)
    timesteps = np.round(_spaced(model, steps, last_too=False))
    sigmas = np.interp(timesteps, np.arange(len(table)), table)
    if karras:
        sigmas = _karras(table[-1], table[0], steps)
        timesteps = _timesteps_of(sigmas, table)
        # diffusers rounds here, and with the cosine schedule cuts
        timesteps = np.floor(timesteps) if model.beta_schedule == "squaredcos_cap_v2" else np.round(timesteps)
    return _falling(model, timesteps, sigmas, sampler=samplers.dpmpp_2m)


def _along_sigma(sampler: Sampler, karras: bool = False) -> Callable[[NoiseModel, int], Schedule]:
    """The schedulers that move through sigma at timesteps which may be fractions."""

    def make(model: NoiseModel, steps: int) -> Schedule:
        """The levels at evenly spaced timesteps, or as Karras et al. place them between the same two ends."""
        table = _sigmas(model)
        timesteps = _spaced(model, steps)
        sigmas = np.interp(timesteps, np.arange(len(table)), table)
        if karras:
            sigmas = _karras(sigmas[0], sigmas[-1], steps)
            timesteps = _timesteps_of(sigmas, table)
        schedule = _falling(model, timesteps, sigmas, sampler=sampler)
        # As diffusers does: noise alone where the spacing begins at the last timestep, unit variance elsewhere.
        if model.timestep_spacing in ("linspace", "trailing"):
            schedule = replace(schedule, initial_scale=float(np.sqrt(1 - schedule.alphas[0])))
        return _in_pairs(schedule) if sampler is samplers.heun else schedule

    return make


def _falling(model: NoiseModel, timesteps: Floats, sigmas: Floats, sampler: Sampler) -> Schedule:
    """From level to level, the last without noise."""
    levels = np.append(1 / (1 + sigmas**2), 1.0)
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        alphas=levels[:-1],
        next_alphas=levels[1:],
        prediction_type=model.prediction_type,
        sampler=sampler,
    )


def _in_pairs(schedule: Schedule) -> Schedule:
    """Every level but the first evaluated twice: at the end of one step and at the beginning of the next."""
    return replace(
        schedule,
        timesteps=np.repeat(schedule.timesteps, 2)[1:],
        alphas=np.repeat(schedule.alphas, 2)[1:],
        next_alphas=np.repeat(schedule.next_alphas, 2)[:-1],
        order=2,
    )


SCHEDULERS: Mapping[str, Callable[[NoiseModel, int], Schedule]] = {
    "ddim": _ddim,
    "euler": _along_sigma(samplers.ddim),
    "euler_karras": _along_sigma(samplers.ddim, karras=True),
    "euler_ancestral": _along_sigma(samplers.euler_ancestral),
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_karras": lambda model, steps: _dpmpp_2m(model, steps, karras=True),
    "heun": _along_sigma(samplers.heun),
    "heun_karras": _along_sigma(samplers.heun, karras=True),
    "lcm": _lcm,
}


def _spaced(model: NoiseModel, steps: int, *, last_too: bool = True) -> Floats:
    """(steps,) falling timesteps, fractional under "linspace" (Lin et al. 2023, table 2).

    Where the lowest of "leading" and "linspace" is not wanted, one more is made and it is left out.
    """
    count = model.num_train_timesteps
    if model.timestep_spacing == "trailing":
        return np.round(count - np.arange(steps) * (count / steps)) - 1.0
    extra = 0 if last_too else 1
    if model.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps + extra)[::-1][:steps]
    ratio = max(1, count // (steps + extra))
    # The offset can push the first of very many steps past the end.
    return np.minimum(np.arange(steps + extra)[::-1][:steps] * ratio + model.steps_offset, count - 1.0)


def _sigmas(model: NoiseModel) -> Floats:
    """(num_train_timesteps,) rising, finite even where the last timestep is noise alone."""
    alphas = model.alphas()
    if model.rescale_betas_zero_snr:
        alphas[-1] = _LEAST_ALPHA
    return np.asarray(np.sqrt((1 - alphas) / alphas), np.float64)


def _karras(first: float, last: float, steps: int) -> Floats:
    """Levels denser towards the end (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    ends = first ** (1 / _RHO), last ** (1 / _RHO)
    return np.asarray((ends[0] + ramp * (ends[1] - ends[0])) ** _RHO, np.float64)


def _timesteps_of(sigmas: Floats, table: Floats) -> Floats:
    """The timesteps, as fractions, at which a model sees these levels."""
    return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))


def _clip(model: NoiseModel) -> float | None:
    return model.clip_sample_range if model.clip_sample else None


def _amplitudes(alpha: float) -> tuple[float, float]:
    """The amplitudes of clean and noise at a level, as Python floats so that float32 arrays stay float32."""
    return float(np.sqrt(alpha)), float(np.sqrt(1.0 - alpha))


def _sigma(alpha: float) -> float:
    return float(np.sqrt((1.0 - alpha) / alpha))
