"""CLIP as a scorer: a folder of the user's, as transformers saves it. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perfusion.judging.local_model import load_local
from perfusion.judging.scorer import Float32, unit

__all__ = ["ClipScorer"]

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own, of all its published sizes."""
PIECE = 16


class ClipScorer:
    """Pictures and prompts as CLIP's embeddings (`perfusion.judging.scorer.Scorer`).

    Args:
        folder: config.json, model.safetensors, the tokenizer's files.
        device: where it runs.

    Raises:
        ModelError: there is no such folder, or no CLIP model in it.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self._model, self._tokenizer = load_local(folder, "CLIPModel", "clip", "openai/clip-vit-base-patch32")
        self._model.to(device)
        self._device = torch.device(device)
        self._size = int(self._model.config.vision_config.image_size)

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Image.Image]) -> Float32:
        """Embeddings (n, dim): the shorter side to CLIP's size, the middle square, its normalisation."""
        embeddings = []
        for start in range(0, len(pictures), PIECE):
            pixels = torch.stack([self._pixels(picture) for picture in pictures[start : start + PIECE]])
            states = self._model.vision_model(pixel_values=pixels.to(self._device)).pooler_output
            embeddings.append(self._model.visual_projection(states).float().cpu().numpy())
        return unit(np.concatenate(embeddings))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """Embeddings (n, dim); what is longer than CLIP reads is cut off."""
        length = int(self._model.config.text_config.max_position_embeddings)
        batch = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        states = self._model.text_model(
            input_ids=batch.input_ids.to(self._device), attention_mask=batch.attention_mask.to(self._device)
        ).pooler_output
        return unit(self._model.text_projection(states).float().cpu().numpy())

    def _pixels(self, picture: Image.Image) -> Tensor:
        image = picture.convert("RGB")
        # rounded down, as CLIP's own preprocessing does
        width, height = (side * self._size // min(image.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        image = image.crop((left, top, left + self._size, top + self._size))
        array = (np.asarray(image, np.float32) / 255 - MEAN) / DEVIATION
        return torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)
