"""Our schedulers against diffusers', and against what is true of any scheduler."""

import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from perfusion.bundle.noise_model import NoiseModel
from perfusion.errors import RequestError
from perfusion.runtime.sampling.schedule import Estimate, Schedule
from perfusion.runtime.sampling.schedulers import SCHEDULERS, make_schedule

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers, numpy 2

STABLE_DIFFUSION: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}
SETTINGS: list[dict[str, Any]] = [
    {**STABLE_DIFFUSION, "prediction_type": prediction, "timestep_spacing": spacing}
    for prediction, spacing in itertools.product(
        ("epsilon", "v_prediction"), ("leading", "trailing", "linspace")
    )
] + [
    {**STABLE_DIFFUSION, "set_alpha_to_one": False},
    {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    {"num_train_timesteps": 200, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2"},
    {**STABLE_DIFFUSION, "prediction_type": "v_prediction", "timestep_spacing": "trailing",
     "rescale_betas_zero_snr": True},
]  # fmt: skip
THEIRS: dict[str, Any] = {
    "ddim": diffusers.DDIMScheduler,
    "plms": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
}


def model(latents: np.ndarray, timestep: float) -> np.ndarray:
    """Something smooth in the place of a UNet, of the size a UNet's answer has."""
    return np.tanh(latents * 0.9 + np.sin(timestep / 100.0)).astype(np.float32)


def some_noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 4, 8, 8)).astype(np.float32)


def drawer() -> Any:
    """The same noise for both sides, one batch after another."""
    seeds = itertools.count(100)
    return lambda: some_noise(next(seeds))


def ours(schedule: Schedule, latents: np.ndarray) -> list[np.ndarray]:
    """The sample after every evaluation."""
    history: list[Estimate] = []
    draw, seen = drawer(), []
    for index, timestep in enumerate(schedule.timesteps):
        latents, clean = schedule.step(index, latents, model(latents, float(timestep)), history, draw)
        assert latents.dtype == clean.dtype == np.float32
        seen.append(latents)
    return seen


def scheduler_of(name: str, settings: dict[str, Any]) -> Any:
    """diffusers' scheduler of that name with those settings it knows."""
    base = name.removesuffix("_karras")
    known = {
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "skip_prk_steps": True,
        "set_alpha_to_one": True,
        "timestep_spacing": "leading",
        **settings,
    }
    if base != name:
        known["use_karras_sigmas"] = True
    made = THEIRS[base].from_config(known)
    if base == "heun" and settings.get(
        "rescale_betas_zero_snr"
    ):  # it does not know the setting: give it the levels
        made.alphas_cumprod = diffusers.EulerDiscreteScheduler.from_config(known).alphas_cumprod
    return made


def theirs(
    name: str, settings: dict[str, Any], steps: int, noise: np.ndarray, monkeypatch: Any
) -> list[np.ndarray]:
    """The same from diffusers, whose variable is ours times sqrt(1 + sigma²) where it scales the UNet's input."""
    scheduler = scheduler_of(name, settings)
    scheduler.set_timesteps(steps)
    if hasattr(
        scheduler, "sigmas"
    ):  # their variable is as large as sigma: float32 would lose our last digits
        scheduler.sigmas = scheduler.sigmas.double()
    draw = drawer()
    for module in ("euler_ancestral_discrete", "lcm"):
        monkeypatch.setattr(
            f"diffusers.schedulers.scheduling_{module}.randn_tensor",
            lambda *_, **__: torch.from_numpy(draw()),
        )
    scales = name.startswith(("euler", "heun"))
    latents, seen = torch.from_numpy(noise).double() * scheduler.init_noise_sigma, []
    for index, timestep in enumerate(scheduler.timesteps):
        entered = scheduler.scale_model_input(latents, timestep)
        prediction = torch.from_numpy(model(entered.float().numpy(), float(timestep))).double()
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        sigma = float(scheduler.sigmas[index + 1]) if scales else 0.0
        seen.append((latents / (1 + sigma**2) ** 0.5).numpy())
    return seen


COMPARED = [
    pytest.param(name, settings, steps, id="-".join(map(str, (name, steps, *settings.values()))))
    for name, settings, steps in itertools.product(SCHEDULERS, SETTINGS, (1, 7, 20, 50))
    # diffusers' rounded timesteps come twice there, and it loses count of its steps
    if not (name == "dpmpp_2m_karras" and settings.get("beta_schedule") == "squaredcos_cap_v2")
    and not (name == "dpmpp_2m_karras" and "rescale_betas_zero_snr" in settings and steps == 50)
    and not (name == "plms" and "rescale_betas_zero_snr" in settings)  # theirs does not know it
]


def evaluations(name: str, steps: int) -> int:
    """How often the UNet is asked: Heun asks twice a step but for the last, PLMS twice in the first of several."""
    if name == "plms":
        return steps + (steps > 1)
    return 2 * steps - 1 if name.startswith("heun") else steps


