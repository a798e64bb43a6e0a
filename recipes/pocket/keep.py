"""The newest weights of a work folder in one file, small enough to be committed: 36 MB instead of 250.

Averaged weights in float16 and the step each part has reached. A training that begins from it goes on at that step;
the optimisers' state and the encoded scenes are made anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from perfusion.errors import ModelError
from perfusion.files import writing

__all__ = ["Kept", "averaged", "keep", "read_kept"]

PARTS = {"vae": ("vae.safetensors", "average"), "unet": ("unet.safetensors", "average.unet"),
         "text": ("unet.safetensors", "average.text")}  # fmt: skip
"""Part → its checkpoint and the group in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """What a file of `keep` holds, in float32."""

    weights: dict[str, dict[str, torch.Tensor]]
    """By part: `vae`, `unet`, `text`; those that were trained when it was written."""
    steps: dict[str, int]


def keep(work: Path, family: str, output: Path) -> None:
    """Write the averaged weights of a work folder's parts.

    Raises:
        ModelError: nothing is trained yet, or a checkpoint is damaged.
    """
    tensors, steps = dict[str, torch.Tensor](), dict[str, int]()
    for part, (name, group) in PARTS.items():
        if (work / name).is_file():
            steps[part] = _step(work / name)
            tensors |= {f"{part}/{key}": value.half() for key, value in averaged(work / name, group).items()}
    if not tensors:
        raise ModelError(f"{work} has no checkpoint of a training; train first.")
    with writing(output) as file:
        file.write(save(tensors, {"family": family, "steps": json.dumps(steps)}))


def read_kept(path: Path, family: str) -> Kept:
    """Read a file of `keep`.

    Raises:
        ModelError: the file is missing, damaged, or of another edition.
    """
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {str(error).rstrip('.')}.") from error
    if facts.get("family") != family or "steps" not in facts:
        found = facts.get("family", "no edition's weights")
        raise ModelError(f"{path} holds {found}, expected {family} as `keep` writes it.")
    steps: dict[str, int] = json.loads(facts["steps"])
    weights = {
        part: {
            name.removeprefix(f"{part}/"): value
            for name, value in tensors.items()
            if name.startswith(f"{part}/")
        }
        for part in steps
    }
    return Kept(weights=weights, steps=steps)


def averaged(path: Path, group: str) -> dict[str, torch.Tensor]:
    """The averaged weights of one network in a checkpoint."""
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint; train this part first")
    prefix = group + "/"
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (safe_open has no iterator)
        weights = {name[len(prefix) :]: file.get_tensor(name) for name in names}
    if not weights:
        raise ModelError(f"{path}: holds no {group}; it is not the checkpoint of this part")
    return weights


def _step(checkpoint: Path) -> int:
    with safe_open(checkpoint, "pt") as file:
        facts: dict[str, int] = json.loads(file.metadata()["facts"])
    return facts["step"]
