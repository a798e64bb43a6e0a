"""LoRAs added to a model's weights for good: W + scale · (alpha / rank) · B A of every layer that a file names.

The layers are looked up by the names that the programs of the field give them: diffusers' (two generations), peft's,
and kohya's, which A1111 and ComfyUI read, with the blocks of the UNet named as in diffusers or as in the original. A
tensor that is not understood is refused: a LoRA of which a part is missing draws something, and nobody would know what.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from perfusion.base.loading import first_line
from perfusion.errors import ModelError

__all__ = ["LoRAFile", "fuse_lora"]


@dataclass(frozen=True, kw_only=True)
class LoRAFile:
    """A LoRA and how strongly it is added."""

    path: Path
    scale: float = 1.0


@dataclass(kw_only=True)
class _Update:
    """The change of one layer: up @ down, (out, rank) and (rank, in), with convolutions flattened."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


_FACTOR = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](down|up|A|B)(?:\.default)?\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")
_DOWN = ("down", "A")
_KOHYA = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
_REFUSED = {
    "hada_": "a LoHa", "lokr_": "a LoKr", "lora_mid": "a LoCon in Tucker's form", "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA", "oft_": "an OFT", "bundle_emb": "a LoRA with words of its own",
    ".diff": "a difference of whole weights",
}  # fmt: skip
"""What parts of names tell of other kinds of adapters."""


def fuse_lora(lora: LoRAFile, parts: Mapping[str, nn.Module]) -> None:
    """Add a LoRA to the weights of a model's parts (unet, text_encoder, text_encoder_2), in float32, then rounded back.

    Raises:
        ModelError: it is no .safetensors file, another kind of adapter, or names a layer or a shape that the model
            does not have.
    """
    tensors, metadata = _read(lora.path)
    layers = dict(_layer_names(parts))
    updates = _updates(lora.path, tensors, layers)
    for (part, name), update in updates.items():
        layer: Any = parts[part].get_submodule(name)
        _check(lora.path, part, name, update, layer.weight)
        assert update.down is not None
        assert update.up is not None
        rank = len(update.down)
        scale = lora.scale * _scaling(lora.path, update.alpha, rank, part, metadata)
        change = update.up.float().flatten(1) @ update.down.float().flatten(1)
        fused = layer.weight.detach().float() + scale * change.view(layer.weight.shape)
        layer.weight = nn.Parameter(fused.to(layer.weight.dtype), requires_grad=False)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    if path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt"):
        raise ModelError(
            f"{path} is a pickle, which can run code. Use the LoRA as a .safetensors file, as most are published."
        )
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except Exception as error:  # safetensors raises its own kind
        raise ModelError(
            f"{path} cannot be read: {first_line(error)}. Expected a LoRA as a .safetensors file."
        ) from error


def _updates(
    path: Path, tensors: Mapping[str, Tensor], layers: Mapping[str, tuple[str, str]]
) -> dict[tuple[str, str], _Update]:
    """The updates by part and layer. Every tensor must belong to one."""
    updates: dict[tuple[str, str], _Update] = {}
    for key, tensor in tensors.items():
        factor, alpha = _FACTOR.fullmatch(key), _ALPHA.fullmatch(key)
        match = factor or alpha
        kind = next((kind for mark, kind in _REFUSED.items() if mark in key), None)
        if kind or match is None:
            what = f"is {kind}, of which {key} is a tensor," if kind else f"holds {key}, no tensor of a LoRA"
            raise ModelError(f"{path} {what.rstrip(',')}. Only plain LoRAs are fused.")
        place = layers.get(_usual(match[1]))
        if place is None:
            raise ModelError(
                f"{path} changes a layer that this model does not have ({key}). It belongs to another architecture."
            )
        update = updates.setdefault(place, _Update())
        if factor is None:
            update.alpha = float(tensor)
        elif factor[2] in _DOWN:
            update.down = tensor
        else:
            update.up = tensor
    if not updates:
        raise ModelError(f"{path} holds no tensors. Expected a LoRA.")
    return updates


def _usual(key: str) -> str:
    """A layer's name without what wraps it: peft's ``base_model.model.``, and the processors of early diffusers."""
    key = key.removeprefix("base_model.model.")
    if ".processor." in key:
        key = key.replace(".processor.", ".")
        key = re.sub(r"\.to_out$", ".to_out.0", key)
    return key


def _check(path: Path, part: str, name: str, update: _Update, weight: Tensor) -> None:
    """Raise `ModelError` for an update that is not whole or not of this layer's shape."""
    if update.down is None or update.up is None:
        raise ModelError(f"{path} has only half of the change of {part}.{name}. The file is incomplete.")
    rank = len(update.down)
    fits = update.up.flatten(1).shape == (len(weight), rank)
    if not fits or update.down[0].numel() != weight[0].numel():
        found = f"{tuple(update.up.shape)} and {tuple(update.down.shape)}"
        raise ModelError(
            f"{path} changes {part}.{name} by factors of {found}, and its weight is {tuple(weight.shape)}. The LoRA "
            "belongs to another architecture."
        )


def _scaling(path: Path, alpha: float | None, rank: int, part: str, metadata: Mapping[str, str]) -> float:
    """alpha / rank: by the tensor, or by what diffusers writes into the file's metadata; 1 where nothing says."""
    if alpha is not None:
        return alpha / rank
    config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    settings = {name.removeprefix(f"{part}."): value for name, value in config.items()}
    for name in ("alpha_pattern", "rank_pattern", "use_dora", "lora_bias"):
        if settings.get(name):
            raise ModelError(
                f"{path} sets {name} for its {part}, which is not followed. Only plain LoRAs are fused."
            )
    if "lora_alpha" not in settings:
        return 1.0
    return float(settings["lora_alpha"]) / (rank**0.5 if settings.get("use_rslora") else rank)


def _layer_names(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every name under which a file may speak of a layer, with the part and its own name there."""
    for part, module in parts.items():
        for name, layer in module.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            place = (part, name)
            names = [name, f"text_model.{name}"] if part != "unet" else [name, *_original_names(name, module)]
            for known in names:
                yield f"{part}.{known}", place
                for prefix in _KOHYA[part]:
                    yield prefix + known.replace(".", "_"), place
            if part == "unet":
                yield name, place  # as peft saves a UNet alone


_RESNET = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def _original_names(name: str, unet: Any) -> list[str]:
    """What Stable Diffusion's first code calls a layer of a UNet, where it has another name there."""
    if name in _ENDS:
        return [_ENDS[name]]
    match = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        return []
    side, block, kind, index, inside = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    layers = unet.config.layers_per_block
    if kind == "resnets":
        inside = _RESNET.get(inside, inside)
    inner = 1 if kind == "attentions" else 0
    if side == "mid_block":
        return [f"middle_block.{1 if kind == 'attentions' else 2 * index}.{inside}"]
    if kind == "downsamplers":
        return [f"input_blocks.{(block + 1) * (layers + 1)}.0.op"]
    if side == "down_blocks":
        return [f"input_blocks.{1 + block * (layers + 1) + index}.{inner}.{inside}"]
    if kind == "upsamplers":
        after = 2 if hasattr(unet.up_blocks[block], "attentions") else 1
        return [f"output_blocks.{block * (layers + 1) + layers}.{after}.{inside}"]
    return [f"output_blocks.{block * (layers + 1) + index}.{inner}.{inside}"]
