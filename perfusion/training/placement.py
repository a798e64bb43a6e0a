"""Where a training runs: the device, its precision, and the base model on it for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from perfusion.base.base_model import BaseModel, load_base
from perfusion.errors import DeviceError, TrainingError
from perfusion.training.config import TrainingConfig

__all__ = ["autocast_dtype", "autocasting", "borrowed", "open_base", "pick_device", "placed", "weight_sizes"]

_OF_TEXT = ("attn2.to_k", "attn2.to_v")


def open_base(
    model: str | Path | None,
    model_config: str | Path | None = None,
    options: TrainingConfig | None = None,
) -> BaseModel:
    """`load_base` for paths as callers write them.

    Args:
        options: of the training to come, which say what the UNet's weights are held in. Text encoders and VAE stay in
            float32, which the edit and some VAEs need.

    Raises:
        ModelError, DeviceError: as `load_base`; the device is not there.
        TrainingError: weights of 16 bits on a device on which the UNet computes in float32.
    """
    path, config = Path(model) if model else None, Path(model_config) if model_config else None
    held = None if options is None else _held_in(options)
    if held is None:
        return load_base(path, config=config)
    # float16 is how models are published, so nothing is lost for the fingerprint and the keys, which are read from it
    base = load_base(path, config=config, unet_dtype=torch.float16)
    _hold(base.unet, held)
    return base


def _held_in(options: TrainingConfig) -> torch.dtype | None:
    """The 16 bits in which the UNet's weights are held; None: float32."""
    device = pick_device(options.device)
    computed = autocast_dtype(device, options.precision)
    if options.weights == "half" and computed is None:
        raise TrainingError(
            f"the UNet computes in float32 on {device.type} and cannot hold its weights in 16 bits; give --precision "
            "bf16, or leave --weights out"
        )
    wanted = options.weights == "half" or device.type == "cuda" or options.checkpointing
    return computed if wanted and options.weights != "fp32" else None


def _hold(unet: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights in the type that autocast computes in, so that it has nothing to cast at each use. Not the keys' and
    values' of the text, from which a concept's numbers come; nor the norms': small, and of some nothing is cast."""
    for name, part in unet.named_modules():
        if isinstance(part, torch.nn.GroupNorm | torch.nn.LayerNorm):
            part.float()
        elif isinstance(part, torch.nn.Linear | torch.nn.Conv2d) and not name.endswith(_OF_TEXT):
            part.to(dtype)


def weight_sizes(base: BaseModel, *, lean: bool = False) -> dict[str, int]:
    """Bytes of weights that stay on the device during the steps, by part."""

    def size(*parts: torch.nn.Module) -> int:
        return sum(weight.nbytes for part in parts for weight in (*part.parameters(), *part.buffers()))

    sizes = {"UNet": size(base.unet), "text": size(*base.text_encoders)}
    return sizes if lean else sizes | {"VAE": size(base.vae)}


@contextmanager
def borrowed(base: BaseModel, device: torch.device, *, lean: bool = False) -> Iterator[None]:
    """The base model on `device`, frozen and in evaluation mode; afterwards it is where and as it was.

    Args:
        lean: keep activations for fewer layers (gradient checkpointing), and the VAE off the device; see `placed`.
    """
    parts = base.parts
    homes = [(next(part.parameters()).device, part.training) for part in parts]
    trainable = [param for part in parts for param in part.parameters() if param.requires_grad]
    unet: Any = base.unet
    switch = lean and not unet.is_gradient_checkpointing
    try:
        for part in parts:
            part.requires_grad_(False).eval()
            if not (lean and part is base.vae):
                part.to(device)
        if switch:
            unet.enable_gradient_checkpointing()
        yield
    finally:
        if switch:
            unet.disable_gradient_checkpointing()
        for part, (home, training) in zip(parts, homes, strict=True):
            part.to(home).train(training)
        for param in trainable:
            param.requires_grad_(True)


@contextmanager
def placed(part: Any, device: torch.device) -> Iterator[None]:
    """A part on `device` for the length of a with block; nothing is done for one that is there."""
    home = next(part.parameters()).device
    part.to(device)
    try:
        yield
    finally:
        part.to(home)


def pick_device(asked: str) -> torch.device:
    """The device to train on; asking for one that is not there is an error, not a slow surprise."""
    if asked not in ("auto", "cpu", "cuda"):
        raise TrainingError(f"the device is {asked!r}, expected auto, cpu or cuda")
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise DeviceError(
            "no CUDA device was found; use --device cpu, or install a CUDA build of torch and its driver"
        )
    return torch.device("cuda" if available and asked != "cpu" else "cpu")


def autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """The 16 bits that are asked for, or with `auto` bfloat16 where the hardware computes in it; None: float32."""
    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    # emulated bfloat16 is slower than float32, and torch counts it as supported when not told otherwise
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # the library with the kernels is missing on some platforms
        native = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else None


def autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to `dtype`; none where it is None."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()
