"""Stable Diffusion 1.5 at its true size with random weights: saved as it is published, opened and trained here.

Only its pictures are smaller, 256 pixels wide, which the weights do not know and a slow machine does.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from perfusion.base.base_model import BaseModel, load_base
from perfusion.pocket.vocabulary import words
from perfusion.training import TrainingConfig, train_concept
from recipes.pocket.tokenizer import build_tokenizer

CONFIG = Path(__file__).parents[2] / "data" / "base_models" / "sd15.json"

VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


def save_random(model: Any, folder: Path) -> None:
    """Weights of the size that networks start with, in half precision; norms and biases as they start."""
    model = model.to_empty(device="cpu").half()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2**20, generator=generator).half()
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            weight.data.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            scale = weight[0].numel() ** -0.5
            weight.data.copy_(
                (noise.repeat(weight.numel() // 2**20 + 1)[: weight.numel()] * scale).view_as(weight)
            )
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def true_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("true") / "sd15"
    config = json.loads(CONFIG.read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config["unet"] | {"sample_size": 32})
        vae = AutoencoderKL(**VAE)
        text_encoder = CLIPTextModel(CLIPTextConfig(**config["text_encoders"][0]))
    save_random(unet, folder / "unet")
    save_random(vae, folder / "vae")
    save_random(text_encoder, folder / "text_encoder")
    build_tokenizer(words()).save_pretrained(folder / "tokenizer")
    PNDMScheduler.from_config(config["scheduler"]).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "captions.txt").write_text(
        "".join(f"a {a} {b}\n" for a in words()[:20] for b in words()[20:40])
    )
    return folder


def digest(base: BaseModel) -> str:
    found = hashlib.sha256()
    for part in base.parts:
        for name, value in sorted(part.state_dict().items()):
            found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


@pytest.mark.property(number=6)
@pytest.mark.slow
def test_stable_diffusion_1_5_at_true_size_opens_and_trains(true_size, tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "pictures/1.png")
    base = load_base(true_size)
    assert (base.family, base.resolution, base.text_dim, len(base.layers)) == ("sd15", 256, 768, 16)
    before, losses = digest(base), []
    config = TrainingConfig(superclass="cat", steps=2, batch_size=1, crops=1)
    concept = train_concept(
        tmp_path / "pictures", config, model=base, report=lambda _, loss: losses.append(loss)
    )
    assert digest(base) == before
    assert np.isfinite(losses).all()
    trained = concept.embeddings[0].size + concept.target_values.size
    assert trained == 13_248
    concept.save(tmp_path / "cat.safetensors")
    assert (tmp_path / "cat.safetensors").stat().st_size <= 60_000
