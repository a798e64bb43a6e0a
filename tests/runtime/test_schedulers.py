"""Our schedulers against diffusers', and against what is true of any scheduler."""

import itertools
from typing import Any

import numpy as np
import pytest

from perfusion.errors import RequestError
from perfusion.runtime.schedulers import SCHEDULERS, NoiseModel, Schedule, make_schedule

STABLE_DIFFUSION: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}
SETTINGS: list[dict[str, Any]] = [
    {**STABLE_DIFFUSION, "prediction_type": prediction, "timestep_spacing": spacing, "set_alpha_to_one": one}
    for prediction, spacing, one in itertools.product(
        ("epsilon", "v_prediction"), ("leading", "trailing", "linspace"), (True, False)
    )
] + [
    {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    {"num_train_timesteps": 200, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2"},
    {**STABLE_DIFFUSION, "clip_sample": True, "clip_sample_range": 0.7},
]


def model(latents: np.ndarray, timestep: float) -> np.ndarray:
    """Something smooth in the place of a UNet, of the size a UNet's answer has."""
    return np.tanh(latents * 0.9 + np.sin(timestep / 100.0)).astype(np.float32)


def ours(schedule: Schedule, noise: np.ndarray) -> list[np.ndarray]:
    """The sample after every step."""
    latents, seen = noise * np.float32(schedule.initial_scale), []
    for index in range(len(schedule)):
        prediction = model(latents, float(schedule.timesteps[index]))
        latents = schedule.mix(index, *schedule.clean_and_noise(index, latents, prediction))
        assert latents.dtype == np.float32
        seen.append(latents)
    return seen


def diffusers_ddim(settings: dict, steps: int, noise: np.ndarray) -> list[np.ndarray]:
    import torch
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**{"beta_schedule": "scaled_linear", "clip_sample": False, **settings})
    scheduler.set_timesteps(steps)
    latents, seen = torch.from_numpy(noise) * scheduler.init_noise_sigma, []
    for timestep in scheduler.timesteps:
        prediction = torch.from_numpy(model(latents.numpy(), float(timestep)))
        latents = scheduler.step(prediction, timestep, latents).prev_sample
        seen.append(latents.numpy())
    return seen


def diffusers_euler(settings: dict, steps: int, noise: np.ndarray) -> list[np.ndarray]:
    """diffusers keeps k-diffusion's variable; divided by sqrt(1 + sigma²) it is ours."""
    import torch
    from diffusers import EulerDiscreteScheduler

    known = {key: value for key, value in settings.items() if key != "set_alpha_to_one" and "clip" not in key}
    scheduler = EulerDiscreteScheduler(
        **{"beta_schedule": "scaled_linear", "timestep_spacing": "leading", **known}
    )
    scheduler.set_timesteps(steps)
    latents, seen = torch.from_numpy(noise) * scheduler.init_noise_sigma, []
    for index, timestep in enumerate(scheduler.timesteps):
        prediction = torch.from_numpy(
            model(scheduler.scale_model_input(latents, timestep).numpy(), float(timestep))
        )
        latents = scheduler.step(prediction, timestep, latents).prev_sample
        seen.append((latents / (1 + scheduler.sigmas[index + 1] ** 2) ** 0.5).numpy())
    return seen


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' Euler and numpy 2
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(value) for value in s.values()))
@pytest.mark.parametrize("name, reference", [("ddim", diffusers_ddim), ("euler", diffusers_euler)])
def test_every_step_equals_that_of_diffusers(name, reference, settings, steps):
    noise = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    schedule = make_schedule(name, NoiseModel(**settings), steps)
    expected = reference(settings, steps, noise)
    assert len(schedule) == len(expected) == steps
    for mine, theirs in zip(ours(schedule, noise), expected, strict=True):
        scale = max(1.0, float(np.abs(theirs).max()))
        assert np.abs(mine - theirs).max() <= 1e-5 * scale


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_true_noise_leads_to_the_clean_sample(name, prediction_type):
    rng = np.random.default_rng(1)
    clean, noise = rng.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
    schedule = make_schedule(name, NoiseModel(**STABLE_DIFFUSION, prediction_type=prediction_type), 20)
    latents = (np.sqrt(schedule.alphas[0]) * clean + np.sqrt(1 - schedule.alphas[0]) * noise).astype(
        np.float32
    )
    for index in range(len(schedule)):
        signal, spread = np.sqrt(schedule.alphas[index]), np.sqrt(1 - schedule.alphas[index])
        truth = (
            noise if prediction_type == "epsilon" else (signal * noise - spread * clean).astype(np.float32)
        )
        latents = schedule.mix(index, *schedule.clean_and_noise(index, latents, truth))
    assert np.abs(latents - clean).max() < 1e-4


def test_levels_fall_from_noise_to_a_clean_sample():
    schedule = make_schedule("euler", NoiseModel(**STABLE_DIFFUSION), 20)
    assert (np.diff(schedule.alphas) > 0).all()
    assert schedule.next_alphas[-1] == 1.0
    np.testing.assert_array_equal(schedule.alphas[1:], schedule.next_alphas[:-1])


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_as_many_steps_as_timesteps_stay_inside_the_table(name, spacing):
    schedule = make_schedule(name, NoiseModel(**STABLE_DIFFUSION, timestep_spacing=spacing), 1000)
    assert len(schedule) == 1000
    assert schedule.timesteps.min() >= 0 and schedule.timesteps.max() <= 999


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(RequestError, match=rf"number of steps is {steps}; this model takes 1 to 1000"):
        make_schedule("ddim", NoiseModel(**STABLE_DIFFUSION), steps)


def test_an_unknown_scheduler_is_refused_with_the_known_ones():
    with pytest.raises(RequestError, match=r"'dpm'; choose one of ddim, euler"):
        make_schedule("dpm", NoiseModel(**STABLE_DIFFUSION), 20)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"beta_schedule": "sqrt"}, "beta_schedule is 'sqrt'"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"timestep_spacing": "random"}, "timestep_spacing is 'random'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"beta_end": 1.5}, "betas go from"),
        ({"steps_offset": 1000}, "steps_offset is 1000"),
    ],
)
def test_a_noise_model_that_is_none_of_ours_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NoiseModel(**{**STABLE_DIFFUSION, **change})
