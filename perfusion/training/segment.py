"""Where the object is, by CLIPSeg: a segmentation model that is told in words what to look for.

Its weights are a folder of the user's, as transformers saves it (CIDAS/clipseg-rd64-refined is the usual one). Nothing
is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perfusion.errors import ModelError
from perfusion.judging.local_model import check_local, load_local

__all__ = ["check_segmenter", "segment"]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What CLIPSeg's pictures are normalised with, where the folder does not say."""
PIECE = 8
KIND = "clipseg"
EXAMPLE = "CIDAS/clipseg-rd64-refined; or use --masks auto, which needs none"


def check_segmenter(folder: Path) -> None:
    """Raise `ModelError` for a folder that cannot be a CLIPSeg model's, before the work begins."""
    check_local(folder, KIND, EXAMPLE)


@torch.no_grad()
def segment(
    folder: Path, pictures: Tensor, superclass: str, size: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Soft masks of what the superclass names.

    Args:
        folder: of a CLIPSeg model: config.json, model.safetensors, the tokenizer's files, preprocessor_config.json.
        pictures: (n, 3, height, width) in [−1, 1].
        superclass: "cat".
        size: height and width of the masks.
        device: where the model runs; it is freed afterwards.

    Returns:
        (n, 1, *size) float32 in [0, 1], on the pictures' device.

    Raises:
        ModelError: there is no such folder, or no CLIPSeg model in it.
    """
    model, tokenizer = load_local(folder, "CLIPSegForImageSegmentation", KIND, EXAMPLE)
    model.to(device)
    words = tokenizer([superclass], return_tensors="pt").input_ids.to(device)
    mean, deviation, side = _settings(folder, int(model.config.vision_config.image_size))
    resized = []
    for piece in pictures.split(PIECE):
        pixels = _resized(piece.float().to(device) / 2 + 0.5, (side, side))
        pixels = (pixels - mean.to(device)) / deviation.to(device)
        logits = model(input_ids=words.expand(len(piece), -1), pixel_values=pixels).logits
        masks = torch.sigmoid(logits.float().view(len(piece), 1, *logits.shape[-2:]))
        resized.append(_resized(masks, size).clamp(0, 1))
    return torch.cat(resized).to(pictures.device)


def _settings(folder: Path, side: int) -> tuple[Tensor, Tensor, int]:
    """Mean and deviation (3, 1, 1) of the pictures, and their side. Read here rather than by the folder's own
    preprocessor, which for some classes asks for torchvision."""
    path = folder / "preprocessor_config.json"
    settings: dict[str, Any] = {}
    if path.is_file():
        try:
            settings = json.loads(path.read_text("utf-8-sig"))
            size: Any = settings.get("size", side)
            if isinstance(size, dict):
                size = size.get("height") or size.get("shortest_edge") or side
            side = int(size)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); copy it again.") from error
    mean, deviation = settings.get("image_mean", MEAN), settings.get("image_std", DEVIATION)
    return torch.tensor(mean).view(3, 1, 1), torch.tensor(deviation).view(3, 1, 1), side


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
