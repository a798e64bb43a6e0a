"""The arguments that name a base model and say what its files leave open, alike in every command that opens one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfusion.base.model_options import ModelOptions

__all__ = ["MODEL_ARGUMENTS", "add_model_arguments", "model_options"]

MODEL_ARGUMENTS = ("model", "config", "vae", "prediction", "zero_terminal_snr", "clip_skip")
"""Their names as attributes."""


def add_model_arguments(group: Any) -> None:
    """Add --model and what goes with it to a parser or a group of one."""
    add = group.add_argument
    add(
        "--model",
        type=Path,
        metavar="PATH",
        help="diffusers folder, or a .safetensors checkpoint (default: the embedded pocket model)",
    )
    add(
        "--config",
        type=Path,
        metavar="DIR",
        help="for a checkpoint: diffusers folder of the same architecture, for its settings and tokenizer (default: "
        "the published ones of its family)",
    )
    add("--vae", type=Path, metavar="PATH", help="another VAE, a .safetensors file or a diffusers folder")
    add(
        "--prediction",
        choices=("epsilon", "v_prediction"),
        help="what the UNet predicts (default: what the model says)",
    )
    add(
        "--zero-terminal-snr",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the UNet learned to begin at pure noise (default: what the model says)",
    )
    add(
        "--clip-skip",
        type=int,
        metavar="N",
        help="read the text encoder N layers before its end, as A1111 counts: 1 is the last (default: the model's)",
    )


def model_options(args: argparse.Namespace) -> ModelOptions:
    """What `add_model_arguments` took in. Raises `ModelError` for a clip skip below 1."""
    from perfusion.base.model_options import ModelOptions

    return ModelOptions(
        vae=args.vae,
        prediction=args.prediction,
        zero_terminal_snr=args.zero_terminal_snr,
        clip_skip=args.clip_skip,
    )
