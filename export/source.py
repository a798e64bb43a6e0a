"""The model to export, opened as it is stored, and whether its bundle has room on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from perfusion.base import BaseModel, load_base
from perfusion.errors import ExportError

__all__ = ["check_room", "open_model", "stored_dtype"]

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_MOST_HEADER = 100_000_000
_SPARE = 64 << 20
"""Bytes for the graphs' nodes, the tokenizer and the manifest."""


def open_model(model: Path | None, config: Path | None = None) -> BaseModel:
    """`load_base`, with weights of the type they are stored in: they stay in their files, mapped, until they are read.

    Raises `ModelError`, as `load_base` does.
    """
    if model is None:
        from perfusion.pocket import model_path

        model = model_path()
    return load_base(model, stored_dtype(model), config=config)


def stored_dtype(model: Path) -> torch.dtype:
    """The type that holds every weight of a model exactly: 16 bits where all are stored so, otherwise float32.

    By the headers of its safetensors files alone; files that cannot be read are left to whoever opens them.
    """
    files = (
        [model]
        if model.is_file()
        else [path for part in _PARTS for path in (model / part).glob("*.safetensors")]
    )
    found = {kind for path in files for kind in _types_in(path)}
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get("".join(found), torch.float32)


def _types_in(path: Path) -> set[str]:
    """The types of the floating-point tensors that a safetensors file lists; those of its ids say nothing."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, _MOST_HEADER)))
        return {
            str(entry["dtype"])
            for name, entry in header.items()
            if name != "__metadata__" and not str(entry["dtype"]).startswith(("I", "U", "BOOL"))
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()


def check_room(base: BaseModel, output: Path, precision: str) -> None:
    """Raise `ExportError` where the disk has not the room for the bundle of ``base``.

    The estimate is the weights' size in the bundle, from above: int8 counts as float32, of which it writes a part.
    """
    halved = precision == "fp16" or base.unet.dtype == torch.float16
    keys = sum(layer.key_dim for layer in base.layers) * base.text_dim
    numbers = keys + sum(weight.numel() for part in base.parts for weight in part.parameters())
    needed = numbers * (2 if halved else 4) + _SPARE
    place = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    disk = shutil.disk_usage(place)
    if disk.total and disk.free < needed:  # what has no size, such as /proc, is refused when it is written
        raise ExportError(
            f"{output}: the bundle needs about {needed / 1e9:.1f} GB and {place} has {disk.free / 1e9:.1f} GB free; "
            "make room, choose another output, or export with --precision fp16"
        )
