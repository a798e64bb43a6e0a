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
    for name in dict.fromkeys(name for name, _ in PARTS.values()):
        if not (work / name).is_file():
            continue
        checkpoint = _read(work / name)  # once: the training may write the next one meanwhile
        for part, (file, group) in PARTS.items():
            if file == name:
                steps[part] = checkpoint.step
                weights = checkpoint.group(group)
                tensors |= {f"{part}/{key}": value.half() for key, value in weights.items()}
    if not tensors:
        raise ModelError(f"{work} has no checkpoint of a training; train first.")
    with writing(output) as target:
        target.write(save(tensors, {"family": family, "steps": json.dumps(steps)}))


def read_kept(path: Path, family: str) -> Kept:
    """Read a file of `keep`.

    Raises:
        ModelError: the file is missing, damaged, or of another edition.
    """
    file = _read(path)
    found = file.facts.get("family", "something else")
    if found != family or "steps" not in file.facts:
        raise ModelError(f"{path} holds {found}, expected the weights of {family} that `keep` writes.")
    steps: dict[str, int] = json.loads(file.facts["steps"])
    return Kept(weights={part: file.group(part) for part in steps}, steps=steps)


def averaged(path: Path, group: str) -> dict[str, torch.Tensor]:
    """The averaged weights of one network in a checkpoint."""
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint; train this part first.")
    return _read(path).group(group)


@dataclass(frozen=True, kw_only=True, eq=False)
class _File:
    path: Path
    facts: dict[str, str]
    tensors: dict[str, torch.Tensor]

    @property
    def step(self) -> int:
        """That a training had reached when it wrote this."""
        if "facts" not in self.facts:
            raise ModelError(f"{self.path} is not the checkpoint of a training.")
        return int(json.loads(self.facts["facts"])["step"])

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one network, in float32."""
        prefix = f"{name}/"
        found = {
            key.removeprefix(prefix): value.float()
            for key, value in self.tensors.items()
            if key.startswith(prefix)
        }
        if not found:
            raise ModelError(f"{self.path} holds no {name}: it is not the checkpoint of this part.")
        return found


def _read(path: Path) -> _File:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _File(path=path, facts=dict(file.metadata() or {}), tensors=tensors)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {str(error).rstrip('.')}.") from error
