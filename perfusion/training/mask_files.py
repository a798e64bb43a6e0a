"""The masks that a training would find, as pictures to look at and to paint over before anything is learned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from perfusion.base.base_model import BaseModel
from perfusion.base.model_options import ModelOptions
from perfusion.files import writing
from perfusion.training.config import TrainingConfig
from perfusion.training.object_boxes import object_masks
from perfusion.training.picture_folder import find_pictures
from perfusion.training.placement import Placement, frozen_on_device, open_base
from perfusion.training.segment import check_segmenter
from perfusion.training.templates import check_superclass
from perfusion.training.training_pictures import load_picture

__all__ = ["find_masks", "write_masks"]

logger = logging.getLogger(__name__)


def write_masks(
    images: Path, folder: Path, config: TrainingConfig, *, model: str | Path | BaseModel | None = None,
    model_config: Path | None = None, model_options: ModelOptions | None = None,
) -> dict[str, float]:  # fmt: skip
    """Write a mask for each picture of a folder, of its size and name, as `--masks` takes it: white is the object.

    Returns:
        The share of each picture that its mask covers, by the picture's name.

    Raises:
        TrainingError: the pictures or the superclass cannot be used.
        ModelError: the base model or the segmenter cannot be used.
        PerfusionError: a mask cannot be written.
    """
    paths = find_pictures(images)
    masks = find_masks(paths, config, model=model, model_config=model_config, model_options=model_options)
    folder.mkdir(parents=True, exist_ok=True)
    covers = {}
    for path, mask in zip(paths, masks, strict=True):
        with writing(folder / f"{path.stem}.png") as file:
            mask.save(file, "PNG", optimize=True)
        covers[path.name] = sum(mask.histogram()[128:]) / (mask.width * mask.height)
    return covers


def find_masks(
    paths: Sequence[Path], config: TrainingConfig, *, model: str | Path | BaseModel | None = None,
    model_config: Path | None = None, model_options: ModelOptions | None = None,
    say: Callable[[str], None] = logger.info,
) -> list[Image.Image]:  # fmt: skip
    """Masks of the superclass, one a picture and of its size, 8-bit grey: what cuts the picture out, or else what the
    base model's attention, or the segmenter, finds. White all over where nothing was found that can be believed."""
    if config.segmenter is not None:
        check_segmenter(config.segmenter)
    pictures = [load_picture(path, "auto" if config.masks == "clipseg" else config.masks) for path in paths]
    placement = Placement.pick(config.device, config.precision)
    base = (
        model
        if isinstance(model, BaseModel)
        else open_base(model, model_config, config, placement, model_options)
    )
    subject = check_superclass(base, config.superclass)
    lacking = [picture for picture in pictures if picture.mask is None]
    with torch.no_grad(), frozen_on_device(base, placement.device, checkpointing=False):
        masks = iter(object_masks(base, lacking, subject, config, placement) if lacking else [])
    return [next(masks) if picture.mask is None else picture.mask for picture in pictures]
