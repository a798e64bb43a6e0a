"""Which models are known, at their true shapes from the published configurations, and why others are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from perfusion.base.attention import layer_table
from perfusion.base.base_model import load_base
from perfusion.base.families import check_pipeline, check_unet_config, family_of
from perfusion.errors import ModelError
from perfusion.training.rank_one import RankOneEdit

CONFIGS = Path(__file__).parents[2] / "data" / "base_models"

#        name: (layers, Σ d_V, family, trained numbers, millions of parameters as published)
TRUE = {
    "sd15": (16, 12_480, "sd15", 13_248, 859.5),
    "sd21": (16, 12_480, "sd21", 13_504, 865.9),
    "sdxl": (70, 83_200, "sdxl", 85_248, 2567.5),
    "sd_turbo": (16, 12_480, "sd21", 13_504, 865.9),
    "sdxl_turbo": (70, 83_200, "sdxl", 85_248, 2567.5),
    "lcm_dreamshaper": (16, 12_480, "sd15", 13_248, 859.6),
    "ssd_1b": (34, 38_400, "sdxl-38400", 40_448, 1331.3),
    "bk_sdm_small": (9, 6_720, "sd15-6720", 7_488, 482.3),
    "tiny_sd": (9, 6_720, "sd15-6720", 7_488, 323.4),
}


def published(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return config


def build(name: str) -> UNet2DConditionModel:
    """The true architecture without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(published(name)["unet"])


