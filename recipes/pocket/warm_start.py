"""Starting from earlier weights: everything of the same shape is taken over, and what is wider begins as it was.

A wider layer first does what the narrow one did: its new inputs and outputs count little or nothing. A new layer
of a residual network adds nothing until it has learned to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from perfusion.errors import ModelError

__all__ = ["start_text_encoder", "start_unet", "start_vae", "weights_in"]

logger = logging.getLogger(__name__)

Weights = Mapping[str, torch.Tensor]
FAINT = 0.1
"""What is left of a new input's random weights."""
SILENT = -4.0
"""Logarithm of the variance of a new latent channel's noise."""


def weights_in(path: Path, group: str = "average") -> dict[str, torch.Tensor]:
    """The weights in a safetensors file, in float32: of one group of a checkpoint, or all of a plain file."""
    if not path.is_file():
        raise ModelError(f"{path}: no such weights to start from.")
    tensors = load_file(path)
    prefix = group + "/"
    grouped = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return {name: value.float() for name, value in (grouped or tensors).items() if value.is_floating_point()}


@torch.no_grad()
def start_vae(vae: torch.nn.Module, earlier: Weights) -> None:
    """Give an autoencoder the weights of one with as many latent channels, or fewer.

    With fewer, pictures come back at first exactly as they did: new latent channels are noise-free copies of
    nothing that the decoder hardly hears.
    """
    own = vae.state_dict()
    count, wide = earlier["post_quant_conv.bias"].shape[0], own["post_quant_conv.bias"].shape[0]
    _take_over(own, earlier)
    if count < wide:
        _widen_latents(own, earlier, count, wide)
    vae.load_state_dict(own)


def _widen_latents(own: dict[str, torch.Tensor], earlier: Weights, count: int, wide: int) -> None:
    """Means and variances of the old channels keep their places in front of each half."""
    rows = torch.tensor([*range(count), *range(wide, wide + count)])
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        own[name][rows] = earlier[name]
    quantise = torch.eye(2 * wide)
    quantise[rows] = 0
    quantise[rows[:, None], rows] = earlier["quant_conv.weight"].flatten(1)
    own["quant_conv.weight"].copy_(quantise[:, :, None, None])
    bias = torch.zeros(2 * wide)
    bias[wide + count :] = SILENT
    bias[rows] = earlier["quant_conv.bias"]
    own["quant_conv.bias"].copy_(bias)
    back = torch.eye(wide)
    back[:count, :count] = earlier["post_quant_conv.weight"].flatten(1)
    own["post_quant_conv.weight"].copy_(back[:, :, None, None])
    own["post_quant_conv.bias"].zero_()[:count] = earlier["post_quant_conv.bias"]
    own["decoder.conv_in.weight"][:, count:] *= FAINT
    own["decoder.conv_in.weight"][:, :count] = earlier["decoder.conv_in.weight"]


@torch.no_grad()
def start_unet(unet: torch.nn.Module, earlier: Weights) -> None:
    """Give a UNet the weights of a smaller one: fewer latent channels, fewer attention layers a block."""
    own = unet.state_dict()
    taken = _take_over(own, earlier)
    count = earlier["conv_out.bias"].shape[0]
    if count < own["conv_out.bias"].shape[0]:
        own["conv_in.weight"][:, count:] *= FAINT
        own["conv_in.weight"][:, :count] = earlier["conv_in.weight"]
        own["conv_out.weight"][:count] = earlier["conv_out.weight"]
        own["conv_out.bias"][:count] = earlier["conv_out.bias"]
    silent = (".to_out.0.weight", ".to_out.0.bias", ".ff.net.2.weight", ".ff.net.2.bias")
    for name, value in own.items():
        if name not in taken and "transformer_blocks." in name and name.endswith(silent):
            value.zero_()
    unet.load_state_dict(own)


@torch.no_grad()
def start_text_encoder(
    encoder: torch.nn.Module, vocabulary: Mapping[str, int], earlier: Weights, before: Mapping[str, int]
) -> None:
    """Give a text encoder the weights of one with another vocabulary: a word that both know keeps its embedding."""
    own = encoder.state_dict()
    _take_over(own, earlier)
    name = next(name for name in own if name.endswith("token_embedding.weight"))
    for token in vocabulary.keys() & before.keys():
        own[name][vocabulary[token]] = earlier[name][before[token]]
    encoder.load_state_dict(own)


def _take_over(own: dict[str, torch.Tensor], earlier: Weights) -> set[str]:
    """Copy what agrees in name and shape; returns the names."""
    agreed = {name for name, value in earlier.items() if name in own and own[name].shape == value.shape}
    for name in agreed:
        own[name].copy_(earlier[name])
    logger.info("%d of %d tensors are those of the earlier weights", len(agreed), len(own))
    return agreed