@pytest.mark.parametrize("name, settings, steps", COMPARED)
def test_every_step_equals_that_of_diffusers(name, settings, steps, monkeypatch):
    noise = some_noise()
    schedule = make_schedule(name, NoiseModel(**settings), steps)
    found = ours(schedule, noise * np.float32(schedule.initial_scale))
    expected = theirs(name, settings, steps, noise, monkeypatch)
    assert len(schedule) == len(found) == len(expected) == evaluations(name, steps)
    # Some of them round to float32 all the same, which shows where sigma is in the thousands.
    rounding = 2.0**-23 * (schedule.sigma(0) if name not in ("ddim", "plms", "lcm") else 1.0)
    for mine, one in zip(found, expected, strict=True):
        scale = max(1.0, float(np.abs(one).max()))
        assert np.abs(mine - one).max() <= 1e-5 * scale + rounding


@pytest.mark.parametrize("name", ["ddim", "lcm"])
def test_a_clean_sample_is_clipped_as_diffusers_clips_it(name, monkeypatch):
    settings = {**STABLE_DIFFUSION, "clip_sample": True, "clip_sample_range": 0.7}
    found = ours(make_schedule(name, NoiseModel(**settings), 7), some_noise())
    for mine, one in zip(found, theirs(name, settings, 7, some_noise(), monkeypatch), strict=True):
        assert np.abs(mine - one).max() <= 1e-5


@pytest.mark.parametrize("strength", [0.15, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "plms"])
def test_a_picture_drawn_over_takes_the_steps_that_diffusers_leaves_it(name, strength):
    """StableDiffusionImg2ImgPipeline.get_timesteps, and the scheduler's own add_noise at the first of them."""
    settings = {**STABLE_DIFFUSION, "timestep_spacing": "trailing"}
    scheduler = scheduler_of(name, settings)
    scheduler.set_timesteps(10)
    start = 10 - min(int(10 * strength), 10)
    expected = scheduler.timesteps[start * scheduler.order :]
    schedule = make_schedule(name, NoiseModel(**settings), 10).last_part(strength)
    np.testing.assert_allclose(schedule.timesteps, expected.numpy(), rtol=1e-6)
    clean, noise = some_noise(1), some_noise(2)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start * scheduler.order)
    noised = scheduler.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), expected[:1])
    if name.startswith(("euler", "heun")):
        noised = scheduler.scale_model_input(noised, expected[0])
    np.testing.assert_allclose(schedule.noised(0, clean, noise), noised.numpy(), atol=1e-5)


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_plms_over_a_picture_begins_with_a_step_made_twice_and_ends_without_noise(strength):
    """diffusers leaves out one of the two evaluations there and so loses a step: some of the noise stays."""
    whole = make_schedule("plms", NoiseModel(**STABLE_DIFFUSION), 20)
    schedule, kept = whole.last_part(strength), int(20 * strength)
    steps = np.delete(whole.timesteps, 1)[20 - kept :]
    assert (schedule.steps, len(schedule)) == (kept, kept + (kept > 1))
    np.testing.assert_array_equal(schedule.timesteps, np.insert(steps, 1, steps[1]) if kept > 1 else steps)
    clean, noise = some_noise(1), some_noise(2)
    latents, history = schedule.noised(0, clean, noise), list[Estimate]()
    for index in range(len(schedule)):
        latents, _ = schedule.step(index, latents, noise, history, drawer())
        if index + 1 < len(schedule):
            np.testing.assert_allclose(latents, schedule.noised(index + 1, clean, noise), atol=1e-4)
    np.testing.assert_allclose(latents, clean, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in ("euler_ancestral", "lcm")])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_true_noise_leads_to_the_clean_sample(name, prediction_type):
    if name == "plms" and prediction_type == "v_prediction":
        pytest.skip("It adds up predictions of several levels, and the true v is another at each.")
    rng = np.random.default_rng(1)
    clean, noise = rng.standard_normal((2, 1, 4, 8, 8)).astype(np.float32)
    schedule = make_schedule(name, NoiseModel(**STABLE_DIFFUSION, prediction_type=prediction_type), 20)
    history: list[Estimate] = []
    latents = schedule.noised(0, clean, noise)
    for index in range(len(schedule)):
        signal, spread = np.sqrt(schedule.alphas[index]), np.sqrt(1 - schedule.alphas[index])
        truth = (
            noise if prediction_type == "epsilon" else (signal * noise - spread * clean).astype(np.float32)
        )
        latents, seen = schedule.step(index, latents, truth, history, drawer())
        assert (
            np.abs(seen - clean).max() < 1e-3
        )  # noise is up to 14 times as strong as what is read out of it
    assert np.abs(latents - clean).max() < 1e-4


