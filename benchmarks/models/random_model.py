"""Published models at their true size with random weights: for measurements that do not look at the pictures."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.models import CONFIGS, VAE
from perfusion.pocket.vocabulary import words
from recipes.pocket.tokenizer import build_tokenizer

__all__ = ["save_random_model"]

_BRANCH_ENDS = ("to_out.0", "ff.net.2", "proj_out", "conv2", "mlp.fc2", "self_attn.out_proj")
_BRANCH_GAIN = 0.2
"""What a residual branch adds to the trunk is small in trained networks. With branches as large as the trunk, SDXL's 70
transformer layers amplify every rounding several hundred times, and trials would measure that."""


def save_random_model(name: str, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the model whose settings are tests/data/base_models/NAME.json as a diffusers folder."""
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    encoders = config["text_encoders"]
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(config["unet"]),
            "vae": AutoencoderKL(**VAE, sample_size=512),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**encoders[0])),
        }
        if len(encoders) == 2:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**encoders[1]))
    index = {
        part: ["transformers" if part.startswith("text") else "diffusers", type(model).__name__]
        for part, model in parts.items()
    }
    for part in list(parts):
        _save(parts.pop(part), folder / part, dtype)
    for part in ("tokenizer", "tokenizer_2")[: len(encoders)]:
        build_tokenizer(words()).save_pretrained(folder / part)
        index[part] = ["transformers", "CLIPTokenizer"]
    scheduler = config["scheduler"]["_class_name"]
    getattr(diffusers, scheduler).from_config(config["scheduler"]).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", scheduler]
    kind = "StableDiffusionPipeline" if len(encoders) == 1 else "StableDiffusionXLPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))


def _save(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Weights of the size that networks start with, smaller where a branch ends; norms and biases as they start."""
    model = model.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            weight.data.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            gain = _BRANCH_GAIN if name.removesuffix(".weight").endswith(_BRANCH_ENDS) else 1.0
            noise = torch.randn(weight.shape, generator=generator)
            weight.data.copy_(noise * gain * weight[0].numel() ** -0.5)
    model.save_pretrained(folder)
