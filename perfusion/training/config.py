"""How a concept is trained: every choice, its default and the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from perfusion.errors import TrainingError

__all__ = ["TrainingConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The options of one training. Rates and gate constants are the paper's (appendix of arXiv 2305.01644)."""

    superclass: str
    """What kind of thing the pictures show, in the base model's words: "cat", "teddy bear"."""
    token: str = ""
    """The word that will stand for the concept; empty: the superclass in angle brackets, "<teddy-bear>"."""
    rows: int = 1
    """Placeholder tokens, each with a direction and values of its own. More than one gained nothing on small bases;
    more than two wrecked backgrounds."""
    steps: int = 400
    batch_size: int = 16
    seed: int = 0
    lr_embedding: float = 0.006
    lr_values: float = 0.03
    direction_decay: float = 0.99
    """The direction follows the mean encoding of the concept's token, 1 % a step."""
    direction_gradient: str = "ema"
    """What the loss sees of that encoding through the direction: `ema` its 1 % share, `detach` nothing,
    `straight_through` all of it (slower in our measurements)."""
    bias: float = 0.75
    temperature: float = 0.1
    """The gate in training; the file's defaults for drawing are a bias of 0.75 and a temperature of 0.15."""
    masks: str | Path = "auto"
    """Where the object is: a folder of masks named like the pictures, `alpha` for the pictures' own alpha channel,
    `none`, or `auto`: alpha where a picture has one, else none."""
    flip: bool = True
    """Mirror half of the prepared pictures; off for objects that are not symmetric, such as lettering."""
    crops: int = 8
    """Prepared variants of every picture (mirrored, shifted, scaled a little), each encoded once."""
    captions: Path | None = None
    """Captions, one a line, for the second moment of the text encodings; None: the base model's own."""
    device: str = "auto"
    precision: str = "auto"
    """`bf16` runs the frozen UNet in bfloat16, `fp32` does not; `auto`: bf16 where the hardware has it. The text
    encoder and the edit itself are always float32."""

    def __post_init__(self) -> None:
        if not self.superclass.strip():
            raise TrainingError(
                'the superclass is empty; say what kind of thing the pictures show, such as "cat"'
            )
        if not self.token:
            object.__setattr__(self, "token", f"<{'-'.join(self.superclass.lower().split())}>")
        if not re.fullmatch(r"<[^<>\s]{1,62}>", self.token):
            raise TrainingError(
                f"the token is {self.token!r:.80}, expected a word in angle brackets without spaces, at most 64 "
                "characters, such as '<cat>'"
            )
        for name, low, high in (
            ("rows", 1, 4),
            ("seed", 0, 2**32 - 1),
            ("steps", 1, 100_000),
            ("batch_size", 1, 1024),
            ("crops", 1, 64),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise TrainingError(f"{name} is {value}, expected {low} to {high}")
        for name in ("lr_embedding", "lr_values", "temperature"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name} is {getattr(self, name)}, expected a number above 0")
        if not 0 < self.direction_decay < 1:
            raise TrainingError(
                f"direction_decay is {self.direction_decay}, expected a number between 0 and 1"
            )
        for name, known in (
            ("direction_gradient", ("ema", "detach", "straight_through")),
            ("precision", ("auto", "fp32", "bf16")),
        ):
            if getattr(self, name) not in known:
                raise TrainingError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
