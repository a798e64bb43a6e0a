"""Weights that trainings left: averaged ones in their checkpoints, and those of a packed model, to begin with.

A training that begins from a packed model goes on at the step where that was packed; the optimisers' state, the
encoded scenes and the encoder of portraits are made anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from perfusion.base.base_model import load_base
from perfusion.base.usual_drawing import read_own
from perfusion.errors import ModelError

__all__ = ["Packed", "averaged", "read_packed", "steps_done"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """What a packed model has learned, in float32."""

    weights: dict[str, dict[str, torch.Tensor]]
    """By part: `vae`, `unet`, `text`."""
    steps: dict[str, int]
    """Those of the autoencoder, `vae`, and of the UNet and the text encoder, `unet`."""


def read_packed(folder: Path, family: str) -> Packed:
    """Read the weights of a model folder that `pack` wrote.

    Raises:
        ModelError: the folder is missing, damaged, of another edition or by another program.
    """
    own = read_own(folder)
    found, steps = own.get("family", "something else"), own.get("steps")
    if found != family or not steps:
        raise ModelError(f"{folder} holds {found}, expected a model of {family} that `pack` wrote.")
    base = load_base(folder)
    parts = {"vae": base.vae, "unet": base.unet, "text": base.text_encoder}
    weights = {
        part: {
            name: value.float() for name, value in module.state_dict().items() if value.is_floating_point()
        }
        for part, module in parts.items()
    }
    return Packed(weights=weights, steps=steps)


def averaged(path: Path, group: str) -> dict[str, torch.Tensor]:
    """The averaged weights of one network in a checkpoint, in float32.

    Raises:
        ModelError: the checkpoint is missing, damaged, or that of another part.
    """
    prefix = f"{group}/"
    with _opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        if not names:
            raise ModelError(f"{path} holds no {group}: it is not the checkpoint of this part.")
        return {name.removeprefix(prefix): file.get_tensor(name).float() for name in names}


def steps_done(path: Path) -> int:
    """The steps that a training had made when it wrote this checkpoint.

    Raises:
        ModelError: the checkpoint is missing, damaged, or none.
    """
    with _opened(path) as file:
        facts = (file.metadata() or {}).get("facts")
    if facts is None:
        raise ModelError(f"{path} is not the checkpoint of a training.")
    return int(json.loads(facts)["step"])


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint; train this part first.")
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {str(error).rstrip('.')}.") from error
