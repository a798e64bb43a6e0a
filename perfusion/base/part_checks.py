"""Whether the parts of a model fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.base.families import check_unet_config
from perfusion.base.loading import read_json
from perfusion.errors import ModelError

if TYPE_CHECKING:
    from perfusion.base.base_model import BaseModel

__all__ = ["check_configs", "check_parts"]


def check_configs(source: Path, *, text_encoders: int) -> None:
    """What the settings alone can tell, before gigabytes of weights are read."""
    unet, vae = (read_json(source / part / "config.json") for part in ("unet", "vae"))
    for name in ("shift_factor", "latents_mean"):
        if vae.get(name):
            raise ModelError(
                f"{source}: its VAE shifts the latents ({name}), expected a scaling factor only."
            )
    channels = vae.get("latent_channels", 4)
    check_unet_config(source, unet, text_encoders=text_encoders, latent_channels=channels)


def check_parts(base: BaseModel) -> None:
    """Raise `ModelError` for parts that are not of one model: their widths, words or latents differ."""
    _check_widths(base)
    _check_words(base)
    _check_latents(base)


def _check_widths(base: BaseModel) -> None:
    hidden = sum(base.hidden_sizes)
    if base.text_dim != hidden:
        raise ModelError(
            f"{base.folder}: the text encoder gives {hidden} numbers a token and the UNet reads "
            f"{base.text_dim}; they must be of one model."
        )
    if len(base.text_encoders) == 2:
        config, pooled = base.unet.config, int(base.text_encoders[1].config.projection_dim)
        width = config.projection_class_embeddings_input_dim
        # five sizes in place of six is the refiner's way: it takes an aesthetic score for the target's two
        if width != pooled + 6 * config.addition_time_embed_dim:
            raise ModelError(
                f"{base.folder}: its UNet reads {width} numbers beside the timestep, expected the pooled {pooled} and "
                f"six sizes of {config.addition_time_embed_dim}; the refiner and other such models are not supported."
            )


def _check_words(base: BaseModel) -> None:
    for tokenizer, vocab_size in zip(base.tokenizers, base.vocab_sizes, strict=True):
        highest = max(tokenizer.get_vocab().values())
        if highest >= vocab_size:
            raise ModelError(
                f"{base.folder}: the tokenizer gives ids up to {highest} and the text encoder has "
                f"{vocab_size} words; they must be of one model."
            )
    first, *others = (tokenizer.get_vocab() for tokenizer in base.tokenizers)
    if any(other != first for other in others):
        raise ModelError(
            f"{base.folder}: its two tokenizers have different words, so that a word may have no one place in both "
            "prompts; expected SDXL's, which split every text alike."
        )


def _check_latents(base: BaseModel) -> None:
    latents = base.vae.config.latent_channels
    channels = (base.unet.config.in_channels, base.unet.config.out_channels)
    if channels != (latents, latents):
        raise ModelError(
            f"{base.folder}: the UNet has {channels[0]} input and {channels[1]} output channels where "
            f"the VAE has {latents}; inpainting and other conditioned UNets are not supported."
        )
