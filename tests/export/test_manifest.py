"""bundle.json says everything, from the model and from nowhere else."""

import dataclasses
import json

import pytest

from perfusion.base import BaseModel
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
    [("trained_betas", [0.1, 0.2]), ("thresholding", True), ("rescale_betas_zero_snr", True)],
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
