"""The model to export, opened as it is stored, and whether its bundle has room on the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from perfusion.base.base_model import BaseModel, load_base
from perfusion.base.model_options import ModelOptions
from perfusion.errors import ExportError
from perfusion.export.weights import INLINE_LIMIT

__all__ = ["check_room", "open_model", "room_for", "stored_dtype"]

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_MOST_HEADER = 100_000_000
_SPARE = 64 << 20
"""Bytes for the graphs' nodes, the tokenizer and the manifest."""


def open_model(
    model: Path | None, config: Path | None = None, options: ModelOptions | None = None
) -> BaseModel:
    """`load_base`, with weights of the type they are stored in: they stay in their files, mapped, until they are read.

    Raises `ModelError`, as `load_base` does.
    """
    if model is None:
        from perfusion.embedded import model_path

        model = model_path()
    return load_base(model, stored_dtype(model), config=config, options=options)


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


def check_room(
    base: BaseModel, output: Path, precision: str, kept: Sequence[str] = (), *, more: int = 0
) -> None:
    """Raise `ExportError` where the disk has not the room for the bundle of ``base``, and ``more`` bytes.

    See `room_for`; a disk that does not say its size is taken as large enough.
    """
    needed = room_for(base, precision, kept) + more
    place = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    disk = shutil.disk_usage(place)
    if disk.total and disk.free < needed:  # what has no size, such as /proc, is refused when it is written
        smaller = ", or export with --precision fp16" if precision != "fp16" else ""
        raise ExportError(
            f"{output}: the bundle needs about {needed / 1e9:.1f} GB and {place} has {disk.free / 1e9:.1f} GB free; "
            f"make room{',' if smaller else ' or'} choose another output{smaller}"
        )


def room_for(base: BaseModel, precision: str, kept: Sequence[str] = ()) -> int:
    """Bytes that an export may take on the disk at most, with what it writes for its checks and removes again.

    ``kept`` is what computes in float32 all the same, see `perfusion.export.half`. int8 counts as float32, of which it
    writes a part.
    """
    stored_in_half = base.unet.dtype == torch.float16
    encoders = [(name,) for name in ("text_encoder", "text_encoder_2")[: len(base.text_encoders)]]
    graphs = [("unet",), *encoders, ("vae_decoder", "vae_encoder")]
    sizes = []
    for of_part, part in zip(graphs, base.parts, strict=True):
        wide = any(place.partition(".")[0] in of_part for place in kept)
        halved = not wide if precision == "fp16" else stored_in_half
        sizes.append(sum(weight.numel() for weight in part.parameters()) * (2 if halved else 4))
    keys = sum(layer.key_dim for layer in base.layers) * base.text_dim * (2 if stored_in_half else 4)
    # a copy of a graph that watches its numbers, with the weights where they lie in the graph
    watched = min(max(sizes), INLINE_LIMIT) if precision == "fp16" else 0
    return int(sum(sizes) + keys + watched + _SPARE)
