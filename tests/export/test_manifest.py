"""bundle.json says everything, from the model and from nowhere else."""

import dataclasses
import json
import shutil

import pytest

from perfusion.base.base_model import BaseModel, load_base
from perfusion.errors import ModelError
from perfusion.export.manifest import make_manifest, scheduler_settings


def changed(base: BaseModel, **scheduler: object) -> BaseModel:
    return dataclasses.replace(base, scheduler=dict(base.scheduler) | scheduler)


def manifest_of(base: BaseModel, resolution: int | None = None):
    return make_manifest(base, files={}, parity={}, precision="fp32", resolution=resolution)


def test_numbers_come_from_the_models_own_configuration(base, toy_model):
    def config(part: str):
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return json.loads((toy_model / part / name).read_text())

    manifest = manifest_of(base)
    assert manifest["base"] == "pocket"
    assert manifest["base_fingerprint"] == base.fingerprint
    assert manifest["text_dim"] == config("unet")["cross_attention_dim"] == 16
    text = manifest["text_encoders"][0]
    assert text["vocab_size"] == config("text_encoder")["vocab_size"]
    assert text["context_length"] == 77
    assert manifest["vae"]["scaling_factor"] == config("vae")["scaling_factor"]
    for name, value in manifest["scheduler"].items():
        assert value == config("scheduler").get(name, value)
    assert manifest["scheduler"]["sampler"] == "ddim"
    assert manifest["scheduler"]["prediction_type"] == "v_prediction"


def test_token_ids_are_those_of_an_encoded_prompt(base):
    text = manifest_of(base)["text_encoders"][0]
    ids = base.tokenizer("a", padding="max_length").input_ids
    assert (ids[0], ids[2], ids[-1]) == (text["bos_token_id"], text["eos_token_id"], text["pad_token_id"])


def test_the_layers_are_the_columns_of_concept_keys_and_values(base):
    layers = manifest_of(base)["unet"]["layers"]
    assert [layer["name"] for layer in layers] == [layer.name for layer in base.layers]
    assert sum(layer["key_dim"] for layer in layers) == base.layers[-1].key_slice.stop
    assert sum(layer["value_dim"] for layer in layers) == base.layers[-1].value_slice.stop


def test_the_picture_is_as_large_as_the_latents_it_was_trained_on(base):
    assert manifest_of(base)["defaults"] == {
        "width": 32,
        "height": 32,
        "guidance_scale": 3.0,
        "num_inference_steps": 4,
    }
    assert manifest_of(base, resolution=48)["defaults"]["width"] == 48


@pytest.mark.parametrize("resolution, nearest", [(30, 32), (35, 32), (1, 8), (-8, 8)])
def test_a_resolution_that_does_not_fit_is_refused_with_the_nearest_that_does(base, resolution, nearest):
    with pytest.raises(
        ModelError, match=rf"resolution {resolution} .* multiples of 8 .* nearest is {nearest}$"
    ):
        manifest_of(base, resolution=resolution)


@pytest.mark.parametrize(
    "setting, value",
    [("trained_betas", [0.1, 0.2]), ("thresholding", True)],
)
def test_a_schedule_that_no_runtime_follows_is_refused(base, setting, value):
    with pytest.raises(ModelError, match=f"scheduler sets {setting}"):
        scheduler_settings(changed(base, **{setting: value}))


@pytest.mark.parametrize(
    "setting, value",
    [("beta_schedule", "sigmoid"), ("prediction_type", "sample"), ("timestep_spacing", "odd")],
)
def test_a_schedule_of_an_unknown_kind_is_refused_with_the_kinds_that_are_known(base, setting, value):
    with pytest.raises(ModelError, match=rf"scheduler's {setting} is '{value}', expected \w+ or \w+"):
        scheduler_settings(changed(base, **{setting: value}))


