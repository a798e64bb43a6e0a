"""A folder's scheduler against diffusers' pipeline opened on the folder: the same steps, or a word of the export."""

import inspect
import itertools
import json
import logging
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from perfusion.base.loading import load_scheduler, scheduler_class
from perfusion.bundle.names import KARRAS, TAKE_KARRAS
from perfusion.bundle.noise_model import NoiseModel
from perfusion.errors import ModelError
from perfusion.export.manifest import SAMPLER_OF_CLASS, scheduler_settings
from perfusion.runtime.sampling.schedule import Estimate
from perfusion.runtime.sampling.schedulers import make_schedule
from recipes.pocket.architecture import build_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore:.*is outdated", "ignore")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ANSWERS: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (500,),
    "beta_start": (0.001,),
    "beta_end": (0.02,),
    "beta_schedule": ("linear", "squaredcos_cap_v2", "exp", "sigmoid"),
    "trained_betas": ([0.001 + 0.00001 * index for index in range(1000)],),
    "prediction_type": ("v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "steps_offset": (0, 1, 3),
    "clip_sample_range": (0.5,),
    "set_alpha_to_one": (True, False),
    "algorithm_type": ("dpmsolver", "sde-dpmsolver++"),
    "solver_order": (1, 3),
    "solver_type": ("heun", "bh2"),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
    "final_sigmas_type": ("sigma_min",),
    "sigma_min": (0.1,),
    "sigma_max": (10.0,),
    "lambda_min_clipped": (-5.1,),
    "variance_type": ("learned", "fixed_large"),
    "original_inference_steps": (40,),
    "timestep_scaling": (7.0,),
    "flow_shift": (3.0,),
    "dynamic_thresholding_ratio": (0.9,),
    "sample_max_value": (2.0,),
    "time_shift_type": ("exponential",),
}  # fmt: skip
"""Other values than a class's own; of what is true or false there are two, and both are tried."""


def settings_of(kind: type) -> list[dict[str, Any]]:
    """Files that say nothing but the betas, and with each setting of a class in turn."""
    files: list[dict[str, Any]] = [{}]
    for name, parameter in inspect.signature(kind).parameters.items():
        if name != "self":
            values = ANSWERS.get(name) or (True, False)
            assert name in ANSWERS or parameter.default in (True, False, None), f"say what else {name} may be"
            files += [{name: value} for value in values]
    usual = {"PNDMScheduler": {"skip_prk_steps": True}}.get(kind.__name__, {})  # what SD 1.4 and 1.5 say
    zero_snr = {"prediction_type": "v_prediction"}  # models that predict noise say nothing of noise alone
    return [usual | file | (zero_snr if file.get("rescale_betas_zero_snr") else {}) for file in files]


CASES = [
    pytest.param(kind, file, id=f"{kind}-{'-'.join(map(str, file))}-{str(list(file.values()))[:20]}")
    for kind in SAMPLER_OF_CLASS
    for file in settings_of(getattr(diffusers, kind))
]


@pytest.fixture(scope="module")
def tiny_pipeline() -> Any:
    return build_pipeline("tiny")


@pytest.fixture
def folder(tmp_path):
    """Writes what of a model's folder is about its scheduler."""

    def write(
        kind: str, file: dict[str, Any], *, pipeline: str = "StableDiffusionPipeline", config: str = ""
    ):
        (tmp_path / "scheduler").mkdir(exist_ok=True)
        text = json.dumps({"_class_name": config or kind, **BETAS, **file})
        (tmp_path / "scheduler/scheduler_config.json").write_text(text)
        index = {"_class_name": pipeline, "scheduler": ["diffusers", kind]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        return tmp_path

    return write


def read(folder) -> dict[str, Any]:
    """What bundle.json would say."""
    base: Any = SimpleNamespace(
        folder=folder, scheduler=load_scheduler(folder), scheduler_class=scheduler_class(folder)
    )
    return scheduler_settings(base)


def read_or_refuse(folder) -> tuple[dict[str, Any], str]:
    try:
        return read(folder), ""
    except ModelError as error:
        return {}, str(error)


def of_pipeline(folder, tiny_pipeline) -> Any:
    """The scheduler of diffusers' pipeline, whose constructor repairs old files."""
    index = json.loads((folder / "model_index.json").read_text())
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler")
    parts = {**tiny_pipeline.components, "scheduler": scheduler}
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False).scheduler


