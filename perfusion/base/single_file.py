"""Single-file checkpoints in Stable Diffusion's original layout, read by diffusers' own loader.

Such a file holds weights only. What it leaves out, the settings and the tokenizer, comes from the folder of a diffusers
model of the same architecture, whose weights need not be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.base.loading import check_complete, first_line, quiet_loaders
from perfusion.errors import ModelError

if TYPE_CHECKING:
    import torch

__all__ = ["find_config", "load_single_file"]

_USUAL_CONFIG = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Whose settings fit nearly all files of a kind. None for 2.x: half of its files predict the velocity and half the
noise, which no tensor tells."""


def find_config(path: Path, kind: str) -> Path:
    """The folder of settings for a checkpoint, if diffusers or the user fetched the usual one some day.

    Raises:
        ModelError: it is not on this machine; nothing is downloaded.
    """
    advice = (
        "give the folder of a diffusers model of the same architecture with --config (its weights are not needed, "
        "its model_index.json, settings and tokenizer are)"
    )
    if kind not in _USUAL_CONFIG:
        raise ModelError(f"{path}: a {kind} checkpoint does not tell what its UNet predicts; {advice}.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(_USUAL_CONFIG[kind], local_files_only=True))
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{path}: a checkpoint holds weights only, and the settings of {_USUAL_CONFIG[kind]} are not on this "
            f"machine; {advice}."
        ) from error


def load_single_file(
    path: Path, config: Path, index: Mapping[str, Any], tokenizers: Mapping[str, Any], dtype: torch.dtype,
    unet_dtype: torch.dtype,
) -> dict[str, Any]:  # fmt: skip
    """The parts ``unet``, ``vae``, ``text_encoder`` (and ``text_encoder_2``) of a checkpoint, weights as ``dtype``.

    Args:
        config: folder of settings; index: its model_index.json; tokenizers: by the names of the parts.
        unet_dtype: of the UNet's weights.
    """
    import diffusers

    if find_spec("accelerate") is None:  # without it the loader keeps random weights and tells nobody
        raise ModelError(f"{path}: single files are read with accelerate; install perfusion-edge[train].")
    double = "text_encoder_2" in index
    pipeline_class = diffusers.StableDiffusionXLPipeline if double else diffusers.StableDiffusionPipeline
    # what a concept does not need is left out, or the loader would look for it in the folder of settings
    unneeded = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    loader: Any = pipeline_class.from_single_file
    try:
        with quiet_loaders(), _no_advice():
            # local_files_only alone would not keep the loader from the network; an existing folder does
            pipeline = loader(
                str(path), config=str(config), local_files_only=True, torch_dtype=dtype,
                scheduler=None, **tokenizers, **unneeded,
            )  # fmt: skip
            pipeline.unet.to(unet_dtype)  # the loader knows one type for all parts
    except MemoryError:
        raise
    except Exception as error:  # the loader raises a dozen kinds for a file and a folder that do not match
        # what the file does not hold has no data, or fails where its name is looked up
        if "meta tensor" in str(error) or (isinstance(error, KeyError) and "." in str(error)):
            raise ModelError(
                f"{path}: it misses tensors that the settings of {config} ask for; the file is incomplete or of "
                "another model."
            ) from error
        raise ModelError(
            f"{path}: it cannot be read with the settings of {config}: {first_line(error)}; expected the folder of a "
            "model of the same architecture."
        ) from error
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    if double:
        parts["text_encoder_2"] = pipeline.text_encoder_2
    for name, part in parts.items():
        left = [key for key, value in part.state_dict().items() if value.is_meta]
        check_complete(path, name, sorted(left))
    return parts


@contextmanager
def _no_advice() -> Iterator[None]:
    """The loader advises its callers on data types, which are right; what fails is raised."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