@pytest.mark.property(number=6)
@pytest.mark.parametrize("name", TRUE)
def test_true_architectures_have_their_known_layers_family_and_trained_numbers(name):
    layers, value_dim, family, trained, millions = TRUE[name]
    unet = build(name)
    assert sum(weight.numel() for weight in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    table = layer_table(unet)
    assert (len(table), sum(layer.value_dim for layer in table)) == (layers, value_dim)
    assert family_of(unet) == family
    hidden = [encoder["hidden_size"] for encoder in published(name)["text_encoders"]]
    assert sum(hidden) == unet.config.cross_attention_dim
    with torch.device("meta"):
        edit = RankOneEdit(
            embeddings=[torch.empty(1, size) for size in hidden],
            direction=torch.empty(1, sum(hidden)),
            target_keys=torch.empty(1, value_dim),
            target_values=torch.empty(1, value_dim),
            inverse_moment=torch.empty(sum(hidden), sum(hidden)),
            bias=0.75,
            temperature=0.1,
        )
    assert sum(parameter.numel() for parameter in edit.parameters()) == trained


@pytest.mark.parametrize("name", TRUE)
def test_published_settings_pass_the_check_that_comes_before_the_weights(name):
    config = published(name)
    encoders = len(config["text_encoders"])
    check_unet_config(Path("model"), config["unet"], text_encoders=encoders, latent_channels=4)


REFUSED_SETTINGS: dict[str, tuple[dict[str, Any], int, str]] = {
    "inpainting": ({"in_channels": 9}, 1, "9 input channels where the VAE has 4.*inpainting"),
    "instruct-pix2pix": ({"in_channels": 8}, 1, "8 input channels"),
    "upscaler": ({"num_class_embeds": 1000}, 1, "num_class_embeds = 1000"),
    "unclip": ({"class_embed_type": "projection"}, 1, "class_embed_type = 'projection'"),
    "kandinsky": ({"encoder_hid_dim_type": "image_proj"}, 1, "encoder_hid_dim_type"),
    "an SDXL UNet with one encoder": (
        {"addition_embed_type": "text_time"},
        1,
        "'text_time', expected None with 1 text encoder;",
    ),
    "a plain UNet with two": ({}, 2, "None, expected 'text_time' with 2 text encoders"),
    "several widths": (
        {"cross_attention_dim": [768, 1024]},
        1,
        "cross_attention_dim = .768, 1024., expected one",
    ),
    "no size": ({"sample_size": None}, 1, "sample_size = None, expected one whole number"),
}


@pytest.mark.parametrize("case", REFUSED_SETTINGS)
def test_a_unet_that_needs_more_than_a_prompt_is_refused_by_its_settings(case):
    change, encoders, message = REFUSED_SETTINGS[case]
    config = published("sd15")["unet"] | change
    with pytest.raises(ModelError, match=message):
        check_unet_config(Path("model"), config, text_encoders=encoders, latent_channels=4)


def index_of(name: str, **parts: Any) -> dict[str, Any]:
    usual = {
        "_class_name": name,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    return usual | parts


REFUSED_PIPELINES = {
    "SD3": (
        index_of(
            "StableDiffusion3Pipeline", transformer=["diffusers", "SD3Transformer2DModel"], unet=[None, None]
        ),
        "StableDiffusion3Pipeline has a transformer in place of a UNet, with no fixed keys and values",
    ),
    "Flux": (
        index_of("FluxPipeline", transformer=["diffusers", "FluxTransformer2DModel"]),
        "FluxPipeline has a transf",
    ),
    "PixArt": (
        index_of("PixArtAlphaPipeline", transformer=["diffusers", "PixArtTransformer2DModel"]),
        "has a transformer",
    ),
    "cascade": (
        index_of("StableCascadeCombinedPipeline", prior=["diffusers", "StableCascadeUNet"]),
        "is a cascade",
    ),
    "ControlNet": (
        index_of("StableDiffusionControlNetPipeline", controlnet=["diffusers", "ControlNetModel"]),
        "steered by a ControlNet; give the model without it",
    ),
    "AnimateDiff": (
        index_of("AnimateDiffPipeline", motion_adapter=["diffusers", "MotionAdapter"]),
        "makes videos",
    ),
    "refiner": (
        index_of(
            "StableDiffusionXLImg2ImgPipeline",
            text_encoder=[None, None],
            text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
            requires_aesthetics_score=True,
        ),
        "SDXL's refiner, which finishes pictures of another model; use the base model",
    ),
    "DeepFloyd": (
        index_of("IFPipeline", text_encoder=["transformers", "T5EncoderModel"]),
        "its text_encoder is a T5EncoderModel, expected CLIPTextModel",
    ),
    "a tiny autoencoder": (
        index_of("X", vae=["diffusers", "AutoencoderTiny"]),
        "AutoencoderTiny, expected AutoencoderKL",
    ),
    "no text encoder": (index_of("X", text_encoder=[None, None]), "the model has no text_encoder"),
}


@pytest.mark.parametrize("case", REFUSED_PIPELINES)
def test_other_pipelines_are_refused_with_the_reason(tmp_path, case):
    index, message = REFUSED_PIPELINES[case]
    for part in index:
        (tmp_path / part).mkdir()
    with pytest.raises(ModelError, match=message):
        check_pipeline(tmp_path, index)


def test_a_model_of_unknown_width_is_told_how_to_name_itself(tiny_base):
    with pytest.raises(
        ModelError, match=r"encodings of 32 numbers, expected 768 \(sd15\) or 1024.*perfusion\.json"
    ):
        family_of(tiny_base.unet)


def test_a_unet_that_reads_five_sizes_is_the_refiner(
    tiny_xl_model, tmp_path, edit_model: Callable[..., Path]
):
    folder = edit_model(tiny_xl_model, tmp_path, projection_class_embeddings_input_dim=40 + 5 * 8)
    with pytest.raises(
        ModelError, match="reads 80 numbers beside the timestep, expected the pooled 40 and six sizes"
    ):
        load_base(folder)


@pytest.fixture
def edit_model() -> Callable[..., Path]:
    """A copy of a model whose UNet is made anew with other settings."""

    def edit(model: Path, target: Path, **settings: Any) -> Path:
        import shutil

        folder = Path(shutil.copytree(model, target / "model"))
        config = UNet2DConditionModel.load_config(folder / "unet") | settings
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
        return folder

    return edit


def test_tokenizers_with_different_words_are_refused(tiny_xl_model, tmp_path):
    import shutil

    from recipes.pocket.tokenizer import build_tokenizer

    folder = Path(shutil.copytree(tiny_xl_model, tmp_path / "model"))
    shutil.rmtree(folder / "tokenizer_2")
    build_tokenizer(["cat", "dog"]).save_pretrained(folder / "tokenizer_2")
    with pytest.raises(ModelError, match="two tokenizers have different words"):
        load_base(folder)