@pytest.mark.parametrize("name", ["euler_ancestral", "lcm"])
def test_fresh_noise_keeps_every_sample_at_its_level(name):
    """With the clean sample 0, all that is left after a step is noise of the deviation that its level says."""
    schedule = make_schedule(name, NoiseModel(**STABLE_DIFFUSION), 8)
    rng = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return rng.standard_normal((1, 1, 400, 400)).astype(np.float32)

    history: list[Estimate] = []
    latents = draw()
    for index in range(len(schedule)):
        true_noise = latents / np.float32(np.sqrt(1 - schedule.alphas[index])) if index else latents
        latents = true_noise * np.float32(np.sqrt(1 - schedule.alphas[index]))
        latents, _ = schedule.step(index, latents, true_noise, history, draw)
        assert abs(latents.std() - np.sqrt(1 - schedule.next_alphas[index])) < 0.01


@pytest.mark.parametrize("name", ["euler", "euler_karras", "dpmpp_2m", "dpmpp_2m_karras"])
def test_levels_fall_from_noise_to_a_clean_sample(name):
    schedule = make_schedule(name, NoiseModel(**STABLE_DIFFUSION), 20)
    assert (np.diff(schedule.alphas) > 0).all()
    assert schedule.next_alphas[-1] == 1.0
    np.testing.assert_array_equal(schedule.alphas[1:], schedule.next_alphas[:-1])


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "lcm"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_as_many_steps_as_timesteps_stay_inside_the_table_and_finite(name, spacing):
    schedule = make_schedule(name, NoiseModel(**STABLE_DIFFUSION, timestep_spacing=spacing), 1000)
    assert len(schedule) == evaluations(name, 1000)
    assert schedule.timesteps.min() >= 0 and schedule.timesteps.max() <= 999
    assert np.isfinite(ours(schedule, some_noise())[-1]).all()


def test_a_model_that_begins_at_noise_alone_says_nothing_of_it_by_predicting_it():
    pure = NoiseModel(**STABLE_DIFFUSION, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    assert pure.alphas()[-1] == 0
    with pytest.raises(RequestError, match=r"With ddim this model begins at noise alone.*Choose euler"):
        make_schedule("ddim", pure, 5)
    assert np.isfinite(make_schedule("euler", pure, 5).sigma(0))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(RequestError, match=rf"number of steps is {steps}; this model takes 1 to 1000"):
        make_schedule("ddim", NoiseModel(**STABLE_DIFFUSION), steps)


def test_more_steps_than_lcm_was_distilled_on_are_refused():
    with pytest.raises(RequestError, match=r"steps is 51, and lcm takes at most the 50"):
        make_schedule("lcm", NoiseModel(**STABLE_DIFFUSION), 51)


@pytest.mark.parametrize(
    "strength, message", [(0.04, "leaves none of 20 steps.*25 steps would do"), (0.0, "image strength is 0")]
)
def test_a_strength_that_leaves_no_step_is_refused(strength, message):
    with pytest.raises(RequestError, match=message):
        make_schedule("euler", NoiseModel(**STABLE_DIFFUSION), 20).last_part(strength)


def test_an_unknown_scheduler_is_refused_with_the_known_ones():
    with pytest.raises(RequestError, match=r"'dpm'; choose one of ddim, plms, euler, euler_karras"):
        make_schedule("dpm", NoiseModel(**STABLE_DIFFUSION), 20)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"beta_schedule": "sqrt"}, "beta_schedule is 'sqrt'"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"timestep_spacing": "random"}, "timestep_spacing is 'random'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        (
            {"num_train_timesteps": 1, "steps_offset": 0, "rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr",
        ),
        ({"beta_end": 1.5}, "betas go from"),
        ({"steps_offset": 1000}, "steps_offset is 1000"),
    ],
)
def test_a_noise_model_that_is_none_of_ours_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NoiseModel(**{**STABLE_DIFFUSION, **change})


@pytest.mark.parametrize("strength", [0.3, 0.2, 0.07, 1 / 49, 1 / 3])
def test_the_steps_that_a_refused_image_strength_is_told_are_enough_and_no_fewer_are(strength):
    model = NoiseModel(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012)
    with pytest.raises(RequestError, match="leaves none of 2 steps") as caught:
        make_schedule("ddim", model, 2).last_part(strength)
    told = int(str(caught.value).split("Raise one of them: ")[1].split()[0])
    assert len(make_schedule("ddim", model, told).last_part(strength)) == 1
    with pytest.raises(RequestError):
        make_schedule("ddim", model, told - 1).last_part(strength)


@pytest.mark.parametrize("strength", [1e-4, 1e-17, 5e-324])
def test_an_image_strength_that_no_number_of_steps_serves_is_to_be_raised(strength):
    model = NoiseModel(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012)
    with pytest.raises(RequestError, match=r"leaves none of 2 steps\. Raise it\.$"):
        make_schedule("ddim", model, 2).last_part(strength)