def test_a_setting_the_schedulers_class_does_not_have_means_what_the_class_does(base):
    """Euler neither clips nor has a last alpha to choose."""
    euler = dataclasses.replace(
        base, scheduler={"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    )
    settings = scheduler_settings(euler)
    assert settings["clip_sample"] is False
    assert settings["steps_offset"] == 0
    assert settings["prediction_type"] == "epsilon"


@pytest.mark.parametrize("value", [None, 10_000, -1])
def test_a_tokenizer_whose_ids_the_text_encoder_does_not_know_is_refused(base, value):
    class Tokenizer:
        bos_token_id = base.tokenizer.bos_token_id
        eos_token_id = base.tokenizer.eos_token_id
        pad_token_id = value
        get_vocab = base.tokenizer.get_vocab

    with pytest.raises(ModelError, match=f"pad_token_id is {value}, expected an id below {base.vocab_size}"):
        manifest_of(dataclasses.replace(base, tokenizers=(Tokenizer(),)))


def test_a_vae_that_shifts_latents_is_refused(base, monkeypatch):
    config = dict(base.vae.config) | {"shift_factor": 0.1}
    monkeypatch.setattr(type(base.vae), "config", type(base.vae.config)(config))
    with pytest.raises(ModelError, match="shifts the latents"):
        manifest_of(base)


SAMPLERS = {
    "PNDMScheduler": "plms",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "HeunDiscreteScheduler": "heun",
    "LCMScheduler": "lcm",
    "UniPCMultistepScheduler": "ddim",
}


@pytest.fixture
def with_scheduler(toy_model, tmp_path):
    """Opens the toy model with another scheduler_config.json."""

    def opened(name: str, **settings: object) -> BaseModel:
        folder = shutil.copytree(toy_model, tmp_path / name)
        noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        text = json.dumps({"_class_name": name, **noise, **settings})
        (folder / "scheduler/scheduler_config.json").write_text(text)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
        (folder / "perfusion.json").write_text('{"family": "pocket"}')
        return load_base(folder)

    return opened


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampler_is_the_one_the_model_came_with(with_scheduler, name):
    assert scheduler_settings(with_scheduler(name))["sampler"] == SAMPLERS[name]


def test_settings_of_the_samplers_are_kept(with_scheduler):
    settings = scheduler_settings(
        with_scheduler("DPMSolverMultistepScheduler", use_karras_sigmas=True, rescale_betas_zero_snr=True)
    )
    assert (settings["sampler"], settings["use_karras_sigmas"]) == ("dpmpp_2m", True)
    assert settings["rescale_betas_zero_snr"] is True


def test_a_model_distilled_to_few_steps_is_drawn_with_few_and_without_guidance(with_scheduler):
    """SD-Turbo and SDXL-Turbo say so by this scheduler alone (tests/data/base_models)."""
    turbo = with_scheduler("EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    assert manifest_of(turbo)["defaults"] | {"width": 0, "height": 0} == {
        "width": 0, "height": 0, "guidance_scale": 1.0, "num_inference_steps": 4
    }  # fmt: skip
    told = dataclasses.replace(turbo, guidance_scale=2.0)
    assert manifest_of(told)["defaults"]["guidance_scale"] == 2.0
    other = with_scheduler("EulerDiscreteScheduler", timestep_spacing="trailing")
    assert manifest_of(other)["defaults"]["num_inference_steps"] == 20


def test_two_text_encoders_are_described_each_with_its_own_width_and_padding(xl_base):
    manifest = manifest_of(xl_base)
    first, second = manifest["text_encoders"]
    assert (first["file"], second["file"]) == ("text_encoder.onnx", "text_encoder_2.onnx")
    assert (first["hidden_size"], second["hidden_size"], manifest["text_dim"]) == (32, 48, 80)
    assert first["output"] == second["output"] == "penultimate_hidden_state"
    assert "pooled_output" not in first
    assert second["pooled_output"] == "text_embeds"
    assert first["pad_token_id"] == xl_base.tokenizers[0].eos_token_id
    assert second["pad_token_id"] == xl_base.tokenizers[1].convert_tokens_to_ids("!")
    assert manifest["unet"]["conditions"] == {"text_embeds": 40, "time_ids": 6}
    assert manifest["force_zeros_for_empty_prompt"] is True
    assert manifest["scheduler"]["sampler"] == "euler"


def test_an_sdxl_that_reads_the_empty_prompt_as_words_says_so(xl_model, tmp_path):
    folder = shutil.copytree(xl_model, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    assert manifest_of(load_base(folder))["force_zeros_for_empty_prompt"] is False


def test_a_consistency_model_is_described_with_its_condition_and_its_steps(consistency_model):
    manifest = manifest_of(load_base(consistency_model))
    assert manifest["unet"]["conditions"] == {"timestep_cond": 12}
    assert manifest["scheduler"]["sampler"] == "lcm"
    assert manifest["scheduler"]["original_inference_steps"] == 40
    assert manifest["scheduler"]["timestep_scaling"] == 10.0
    assert manifest["defaults"]["num_inference_steps"] == 4
