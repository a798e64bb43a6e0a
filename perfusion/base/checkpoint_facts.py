"""What a single-file checkpoint says of itself, from its header alone: before gigabytes of weights are read.

The files of the wild carry more than weights. Marker tensors and metadata say what the UNet predicts; scales lie beside
weights that were squeezed into 8 bits; parts are left out. What is not read rightly here is refused by its name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion.base.loading import first_line
from perfusion.base.model_options import noise_settings
from perfusion.errors import ModelError

__all__ = ["CheckpointFacts", "checkpoint_facts"]

logger = logging.getLogger(__name__)

_UNET, _VAE, _AVERAGED = "model.diffusion_model.", "first_stage_model.", "model_ema."
_TRANSFORMERS = ("joint_blocks.", "double_blocks.", "transformer_blocks.0.attn.add_k_proj", "x_embedder")
_POINTER = b"version https://git-lfs"
_PREDICTIONS = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction", "sample": "sample",
}  # fmt: skip
"""The words of the metadata field modelspec.prediction_type, and what diffusers calls them."""
_SCALES = (
    ".scale_weight", ".weight_scale", ".weight_scale_2", ".SCB", ".weight.absmax", ".weight.quant_map", "._scale",
    "scaled_fp8", ".comfy_quant",
)  # fmt: skip
"""What the names of scales and of their markers end in: of fp8 files, bitsandbytes and quanto."""
_INTEGERS = ("I8", "U8", "I16", "U16")
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """What a checkpoint is, as far as it says so."""

    kind: str
    """sd15, sd21 or sdxl: told by where the text encoders are."""
    prediction: str | None = None
    """What its UNet predicts, in diffusers' words; None where it does not say."""
    zero_snr: bool = False
    """Whether it was trained down to no signal at all at the last timestep."""

    def scheduler_settings(self) -> dict[str, Any]:
        """What the file knows better than the scheduler settings of another model of its kind."""
        return noise_settings(self.prediction, self.zero_snr or None)


@dataclass(frozen=True, kw_only=True)
class _Header:
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    """As safetensors writes them: F16, F8_E4M3, I8."""


def checkpoint_facts(path: Path, *, needs_vae: bool = True) -> CheckpointFacts:
    """What a checkpoint says of itself; without ``needs_vae`` its VAE may be missing.

    Raises:
        ModelError: a pickle, a pointer in place of a file, a damaged file, a part that is missing, weights in a form
            that is not read, or another kind of model; with the reason.
    """
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{path} is no .safetensors file, expected one or the folder of a diffusers model. A .ckpt, .pt or .bin "
            "file is a pickle, which can run code: convert it where you trust it, with diffusers "
            "(StableDiffusionPipeline.from_single_file, then save_pretrained with safe_serialization=True)."
        )
    header = _read_header(path)
    _check_unet(path, header.shapes)
    _check_numbers(path, header)
    kind = _kind(path, header.shapes)
    if needs_vae and not _has(header.shapes, _VAE):
        raise ModelError(
            f"{path} has no VAE ({_VAE}…), which turns latents into pictures. Give the one it is meant to be used with "
            "by --vae, a file or a folder."
        )
    if _has(header.shapes, _AVERAGED):
        logger.info("%s: the averaged weights (%s…) are left aside, the plain ones are read", path, _AVERAGED)
    return CheckpointFacts(kind=kind, prediction=_prediction(header), zero_snr=_zero_snr(header))


def _read_header(path: Path) -> _Header:
    from safetensors import safe_open

    with path.open("rb") as start:
        if start.read(len(_POINTER)) == _POINTER:
            raise ModelError(
                f"{path} is a Git LFS pointer, which names the file in place of holding it. Fetch the file itself "
                "with git lfs pull."
            )
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
            return _Header(
                metadata=dict(file.metadata() or {}),
                shapes={name: tuple(part.get_shape()) for name, part in slices.items()},
                dtypes={name: str(part.get_dtype()) for name, part in slices.items()},
            )
    except Exception as error:  # safetensors raises its own kind
        raise ModelError(
            f"{path} cannot be read: {first_line(error)}. The copy may be incomplete; copy it again."
        ) from error


