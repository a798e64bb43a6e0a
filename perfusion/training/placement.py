"""Where a training runs: its device and precision, and the base model there for as long as it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perfusion.base.base_model import BaseModel, load_base
from perfusion.base.model_options import ModelOptions
from perfusion.errors import DeviceError, TrainingError
from perfusion.training.config import TrainingConfig

__all__ = ["Placement", "frozen_on_device", "on_device", "open_base", "weight_sizes"]

_TEXT_PROJECTIONS = ("attn2.to_k", "attn2.to_v")


@dataclass(frozen=True)
class Placement:
    """Where the base model computes, and in what."""

    device: torch.device
    dtype: torch.dtype | None = None
    """The 16 bits that the UNet's layers compute in, by autocast; None: what its weights are."""

    @classmethod
    def pick(cls, device: str = "auto", precision: str = "auto") -> Placement:
        """The placement that the options name.

        Args:
            device: `auto` (a GPU where there is one), `cpu`, `cuda`, or `cuda:1` for the second GPU.
            precision: `fp32`, `bf16`, `fp16`, or `auto`: bfloat16 where the hardware computes in it, else float32.

        Raises:
            TrainingError: a device of another name.
            DeviceError: the device is not there; that is an error, not a slow surprise.
        """
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise TrainingError(f"The device is {device!r}, expected auto, cpu, cuda or cuda:N.")
        available, number = torch.cuda.is_available(), device.partition(":")[2]
        if device.startswith("cuda") and not available:
            raise DeviceError(
                "No CUDA device was found. Use --device cpu, or install a CUDA build of torch and its driver."
            )
        if number and int(number) >= torch.cuda.device_count():
            raise DeviceError(
                f"There is no {device}: {torch.cuda.device_count()} CUDA devices were found, counted from cuda:0."
            )
        if number:
            return cls.on(torch.device(device), precision)
        return cls.on(torch.device("cuda" if available and device != "cpu" else "cpu"), precision)

    @classmethod
    def on(cls, device: torch.device, precision: str = "auto") -> Placement:
        """The placement on a device, with the dtype that a precision of `pick` means there."""
        return cls(device, _autocast_dtype(device, precision))

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast to `dtype`, for a with block; nothing where that is None."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()


def open_base(
    model: str | Path | None,
    model_config: str | Path | None,
    config: TrainingConfig,
    placement: Placement,
    options: ModelOptions | None = None,
) -> BaseModel:
    """`load_base` for paths as callers write them, the UNet's weights in the precision that the training asks for.

    Text encoders and VAE stay in float32, which the edit and some VAEs need.

    Raises:
        ModelError, DeviceError: as `load_base`.
        TrainingError: weights of 16 bits on a device on which the UNet computes in float32.
    """
    folder, settings = Path(model) if model else None, Path(model_config) if model_config else None
    dtype = _weight_dtype(config, placement)
    if dtype is None:
        return load_base(folder, config=settings, options=options)
    # float16 is how models are published, so nothing is lost for the fingerprint and the keys, which are read from it
    base = load_base(folder, config=settings, unet_dtype=torch.float16, options=options)
    _narrow(base.unet, dtype)
    return base


def _weight_dtype(config: TrainingConfig, placement: Placement) -> torch.dtype | None:
    """The 16 bits in which the UNet's weights are held; None: float32."""
    if config.weights == "half" and placement.dtype is None:
        raise TrainingError(
            f"The UNet computes in float32 on {placement.device.type} and cannot hold its weights in 16 bits. Give "
            "--precision bf16, or leave --weights out."
        )
    half = config.weights == "half" or placement.device.type == "cuda" or config.checkpointing
    return placement.dtype if half and config.weights != "fp32" else None


def _narrow(unet: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights in the type that autocast computes in, so that it has nothing to cast at each use. Not the keys' and
    values' of the text, from which a concept's numbers come; nor the norms': small, and of some nothing is cast."""
    for name, layer in unet.named_modules():
        if isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm):
            layer.float()
        elif isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and not name.endswith(_TEXT_PROJECTIONS):
            layer.to(dtype)


def weight_sizes(base: BaseModel, *, checkpointing: bool = False) -> dict[str, int]:
    """Bytes of weights that stay on the device during the steps, by part."""

    def size(*parts: torch.nn.Module) -> int:
        return sum(weight.nbytes for part in parts for weight in (*part.parameters(), *part.buffers()))

    sizes = {"UNet": size(base.unet), "text": size(*base.text_encoders)}
    return sizes if checkpointing else sizes | {"VAE": size(base.vae)}


@contextmanager
def frozen_on_device(base: BaseModel, device: torch.device, *, checkpointing: bool = False) -> Iterator[None]:
    """The base model on `device`, frozen and in evaluation mode; afterwards it is where and as it was.

    Args:
        checkpointing: keep activations for fewer layers, and the VAE off the device; see `on_device`.
    """
    parts = base.parts
    homes = [(next(part.parameters()).device, part.training) for part in parts]
    trainable = [param for part in parts for param in part.parameters() if param.requires_grad]
    unet: Any = base.unet
    switch = checkpointing and not unet.is_gradient_checkpointing
    try:
        for part in parts:
            part.requires_grad_(False).eval()
            if not (checkpointing and part is base.vae):
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
def on_device(part: Any, device: torch.device) -> Iterator[None]:
    """A part on `device` for the length of a with block; nothing is done for one that is there."""
    home = next(part.parameters()).device
    part.to(device)
    try:
        yield
    finally:
        part.to(home)


def _autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """The 16 bits that are asked for, or with `auto` bfloat16 where the hardware computes in it; None: float32."""
    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    # emulated bfloat16 is slower than float32, and torch counts it as supported when not told otherwise
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # the library with the kernels is missing on some platforms
        native = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else None
