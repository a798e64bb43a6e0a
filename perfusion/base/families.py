"""Which text-to-image models a concept can be trained for, by what they are called, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.base.attention import layer_table
from perfusion.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["FAMILIES", "Family", "check_pipeline", "check_unet_config", "family_of", "parts_of"]

OWN_FAMILY = 'for a model of your own put {"family": "<name>"} into perfusion.json beside model_index.json'


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that share the shapes of their keys and values, so that a concept of one fits the others."""

    name: str
    text_dim: int
    """Numbers of a token's encoding."""
    value_dim: int
    """Σ d_V over the cross-attention layers of the undistilled model."""
    title: str


FAMILIES = (
    Family(name="sd15", text_dim=768, value_dim=12_480, title="Stable Diffusion 1.x"),
    Family(name="sd21", text_dim=1024, value_dim=12_480, title="Stable Diffusion 2.x"),
    Family(name="sdxl", text_dim=2048, value_dim=83_200, title="Stable Diffusion XL"),
)

_SUPPORTED = "use a Stable Diffusion 1.x, 2.x or XL model"

_PARTS = {
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "vae": "AutoencoderKL",
    "tokenizer": None,
    "scheduler": None,
}
_SECOND_PARTS = {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": None}

_REFUSED_PARTS = {
    "transformer": "has a transformer in place of a UNet, with no fixed keys and values of the text for a concept "
    "to edit",
    "prior": "is a cascade, whose text is read by a prior model first",
    "decoder": "is a cascade of several models",
    "movq": "decodes with a MoVQ and reads images in place of text",
    "controlnet": "is steered by a ControlNet; give the model without it, a concept works with both",
    "motion_adapter": "makes videos",
    "image_normalizer": "reads images in place of text",
}
"""Parts in model_index.json that no supported model has, and what the model then is."""

_UNSUPPORTED_SETTINGS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
"""Extra conditions of a UNet: they would have to be fed, and training and the graph have no input for them."""


def family_of(unet: UNet2DConditionModel, where: Path | str = "the model") -> str:
    """The name that concept files and bundles carry, told by the UNet's shapes.

    A distilled model with fewer cross-attention layers is a family of its own, named by its Σ d_V ("sd15-6720"): a
    concept fits only a base of the same layers. Raises `ModelError` for a width that no known model has.
    """
    text_dim = unet.config.cross_attention_dim
    for family in FAMILIES:
        if family.text_dim == text_dim:
            value_dim = sum(layer.value_dim for layer in layer_table(unet))
            return family.name if value_dim == family.value_dim else f"{family.name}-{value_dim}"
    widths = " or ".join(f"{family.text_dim} ({family.name})" for family in FAMILIES)
    raise ModelError(
        f"{where}: its UNet reads encodings of {text_dim} numbers, expected {widths}; {OWN_FAMILY}."
    )


def parts_of(index: Mapping[str, Any]) -> dict[str, str | None]:
    """The parts that a model must have by its model_index.json, and the class of each where it matters."""
    return _PARTS | (_SECOND_PARTS if _class_of(index, "text_encoder_2") else {})


def check_pipeline(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse by its model_index.json, with the reason, what is no Stable Diffusion 1.x, 2.x or XL model."""
    name = index.get("_class_name")
    for part, reason in _REFUSED_PARTS.items():
        if _class_of(index, part):
            raise ModelError(f"{folder}: {name} {reason}; {_SUPPORTED}.")
    if index.get("requires_aesthetics_score"):
        raise ModelError(
            f"{folder}: this is SDXL's refiner, which finishes pictures of another model; use the base model."
        )
    for part, expected in parts_of(index).items():
        kind = _class_of(index, part)
        if kind is None or not (folder / part).is_dir():
            raise ModelError(
                f"{folder}: the model has no {part}; expected a complete Stable Diffusion folder with "
                f"{', '.join(parts_of(index))}."
            )
        if expected is not None and kind != expected:
            raise ModelError(f"{folder}: its {part} is a {kind}, expected {expected}; {_SUPPORTED}.")


def check_unet_config(
    folder: Path, config: Mapping[str, Any], *, text_encoders: int, latent_channels: int
) -> None:
    """Refuse, by its settings and before its weights are read, a UNet that needs more than a prompt."""
    for key in _UNSUPPORTED_SETTINGS:
        if config.get(key) is not None:
            raise ModelError(f"{folder}: its UNet has {key} = {config[key]!r}, which is not supported.")
    channels = config.get("in_channels", 4)
    if channels != latent_channels:
        raise ModelError(
            f"{folder}: its UNet has {channels} input channels where the VAE has {latent_channels}, so it reads more "
            "than noise; inpainting, editing, depth and upscaling models are not supported, " + _SUPPORTED
        )
    added = config.get("addition_embed_type")
    expected = "text_time" if text_encoders == 2 else None
    if added != expected:
        raise ModelError(
            f"{folder}: its UNet has addition_embed_type = {added!r}, expected {expected!r} with {text_encoders} "
            f"text encoder{'s' if text_encoders > 1 else ''}; {_SUPPORTED}."
        )
    for key in ("cross_attention_dim", "sample_size"):
        value = config.get(key, 1280 if key == "cross_attention_dim" else None)
        if not isinstance(value, int):
            raise ModelError(
                f"{folder}: its UNet has {key} = {value!r}, expected one whole number; {_SUPPORTED}."
            )


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """``"unet": ["diffusers", "UNet2DConditionModel"]``; ``[null, null]`` is a part left out."""
    entry = index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else None
