"""Single-file checkpoints in Stable Diffusion's original layout, read part by part with diffusers' own loaders.

Such a file holds weights only. What it leaves out, the settings and the tokenizer, comes from the folder of a diffusers
model of the same architecture, whose weights need not be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.base.family_settings import is_shipped
from perfusion.base.loading import check_complete, first_line, quiet_loaders
from perfusion.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["load_single_file", "read_part", "read_tensors"]

_FLAT = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
"""Where CLIP's text encoder lies; transformers puts ``text_model.`` behind it, and some programs leave that out."""


def load_single_file(
    path: Path, config: Path, kinds: Mapping[str, str], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Any]:
    """The parts of a checkpoint by name (unet, vae, text_encoder, text_encoder_2).

    Args:
        config: folder of settings.
        kinds: the class of each part that is read from the file.
        dtypes: of the weights of each part.

    Raises:
        ModelError: the file misses tensors, or is of another architecture than the settings.
    """
    tensors = read_tensors(path)
    return {name: read_part(path, config, name, kind, tensors, dtypes[name]) for name, kind in kinds.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All weights of a .safetensors file by name, mapped and not yet read, under the names diffusers knows."""
    import safetensors.torch

    try:
        tensors = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors raises its own kind
        raise ModelError(
            f"{path} cannot be read: {first_line(error)}. It must be a whole .safetensors file."
        ) from error
    return {_usual_name(name): tensor for name, tensor in tensors.items()}


def _usual_name(name: str) -> str:
    for prefix in _FLAT:
        inner = name.removeprefix(prefix)
        if inner != name and inner.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            return f"{prefix}text_model.{inner}"
    return name


def read_part(
    path: Path, config: Path, name: str, kind: str, tensors: dict[str, Tensor], dtype: torch.dtype
) -> Any:
    """The part ``name`` of class ``kind`` made of a file's tensors, by the settings in ``config``."""
    if find_spec("accelerate") is None:  # without it the loader keeps random weights and tells nobody
        raise ModelError(f"{path}: single files are read with accelerate; install perfusion-edge[train].")
    try:
        with quiet_loaders(), _no_advice():
            part = _convert(config, name, kind, tensors, dtype)
    except MemoryError:
        raise
    except Exception as error:  # the loaders raise a dozen kinds for a file and a folder that do not match
        # what the file does not hold has no data, or fails where its name is looked up
        if "meta tensor" in str(error) or (isinstance(error, KeyError) and "." in str(error)):
            raise ModelError(
                f"{path}: its {name} misses tensors that the settings of {config} ask for; the file is incomplete or "
                "of another model."
            ) from error
        usual = f"the usual settings of {config.name}" if is_shipped(config) else f"the settings of {config}"
        raise ModelError(
            f"{path}: its {name} cannot be read with {usual}: {first_line(error)}. Give the folder of a model of the "
            "same architecture with --config; its weights are not read."
        ) from error
    check_complete(path, name, sorted(key for key, value in part.state_dict().items() if value.is_meta))
    return part


def _convert(config: Path, name: str, kind: str, tensors: dict[str, Tensor], dtype: torch.dtype) -> Any:
    # local_files_only alone would not keep the loaders from the network; an existing folder does
    where: dict[str, Any] = {"config": str(config), "subfolder": name, "local_files_only": True}
    if not name.startswith("text_encoder"):
        import diffusers

        return getattr(diffusers, kind).from_single_file(tensors, torch_dtype=dtype, **where)
    import transformers
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    encoder_class = getattr(transformers, kind)
    return create_diffusers_clip_model_from_ldm(encoder_class, tensors, torch_dtype=dtype, **where)


@contextmanager
def _no_advice() -> Iterator[None]:
    """The loaders advise their callers on data types, which are right; what fails is raised."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
