"""A tiny base model with random weights, in pocket's structure."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.base.base_model import BaseModel, load_base
from perfusion.pocket.vocabulary import NOUNS, PLACES, article, place_phrases, words
from recipes.pocket.architecture import build_pipeline
from recipes.pocket.tokenizer import build_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is cached goes to the test's own folder, never to the user's."""
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the tiny pipeline, with captions."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    pipeline = build_pipeline("tiny")
    pipeline.save_pretrained(folder)
    (folder / "perfusion.json").write_text('{"family": "pocket"}')
    rng = random.Random(0)
    places = [phrase for place in PLACES for phrase in place_phrases(place)]
    captions = [f"a photo of {article(rng.choice(list(NOUNS)))} {rng.choice(places)}\n" for _ in range(400)]
    (folder / "captions.txt").write_text("".join(captions))
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_model: Path) -> BaseModel:
    """The tiny model, opened; tests must leave it as it is."""
    return load_base(tiny_model)


@pytest.fixture(scope="session")
def tiny_clip() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A tokenizer of four words and the settings of CLIP's two halves for it, 16 numbers wide and a layer deep."""
    tokenizer = build_tokenizer(["a", "cat", "dog", "red"], context_length=12)
    half = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = half | {
        "vocab_size": len(tokenizer), "max_position_embeddings": 12, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return tokenizer, text, half | {"image_size": 16, "patch_size": 4}


def build_tiny_xl(seed: int = 0) -> Any:
    """A `StableDiffusionXLPipeline` of random weights: two text encoders of 32 and 48, the second padded with "!",
    three levels of which the first has no attention, as SDXL's."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    pipeline = build_pipeline("tiny", seed)
    torch.manual_seed(seed)
    tokenizer, second = build_tokenizer(words()), build_tokenizer(words())
    second.pad_token = "!"
    layout = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # wrong in the published files too
    common = layout | ids
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        cross_attention_dim=80,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
    )
    wide = CLIPTextConfig(
        hidden_size=48, intermediate_size=96, projection_dim=40, hidden_act="gelu", **common
    )
    return StableDiffusionXLPipeline(
        vae=pipeline.vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=32, intermediate_size=64, **common)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(wide).eval(),
        tokenizer=tokenizer,
        tokenizer_2=second,
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


@pytest.fixture(scope="session")
def tiny_xl_pipeline() -> Any:
    """See `build_tiny_xl`; tests must leave it as it is."""
    return build_tiny_xl()


@pytest.fixture(scope="session")
def tiny_xl_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of such a pipeline, with captions."""
    folder = tmp_path_factory.mktemp("tiny-xl") / "model"
    build_tiny_xl().save_pretrained(folder)
    (folder / "perfusion.json").write_text('{"family": "tinyxl"}')
    shutil.copy(tiny_model / "captions.txt", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_xl_base(tiny_xl_model: Path) -> BaseModel:
    """The SDXL-shaped model, opened; tests must leave it as it is."""
    return load_base(tiny_xl_model)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two pictures of noise to train on."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        noise = np.random.default_rng(index).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder
