"""The options of one training, for a command line and for the rows of a list alike. Standard library only."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.base.model_arguments import add_model_arguments

if TYPE_CHECKING:
    from perfusion.training.config import TrainingConfig

__all__ = ["add_training_options", "config_of"]


def add_training_options(command: Any) -> None:
    """Add what one training can be told to an `argparse.ArgumentParser`. None of the options is required here."""
    _add_what(command)
    _add_how(command.add_argument_group("how it learns"))
    _add_where(command.add_argument_group("memory and speed"))
    _add_kept(command.add_argument_group("what is kept"))


def config_of(args: argparse.Namespace) -> TrainingConfig:
    """The config that parsed options ask for.

    Raises:
        TrainingError: a value that no training can have.
    """
    from perfusion.training.config import TrainingConfig

    return TrainingConfig(
        superclass=args.superclass, token=args.token, rows=args.rows, steps=args.steps, batch_size=args.batch_size,
        seed=args.seed, masks=args.masks, segmenter=args.segmenter, flip=args.flip, captions=args.captions,
        device=args.device, precision=args.precision, weights=args.weights, count_padding=args.count_padding,
        accumulate=args.accumulate, checkpointing=args.checkpointing, direction_gradient=args.gradient,
        save_every=args.save_every, select=args.select, scorer=args.scorer,
    )  # fmt: skip


def _add_what(group: Any) -> None:
    add = group.add_argument
    add("--images", type=Path, metavar="DIR", help="folder with pictures of one object")
    add("--superclass", help='what kind of thing they show: "cat", "teddy bear"')
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="concept file to write, .safetensors, or .png for a picture with the concept inside; with --jobs a folder",
    )
    add_model_arguments(group)
    add("--token", default="", help='the new word (default: the superclass in brackets, "<cat>")')
    add("--rows", type=int, default=1, metavar="N", help="placeholder tokens of the concept (default 1)")
    add(
        "--masks",
        default="auto",
        metavar="auto|alpha|clipseg|none|DIR",
        help="where the object is (default auto: alpha, or else the model's own attention to the superclass)",
    )
    add("--segmenter", type=Path, metavar="DIR", help="folder of a CLIPSeg model, for --masks clipseg")
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mirror half of the prepared pictures; off for lettering and other asymmetric objects",
    )


def _add_how(group: Any) -> None:
    add = group.add_argument
    add("--steps", type=int, default=400, metavar="N", help="training steps (default 400)")
    add("--batch-size", type=int, default=16, metavar="N", help="samples a step (default 16)")
    add("--seed", type=int, default=0)
    add(
        "--gradient",
        default="ema",
        choices=("ema", "detach", "straight_through"),
        help="what the loss sees of the concept's direction (default ema: its 1 %% share)",
    )
    add(
        "--captions",
        type=Path,
        metavar="FILE",
        help="captions for the second moment, one a line (default: those of the model, or our own)",
    )
    add("--count-padding", action="store_true", help="count the captions' padding into the second moment too")
    add(
        "--select",
        default="auto",
        choices=("auto", "last"),
        help="which snapshot becomes the concept (default auto: the best one, where a scorer is at hand)",
    )
    add("--scorer", type=Path, metavar="DIR", help="folder of the scorer: a CLIP model, or ONNX graphs")


def _add_where(group: Any) -> None:
    add = group.add_argument
    add(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|cuda:N",
        help="(default auto: a GPU where there is one)",
    )
    add("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    add(
        "--weights",
        default="auto",
        choices=("auto", "fp32", "half"),
        help="what the frozen UNet is held in (default auto: half on a GPU that computes in 16 bits)",
    )
    add("--accumulate", type=int, default=1, metavar="N", help="work a batch off in N parts (default 1)")
    add("--checkpointing", action="store_true", help="less memory, slower: for cards of 8 to 12 GB")


def _add_kept(group: Any) -> None:
    add = group.add_argument
    add("--storage", default="float16", choices=("float16", "float32", "int8"))
    add("--no-keys", action="store_true", help="leave out the keys, which a runtime can derive")
    add(
        "--save-every",
        type=int,
        default=50,
        metavar="N",
        help="steps between snapshots, and between saved states (default 50)",
    )
    add(
        "--log-losses",
        choices=("csv", "tensorboard"),
        help="the loss of every step, in FILE.losses.csv or in the folder FILE.losses for TensorBoard",
    )
    add("--keep-snapshots", action="store_true", help="keep the snapshots, in FILE.work/")
    add(
        "--keep-state",
        action="store_true",
        help="keep the last state too, in FILE.work/: --resume with more --steps goes on from it",
    )
    add(
        "--sheet",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="try the concept out: a verdict, the strength that suits it, and FILE.sheet.png with what was "
        "learned from and what is drawn",
    )
