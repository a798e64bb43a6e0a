"""A ControlNet of a base model: it makes of a picture of edges, depths or poses what the UNet adds to its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perfusion.base.loading import check_finite, first_line, load_weights, read_json
from perfusion.base.single_file import read_tensors
from perfusion.errors import ModelError

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel

    from perfusion.base.base_model import BaseModel

__all__ = ["load_controlnet", "residual_ends"]

_KIND = "ControlNetModel"
_AS_THE_UNET = (
    "in_channels", "block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim",
    "addition_embed_type", "projection_class_embeddings_input_dim",
)  # fmt: skip
"""Settings that a ControlNet shares with the UNet that it was made for."""


def load_controlnet(path: Path, base: BaseModel) -> ControlNetModel:
    """diffusers' ControlNetModel in float32, for one base model.

    Args:
        path: a folder of diffusers, or a .safetensors file in its layout or in the original one (`control_model.`).

    Raises:
        ModelError: it is no ControlNet, or one of another base model.
    """
    controlnet = _of_folder(path) if path.is_dir() else _of_file(path, base.unet)
    _check_base(path, controlnet.config, base.unet.config)
    shrinks = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    if shrinks != (downscale := 2 ** (len(base.vae.config.block_out_channels) - 1)):
        raise ModelError(
            f"{path} makes one place of {shrinks} pixels, and the VAE one latent of {downscale}. Use a ControlNet that "
            "was made for this base model."
        )
    if controlnet.config.conditioning_channels != 3:
        raise ModelError(
            f"{path} reads pictures of {controlnet.config.conditioning_channels} channels, expected 3. Use another one."
        )
    if controlnet.config.global_pool_conditions:
        raise ModelError(
            f"{path} pools what it sees (as shuffle does), which is not supported. Use another one."
        )
    check_finite(path, "controlnet", controlnet)
    return controlnet.eval()


def residual_ends(unet: UNet2DConditionModel) -> list[tuple[int, int]]:
    """Channels, and by how much the latents are halved, of each residual: those of the way down, and the middle's."""
    channels, layers = unet.config.block_out_channels, unet.config.layers_per_block
    each = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    ends = [(int(channels[0]), 1)]
    for level, (width, count) in enumerate(zip(channels, each, strict=True)):
        ends += [(int(width), 2**level)] * count
        if level + 1 < len(channels):
            ends.append((int(width), 2 ** (level + 1)))
    return [*ends, (int(channels[-1]), 2 ** (len(channels) - 1))]


def _of_folder(path: Path) -> Any:
    config = path / "config.json"
    kind = read_json(config).get("_class_name") if config.is_file() else None
    if kind != _KIND:
        holds = f"says that it is {kind!r}" if config.is_file() else "has no config.json"
        raise ModelError(f"{path} {holds}, expected the folder of a {_KIND} of diffusers.")
    return load_weights(path.parent, path.name, _KIND, torch.float32)


def _of_file(path: Path, unet: UNet2DConditionModel) -> Any:
    """A file holds weights alone; that it is of this base model's structure shows when they are taken in."""
    from diffusers import ControlNetModel
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    if path.suffix.lower() in (".pth", ".pt", ".ckpt", ".bin"):
        raise ModelError(
            f"{path} is a pickle, which can run code and is never opened. Get the ControlNet as .safetensors."
        )
    tensors = read_tensors(path)
    if not any("zero_conv" in name or name.startswith("controlnet_down_blocks.") for name in tensors):
        raise ModelError(
            f"{path} holds no ControlNet, expected a file with zero_convs or controlnet_down_blocks."
        )
    try:
        converted = convert_controlnet_checkpoint(tensors, dict(unet.config))
        controlnet = ControlNetModel.from_unet(
            unet, load_weights_from_unet=False, conditioning_embedding_out_channels=_widths(converted)
        ).float()
        controlnet.load_state_dict({name: tensor.float() for name, tensor in converted.items()})
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:  # names or shapes that do not match
        raise ModelError(
            f"{path} has other tensors than a ControlNet of this base model: {_second_line(error)}. Use one that was "
            "made for it."
        ) from error
    return controlnet


def _widths(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The channels of what a ControlNet makes of its picture, which a file does not say in words."""
    inner = "controlnet_cond_embedding."
    blocks = sorted(
        int(name.split(".")[2])
        for name in tensors
        if name.startswith(f"{inner}blocks.") and name.endswith(".weight")
    )
    names = ["conv_in", *(f"blocks.{block}" for block in blocks if block % 2)]
    return tuple(len(tensors[f"{inner}{name}.weight"]) for name in names)


def _second_line(error: Exception) -> str:
    """What torch says of the first tensor; its first line names the class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1].rstrip(".")[:200] if len(lines) > 1 else first_line(error)[:200]


def _check_base(path: Path, config: Any, unet: Any) -> None:
    for name in _AS_THE_UNET:
        own, expected = _plain(config.get(name)), _plain(unet.get(name))
        if own != expected:
            raise ModelError(
                f"{path} is a ControlNet of another base model: its {name} is {own}, and that of the UNet is "
                f"{expected}. Use one that was made for this base model."
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