def model(latents: np.ndarray, timestep: float) -> np.ndarray:
    """Something smooth in the place of a UNet."""
    return np.tanh(latents * 0.9 + np.sin(timestep / 100.0)).astype(np.float32)


def noises(seed: int = 100) -> Any:
    """The same fresh noise for both sides."""
    seeds = itertools.count(seed)
    return lambda: np.random.default_rng(next(seeds)).standard_normal((1, 4, 8, 8)).astype(np.float32)


def our_last(settings: dict[str, Any], steps: int) -> np.ndarray:
    known = {field.name for field in fields(NoiseModel)}
    noise_model = NoiseModel(**{name: value for name, value in settings.items() if name in known})
    karras = settings["use_karras_sigmas"] and settings["sampler"] in TAKE_KARRAS
    schedule = make_schedule(settings["sampler"] + (KARRAS if karras else ""), noise_model, steps)
    fresh, history = noises(), list[Estimate]()
    latents = noises(0)() * np.float32(schedule.initial_scale)
    for index, timestep in enumerate(schedule.timesteps):
        latents, _ = schedule.step(index, latents, model(latents, float(timestep)), history, fresh)
    return latents


def their_last(scheduler: Any, steps: int, monkeypatch: Any) -> np.ndarray:
    fresh = noises()
    for module in ("euler_ancestral_discrete", "lcm", "dpmsolver_multistep"):
        place = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
        monkeypatch.setattr(place, lambda *_, **__: torch.from_numpy(fresh()))
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(noises(0)()) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        entered = scheduler.scale_model_input(latents, timestep)
        prediction = torch.from_numpy(model(entered.numpy(), float(timestep)))
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return np.asarray(latents.float().numpy())


@pytest.mark.parametrize("kind, file", CASES)
def test_every_setting_of_every_class_is_followed_or_named(
    folder, tiny_pipeline, kind, file, monkeypatch, caplog
):
    place = folder(kind, file)
    with caplog.at_level(logging.WARNING):
        settings, refusal = read_or_refuse(place)
    words = refusal + caplog.text
    if any(name in words for name in file) or "cannot be made" in words:
        return
    ours, theirs = our_last(settings, 7), their_last(of_pipeline(place, tiny_pipeline), 7, monkeypatch)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize(
    "kind", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"]
)
@pytest.mark.parametrize("file", [{}, {"clip_sample": True, "steps_offset": 0}, {"steps_offset": 7}])
def test_old_files_are_repaired_as_the_pipeline_repairs_them(folder, tiny_pipeline, kind, file):
    place = folder(kind, file)
    theirs = dict(of_pipeline(place, tiny_pipeline).config)
    ours = load_scheduler(place)
    assert ours == {name: theirs[name] for name in ours}
    assert ours["steps_offset"] == 1


@pytest.mark.parametrize("pipeline", ["StableDiffusionXLPipeline", "LatentConsistencyModelPipeline"])
def test_pipelines_that_repair_nothing_leave_the_file_its_say(folder, pipeline):
    place = folder("LCMScheduler", {"clip_sample": True, "steps_offset": 0}, pipeline=pipeline)
    assert (load_scheduler(place)["clip_sample"], load_scheduler(place)["steps_offset"]) == (True, 0)


def test_model_index_has_the_say_where_the_two_files_name_two_classes(folder, tiny_pipeline):
    place = folder("PNDMScheduler", {"skip_prk_steps": True}, config="DDIMScheduler")
    assert scheduler_class(place) == type(of_pipeline(place, tiny_pipeline)).__name__ == "PNDMScheduler"
    assert read(place)["sampler"] == "plms"


def test_a_class_that_the_runtime_lacks_is_named_with_what_is_drawn_instead(folder, caplog):
    read(folder("UniPCMultistepScheduler", {}))
    (record,) = caplog.records
    assert (
        "UniPCMultistepScheduler, which the runtime does not have. The bundle draws with ddim"
        in record.message
    )
