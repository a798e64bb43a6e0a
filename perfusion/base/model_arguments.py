"""The arguments that name a base model and say what its files leave open, alike in every command that opens one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.numerals import decimal

if TYPE_CHECKING:
    from perfusion.base.model_options import ModelOptions

__all__ = [
    "FUSING_ARGUMENTS",
    "MODEL_ARGUMENTS",
    "add_fusing_arguments",
    "add_model_arguments",
    "model_options",
]

MODEL_ARGUMENTS = ("model", "config", "vae", "prediction", "zero_terminal_snr", "clip_skip")
FUSING_ARGUMENTS = ("lora", "distilled", "steps", "guidance_scale")
"""Their names as attributes."""


def add_model_arguments(group: Any) -> None:
    """Add --model and what goes with it to a parser or a group of one."""
    add = group.add_argument
    add(
        "--model",
        type=Path,
        metavar="PATH",
        help="diffusers folder, .safetensors checkpoint, or a name on the hub (default: the embedded pocket model)",
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


def add_fusing_arguments(group: Any) -> None:
    """Add --lora and what goes with it, for commands that make a model anew."""
    from perfusion.base.distillation import DISTILLATIONS

    add = group.add_argument
    add(
        "--lora",
        type=_lora,
        action="append",
        metavar="FILE[:SCALE]",
        help="add a LoRA to the weights, .safetensors; may be repeated",
    )
    add(
        "--distilled",
        choices=(*(kind.name for kind in DISTILLATIONS), "none"),
        help="what a LoRA for few steps is: it sets scheduler, steps and guidance (default: told by its name)",
    )
    add("--steps", type=int, metavar="N", help="steps of a picture by default (default: the model's)")
    add(
        "--guidance-scale",
        type=float,
        metavar="G",
        help="guidance of a picture by default, 1 is off (default: the model's)",
    )


def _lora(text: str) -> tuple[Path, float]:
    """FILE or FILE:SCALE; a colon of a Windows drive is none of a scale."""
    name, colon, scale = text.rpartition(":")
    try:
        return (Path(name), decimal(scale)) if colon and name else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def model_options(args: argparse.Namespace) -> ModelOptions:
    """What `add_model_arguments`, and `add_fusing_arguments` where it was called, took in.

    Raises `ModelError` for numbers that are too small.
    """
    from perfusion.base.lora import LoRAFile
    from perfusion.base.model_options import ModelOptions

    fusing: dict[str, Any] = {}
    if "lora" in args:
        loras = tuple(LoRAFile(path=path, scale=scale) for path, scale in args.lora or ())
        fusing = {
            "loras": loras,
            "distilled": args.distilled,
            "steps": args.steps,
            "guidance_scale": args.guidance_scale,
        }
    return ModelOptions(
        vae=args.vae,
        prediction=args.prediction,
        zero_terminal_snr=args.zero_terminal_snr,
        clip_skip=args.clip_skip,
        **fusing,
    )
