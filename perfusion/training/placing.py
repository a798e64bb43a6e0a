"""Where a training runs: the device, its precision, and the base model on it for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from perfusion.base import BaseModel, load_base
from perfusion.errors import DeviceError, TrainingError
from perfusion.training.config import TrainingConfig

__all__ = ["autocast_dtype", "autocasting", "borrowed", "open_base", "pick_device", "placed"]


def open_base(
    model: str | Path | None,
    model_config: str | Path | None = None,
    options: TrainingConfig | None = None,
) -> BaseModel:
    """`load_base` for paths as callers write them.

    Args:
        options: of the training to come. When it saves memory and the UNet computes in 16 bits anyway, the UNet's
            weights are held in 16 bits too, but for its norms; text encoders and VAE stay in float32, which the edit
            and some VAEs need.
    """
    path, config = Path(model) if model else None, Path(model_config) if model_config else None
    if options is None or not options.checkpointing:
        return load_base(path, config=config)
    if autocast_dtype(pick_device(options.device), options.precision) is None:
        return load_base(path, config=config)
    base = load_base(path, torch.float16, config=config)  # as models are published, so nothing is lost
    norms = [
        part for part in base.unet.modules() if isinstance(part, torch.nn.GroupNorm | torch.nn.LayerNorm)
    ]
    for part in (
        *base.text_encoders,
        base.vae,
        *norms,
    ):  # norms are small, and autocast casts nothing for some
        part.float()
    return base


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
    """bfloat16 where it is asked for, or with `auto` where the hardware computes in it; else None."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else None
    # emulated bfloat16 is slower than float32, and torch counts it as supported when not told otherwise
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # the library with the kernels is missing on some platforms
        native = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else None


def autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to `dtype`; none where it is None."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()
