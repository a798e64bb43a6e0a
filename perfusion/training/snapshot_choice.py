"""Choosing among a training's snapshots: which scorer, on which prompts, against what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perfusion.base.base_model import BaseModel
from perfusion.concept.concept_file import Concept
from perfusion.embedded import is_embedded
from perfusion.errors import DeviceError, ModelError
from perfusion.judging.scorer import OnnxScorer, Scorer
from perfusion.judging.selection import PROMPTS, Selection, cut_to_mask, score_snapshots
from perfusion.training.config import TrainingConfig
from perfusion.training.draw import draw
from perfusion.training.placement import Placement
from perfusion.training.samples import Samples

__all__ = ["choose", "find_scorer", "object_pictures", "open_scorer", "variant_pictures"]

POCKET_PROMPTS = (
    "a photo of a {} on a beach", "a photo of a {} in the snow", "a photo of a {} on a wooden table",
    "a photo of a {} in a forest", "a photo of a {} on a street", "a photo of a {} at night",
)  # fmt: skip
"""In the embedded model's own words: places that it can tell apart."""
SEEDS = (0, 1)
STEPS, POCKET_STEPS = 10, 5
"""Of a validation picture. Pictures of the embedded model's first edition after 5 and after 10 steps were scored alike
(the cosines of 192 pictures correlated by 0.96 and 0.95), and 5 steps took six tenths of the time."""

FADED = 0.85
"""How white a sheet shows what does not count."""

Say = Callable[[str], None]


def find_scorer(base: BaseModel, config: TrainingConfig, device: torch.device, say: Say) -> Scorer | None:
    """The scorer for this training; None, with a line about it, where there is none or none is wanted.

    Raises:
        ModelError, DeviceError: the one that was asked for cannot be used.
    """
    if config.select == "last" or config.steps <= config.save_every:
        if config.scorer is not None:
            every = f"{config.steps} steps with a snapshot every {config.save_every}"
            say(f"nothing to choose from: {every} make one (--save-every)")
        return None
    if config.scorer is not None:
        return open_scorer(config.scorer, device)
    if not is_embedded(base.family):
        say("no scorer for the snapshots (--scorer DIR, a CLIP model), so the last step is taken")
        return None
    from perfusion.embedded import scorer_path

    try:
        return open_scorer(scorer_path(), device)
    except (ModelError, DeviceError) as error:
        say(f"the snapshots cannot be scored, so the last step is taken: {error}")
        return None


def open_scorer(folder: Path, device: torch.device) -> Scorer:
    """The scorer in a folder: two ONNX graphs, or a CLIP model as transformers saves it.

    Raises:
        ModelError: it is neither.
        DeviceError: onnxruntime is missing.
    """
    if (folder / "image.onnx").is_file():
        return OnnxScorer(folder, threads=torch.get_num_threads())
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no scorer of pictures, expected a CLIP model's folder (config.json, model.safetensors, "
            "the tokenizer's files) or one with image.onnx, text.onnx and tokenizer.json."
        )
    from perfusion.judging.clip_scorer import ClipScorer

    return ClipScorer(folder, device)


def choose(
    base: BaseModel,
    snapshots: Mapping[int, Concept],
    samples: Samples,
    scorer: Scorer,
    config: TrainingConfig,
    placement: Placement,
    report: Callable[[int, int], None] | None = None,
) -> Selection:
    """Draw with every snapshot, have the pictures scored, and choose. The base model is on its device.

    Args:
        report: called with how many snapshots are done and how many there are.
    """

    def drawing(concept: Concept, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        size = 1 if config.checkpointing else 4
        steps = min(POCKET_STEPS if is_embedded(base.family) else STEPS, base.num_inference_steps)
        return draw(
            base, concept, prompts, seeds, num_inference_steps=steps, placement=placement, batch_size=size
        )

    prompts = POCKET_PROMPTS if is_embedded(base.family) else PROMPTS
    pictures = object_pictures(samples, config.crops)
    return score_snapshots(snapshots, drawing, scorer, pictures, prompts=prompts, seeds=SEEDS, report=report)


def object_pictures(samples: Samples, crops: int) -> list[Image.Image]:
    """The first variant of each picture, the whole of it, cut to where the object is."""
    pairs = zip(samples.images[::crops], samples.masks[::crops], strict=True)
    return [cut_to_mask(*_as_pictures(image, mask)) for image, mask in pairs]


def variant_pictures(samples: Samples, crops: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """The first variant of each picture as it is learned from, and with what does not count faded to white."""
    whole, faded = [], []
    for image, mask in zip(samples.images[::crops], samples.masks[::crops], strict=True):
        picture, where = _as_pictures(image, mask)
        whole.append(picture)
        faded.append(
            Image.composite(
                picture, Image.blend(picture, Image.new("RGB", picture.size, "white"), FADED), where
            )
        )
    return whole, faded


def _as_pictures(image: Tensor, mask: Tensor) -> tuple[Image.Image, Image.Image]:
    """A variant (3, height, width) in [−1, 1] and its mask (1, h, w) as pictures of one size."""
    levels = np.rint((image.numpy() / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))
    shape = np.rint(mask[0].clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)
    return picture, Image.fromarray(shape).resize(picture.size, Image.Resampling.BILINEAR)
