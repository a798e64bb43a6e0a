"""Pocket's networks: Stable Diffusion's own modules, small.

The same classes, the same folder layout and the same roles as Stable Diffusion 1.x, so whatever works on pocket works
there: a CLIP text encoder, a KL autoencoder with a factor of eight, and a UNet with cross-attention at every
resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from perfusion.pocket import vocabulary
from recipes.pocket import language
from recipes.pocket.tokenizer import CONTEXT_LENGTH, build_tokenizer

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True, kw_only=True)
class Size:
    """The widths of one model. Channels must be multiples of `head_dim` (UNet) and of 8 (autoencoder)."""

    resolution: int
    """Width and height of the pictures, in pixels."""
    unet_channels: tuple[int, ...]
    layers_per_block: int
    head_dim: int
    text_dim: int
    text_layers: int
    vae_channels: tuple[int, ...]
    """One entry a resolution; the downscale factor is 2 ** (len − 1)."""
    latent_channels: int = 4
    transformer_layers: tuple[int, ...] | int = 1
    """Attention layers in each attention block, one number or one a resolution."""
    words: Callable[[], list[str]] = vocabulary.words
    """The tokenizer's whole words."""

    @property
    def downscale(self) -> int:
        """Pixels per latent."""
        return int(2 ** (len(self.vae_channels) - 1))


SIZES = {
    "pocket": Size(resolution=128, unet_channels=(64, 128, 192), layers_per_block=1, head_dim=32,
                   text_dim=128, text_layers=3, vae_channels=(32, 64, 96, 96)),
    "pocket2": Size(resolution=128, unet_channels=(64, 128, 192), layers_per_block=1, head_dim=32,
                    text_dim=128, text_layers=3, vae_channels=(32, 64, 96, 96), latent_channels=12,
                    transformer_layers=(1, 2, 2), words=language.words),
    "tiny": Size(resolution=32, unet_channels=(16, 32), layers_per_block=1, head_dim=8,
                 text_dim=32, text_layers=1, vae_channels=(8, 8, 16)),
    "tiny2": Size(resolution=32, unet_channels=(16, 32), layers_per_block=1, head_dim=8,
                  text_dim=32, text_layers=1, vae_channels=(8, 8, 16), latent_channels=12,
                  transformer_layers=(1, 2), words=language.words),
}  # fmt: skip
"""`pocket2` is what ships, `pocket` was the first edition; `tiny2` and `tiny` have their structure, for tests.

Of one forward pass at 16 × 16 latents `pocket` takes 1.08 GFLOP and `pocket2` 1.34; two layers at the finest resolution
as well would take 1.52, and two whole blocks a resolution 1.63."""

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}  # fmt: skip
"""Stable Diffusion's noise schedule. Predicting the velocity trained better than the noise at this size; trailing
spacing starts from pure noise, which a model of few steps needs."""


def build_pipeline(size: str | Size, seed: int = 0) -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline` of pocket's structure with random weights drawn from `seed`."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    chosen = SIZES[size] if isinstance(size, str) else size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(chosen.words())
        return StableDiffusionPipeline(
            vae=build_vae(chosen),
            text_encoder=build_text_encoder(chosen, tokenizer),
            tokenizer=tokenizer,
            unet=build_unet(chosen),
            scheduler=DDIMScheduler(**SCHEDULER),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def build_text_encoder(size: Size, tokenizer: object) -> torch.nn.Module:
    """A CLIP text encoder for the tokenizer, `text_dim` wide."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),  # type: ignore[arg-type]
            hidden_size=size.text_dim,
            intermediate_size=4 * size.text_dim,
            num_hidden_layers=size.text_layers,
            num_attention_heads=max(1, size.text_dim // 32),
            max_position_embeddings=CONTEXT_LENGTH,
            projection_dim=size.text_dim,
            bos_token_id=tokenizer.bos_token_id,  # type: ignore[attr-defined]
            eos_token_id=tokenizer.eos_token_id,  # type: ignore[attr-defined]
            pad_token_id=tokenizer.pad_token_id,  # type: ignore[attr-defined]
        )
    ).eval()


def build_vae(size: Size) -> torch.nn.Module:
    """A KL autoencoder. Groups of eight channels: smaller ones trained badly."""
    from diffusers import AutoencoderKL

    levels = len(size.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae_channels,
        layers_per_block=1,
        latent_channels=size.latent_channels,
        norm_num_groups=size.vae_channels[0] // 8,
        sample_size=size.resolution,
        mid_block_add_attention=False,
    ).eval()


def build_unet(size: Size) -> torch.nn.Module:
    """A conditional UNet with cross-attention at every resolution: each layer is room for a concept."""
    from diffusers import UNet2DConditionModel

    levels = len(size.unet_channels)
    return UNet2DConditionModel(
        sample_size=size.resolution // size.downscale,
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=size.unet_channels,
        layers_per_block=size.layers_per_block,
        transformer_layers_per_block=size.transformer_layers,
        cross_attention_dim=size.text_dim,
        # diffusers reads this parameter as the number of heads, whatever its name says
        attention_head_dim=tuple(channels // size.head_dim for channels in size.unet_channels),
        norm_num_groups=min(16, size.unet_channels[0] // 4),
    ).eval()
