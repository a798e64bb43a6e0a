"""Which noise levels a picture passes through on its way from noise, for every scheduler by its name.

The step between two levels is in `perfusion.runtime.sampling.samplers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from perfusion.bundle.noise_model import Floats, NoiseModel
from perfusion.errors import RequestError
from perfusion.runtime.sampling import samplers
from perfusion.runtime.sampling.schedule import Sampler, Schedule

__all__ = ["SCHEDULERS", "make_schedule"]

_LEAST_ALPHA = 2.0**-24  # where sigma is to stay finite; sigma is 4096 there
_RHO = 7.0  # Karras et al. 2022, eq. 5


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
    return replace(_from_table(model, steps), clip=_clip(model))


def _plms(model: NoiseModel, steps: int) -> Schedule:
    """Its first step is made twice, the second time from both of its ends."""
    schedule = _from_table(model, steps)
    above = schedule.timesteps.astype(np.int64) + model.num_train_timesteps // steps
    origins = model.alphas()[np.minimum(above, model.num_train_timesteps - 1)]
    return replace(schedule, sampler=samplers.plms, origins=origins).with_second()


def _from_table(model: NoiseModel, steps: int) -> Schedule:
    """Levels of the training's own timesteps, as DDIM and PLMS take them."""
    alphas = model.alphas()
    timesteps = np.round(_spaced(model, steps)).astype(np.int64)
    following = timesteps - model.num_train_timesteps // steps
    last = 1.0 if model.set_alpha_to_one else alphas[0]
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        alphas=alphas[timesteps],
        next_alphas=np.where(following >= 0, alphas[following], last),
        prediction_type=model.prediction_type,
        sampler=samplers.ddim,
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
    "plms": _plms,
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
