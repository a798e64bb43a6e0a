"""A UNet as torch computes it, for processes that import nothing else."""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

__all__ = ["load_unet"]


def load_unet(folder: Path) -> Any:
    """The UNet that `library_graphs.prepare` wrote into a folder, in float32."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    return unet.eval().requires_grad_(False)
