"""Stable Diffusion 1.5, narrower or as wide as it is, with random weights: a base model to time training on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.models import VAE
from perfusion.base.attention import layer_table
from perfusion.base.base_model import BaseModel, fingerprint
from perfusion.pocket.vocabulary import words
from recipes.pocket.architecture import SCHEDULER
from recipes.pocket.tokenizer import build_tokenizer

__all__ = ["scaled_sd15"]


def scaled_sd15(divisor: int, resolution: int) -> BaseModel:
    """Stable Diffusion 1.5 with all widths divided, random weights and its full vocabulary.

    Args:
        divisor: of the widths, 1, 2 or 4.
        resolution: pixels of a side.
    """
    torch.manual_seed(0)
    wide, text_dim = tuple(width // divisor for width in (320, 640, 1280, 1280)), 768 // divisor
    vae_widths = tuple(width // divisor for width in VAE["block_out_channels"])
    tokenizer: Any = build_tokenizer(words())
    unet = UNet2DConditionModel(
        sample_size=resolution // 8, block_out_channels=wide, cross_attention_dim=text_dim, attention_head_dim=8,
        norm_num_groups=32 // divisor,
    )  # fmt: skip
    settings = VAE | {"block_out_channels": vae_widths, "norm_num_groups": 32 // divisor}
    vae = AutoencoderKL(**settings, sample_size=resolution)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=text_dim, intermediate_size=4 * text_dim, num_hidden_layers=12,
            num_attention_heads=12 // divisor, max_position_embeddings=77, hidden_act="quick_gelu",
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    for part in (unet, vae, text):
        part.requires_grad_(False).eval()
    return BaseModel(
        family="sd15" if divisor == 1 else f"sd15-over-{divisor}", unet=unet, text_encoders=(text,),
        tokenizers=(tokenizer,), vae=vae, scheduler={**SCHEDULER, "prediction_type": "epsilon"},
        layers=layer_table(unet), fingerprint=fingerprint(unet, 49408, text_dim), folder=Path("random"),
    )  # fmt: skip
