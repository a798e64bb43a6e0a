"""A VAE from a file or folder of its own: for checkpoints without one, or with one that another should replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from perfusion.base.loading import check_finite, load_weights
from perfusion.base.single_file import read_part, read_tensors
from perfusion.errors import ModelError

__all__ = ["load_vae"]

_KIND = "AutoencoderKL"
_PREFIX = "first_stage_model."


def load_vae(path: Path, source: Path, dtype: torch.dtype) -> Any:
    """diffusers' AutoencoderKL.

    Args:
        path: a .safetensors file in the original layout or in diffusers', alone or within a checkpoint; a VAE's folder
            of diffusers, or a model's folder with one in it.
        source: the folder of the model's settings, whose VAE's are taken for a file.
        dtype: weights stored as anything else become this.

    Raises:
        ModelError: it is no VAE, or not one of such a model.
    """
    if path.is_dir():
        folder, part = (path, "vae") if (path / "vae").is_dir() else (path.parent, path.name)
        if not (folder / part / "config.json").is_file():
            raise ModelError(f"{path}: no VAE of diffusers, it has no config.json and no folder vae/.")
        return load_weights(folder, part, _KIND, dtype)
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in read_tensors(path).items()}
    if "decoder.conv_in.weight" not in tensors:
        raise ModelError(f"{path} holds no VAE, expected a file with decoder.conv_in.weight.")
    vae = read_part(path, source, "vae", _KIND, tensors, dtype)
    check_finite(path, "vae", vae)
    return vae
