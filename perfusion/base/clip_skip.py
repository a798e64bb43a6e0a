"""Clip skip: text encoders read before their last layer, as many fine-tunes of Stable Diffusion 1.x were trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perfusion.errors import ModelError

__all__ = ["skip_layers"]

_XL = 2
"""What SDXL and all its descendants read: the layer before the last."""


def skip_layers(where: Path, text_encoders: Sequence[Any], clip_skip: int | None) -> int:
    """Take the last layers off a text encoder, so that all who encode with it skip them; how many were taken.

    The final LayerNorm stays, as in A1111 and in diffusers, whose ``clip_skip`` counts one less.

    Raises:
        ModelError: the text encoder has not so many layers, or it is one of two: SDXL's UNets read the layer before
            the last of both and were never trained on another.
    """
    if clip_skip is None:
        return 0
    if len(text_encoders) == 2:
        if clip_skip != _XL:
            raise ModelError(
                f"{where}: clip skip {clip_skip} for a model with two text encoders, which are read at the layer "
                f"before the last whatever the model; expected {_XL}, or leave it out."
            )
        return 0
    (encoder,) = text_encoders
    layers = getattr(encoder, "text_model", encoder).encoder.layers
    skipped = clip_skip - 1
    if skipped >= len(layers):
        raise ModelError(
            f"{where}: clip skip {clip_skip}, and its text encoder has {len(layers)} layers; expected 1 to "
            f"{len(layers)}."
        )
    if skipped:
        del layers[-skipped:]
        encoder.config.num_hidden_layers = len(layers)
    return skipped