def _check_unet(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `ModelError` for what has no UNet that a concept can edit."""
    if not _has(shapes, _UNET):
        raise ModelError(
            f"{path} has no UNet in the original layout ({_UNET}…), but {_contents(shapes)}, expected a whole Stable "
            "Diffusion 1.x, 2.x or XL checkpoint."
        )
    if _is_transformer(shapes):
        raise ModelError(
            f"{path} has a transformer in place of a UNet, with no fixed keys and values of the text for a concept to "
            "edit. Use a Stable Diffusion 1.x, 2.x or XL checkpoint."
        )
    channels = shapes.get(f"{_UNET}input_blocks.0.0.weight", (0, 4))[1]
    if channels != 4:
        raise ModelError(
            f"{path}: its UNet has {channels} input channels, expected 4; inpainting, editing, depth and upscaling "
            "models are not supported."
        )


def _contents(shapes: Iterable[str]) -> str:
    """What a file without the UNet's usual names holds, for a sentence."""
    names = list(shapes)
    if _is_transformer(names):
        return "a transformer's weights"
    if _has(names, _AVERAGED):
        return f"averaged weights alone ({_AVERAGED}…)"
    if any("lora_" in name or ".lora" in name for name in names):
        return "a LoRA's weights"
    if any(name.removeprefix("unet.").startswith(("down_blocks.", "time_embedding.")) for name in names):
        return "a UNet in diffusers' layout (use it as a folder)"
    return "a VAE's or some other part's weights"


def _check_numbers(path: Path, header: _Header) -> None:
    """Raise `ModelError` for weights that are not the model's numbers as they stand."""
    scale = next((name for name in header.shapes if name.endswith(_SCALES)), None)
    if scale is not None:
        raise ModelError(
            f"{path} holds scaled weights of 8 bits or fewer ({scale} and others lie beside them), which are not read. "
            "Use the checkpoint in 16 bits."
        )
    integer = next(
        (name for name, dtype in header.dtypes.items() if name.startswith(_UNET) and dtype in _INTEGERS), None
    )
    if integer is not None:
        raise ModelError(
            f"{path} holds weights as integers ({integer} is {header.dtypes[integer]}), which are not read. Use the "
            "checkpoint in 16 bits."
        )
    edm = next((name for name in _EDM if name in header.shapes), None)
    if edm is not None:
        raise ModelError(
            f"{path} is a model of the EDM kind ({edm} says so), whose noise schedule is not supported. Use a "
            "checkpoint that predicts the noise or the velocity."
        )


def _kind(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Told by where the text encoders are."""
    for prefix, kind in (
        ("cond_stage_model.transformer.", "sd15"),
        ("cond_stage_model.model.", "sd21"),
        ("conditioner.embedders.1.", "sdxl"),
    ):
        if _has(shapes, prefix):
            return kind
    if _has(shapes, "conditioner.embedders.0."):
        raise ModelError(
            f"{path} is SDXL's refiner, which finishes pictures of another model. Use the base model."
        )
    raise ModelError(f"{path} has a UNet and no text encoder, expected a whole checkpoint.")


def _prediction(header: _Header) -> str | None:
    """By the marker tensor that other programs read, or by the metadata."""
    if "v_pred" in header.shapes or _is_true(header, "ss_v_parameterization"):
        return "v_prediction"
    return _PREDICTIONS.get(header.metadata.get("modelspec.prediction_type", "").lower())


def _zero_snr(header: _Header) -> bool:
    return "ztsnr" in header.shapes or _is_true(header, "ss_zero_terminal_snr")


def _is_true(header: _Header, field: str) -> bool:
    return header.metadata.get(field, "").lower() in ("true", "1")


def _has(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _is_transformer(names: Iterable[str]) -> bool:
    return any(name.removeprefix(_UNET).startswith(_TRANSFORMERS) for name in names)
