"""How a concept is trained: every choice, its default and the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from perfusion.base.usual_drawing import LEARNED_VALUES
from perfusion.concept.words import hidden_character
from perfusion.errors import TrainingError

__all__ = ["TrainingConfig", "check_visible"]

MASKS = ("auto", "alpha", "clipseg", "none")
"""What `TrainingConfig.masks` may say besides a folder."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The options of one training. The gate's constants and the word's rate are the paper's (appendix of arXiv
    2305.01644)."""

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
    lr_values: float | None = None
    """None: what suits the base model, 0.03 for Stable Diffusion."""
    values: str = "auto"
    """What is learned of the values: `layers`, each layer's for itself, as in the paper; `encoding`, one encoding that
    every layer projects to its values, which keeps a small base within what it can draw; `auto`: what suits the base
    model, `layers` for Stable Diffusion. Another choice than the model's needs an `lr_values` of its own."""
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
    `none`; or found where a picture has no alpha: `auto` by the base model's own attention to the superclass, `clipseg`
    by the model in `segmenter`. A mask that covers nearly nothing or everything is not believed."""
    segmenter: Path | None = None
    """Folder of a CLIPSeg model, for masks `clipseg`."""
    flip: bool = True
    """Mirror half of the prepared pictures; off for objects that are not symmetric, such as lettering."""
    crops: int = 8
    """Prepared variants of every picture (mirrored, shifted, scaled a little), each encoded once."""
    captions: Path | None = None
    """Captions, one a line, for the second moment of the text encodings; None: the captions.txt of the base model's
    folder, or without one the corpus that ships with us."""
    count_padding: bool = False
    """Count the padding after a caption into the second moment. Off: on most bases its encodings resemble the end
    token's. On for a base whose gate opens over the padding."""
    device: str = "auto"
    precision: str = "auto"
    """What the frozen UNet computes in: `bf16`, `fp16` (with a loss scale, and only where bf16 is missing: fp16's small
    range can overflow on the way forward too), `fp32`; `auto`: bf16 where the hardware has it, else fp32. The text
    encoder and the edit itself are always float32."""
    weights: str = "auto"
    """What the frozen UNet's weights are held in: `fp32`, or `half`, the 16 bits that it computes in; `auto`: half on a
    GPU and with `checkpointing`, where it computes in 16 bits. Of a model that is given opened: as it is."""
    accumulate: int = 1
    """Parts in which a batch goes through the UNet, one after another: less memory, the same gradient."""
    checkpointing: bool = False
    """Save memory, for graphics cards of 8 to 12 GB: activations are computed again on the way back, the VAE leaves the
    device when the pictures are encoded, and the UNet's weights are held in 16 bits where it computes in them, on a CPU
    too."""
    save_every: int = 50
    """Steps between two snapshots, which are what `select` chooses from, and between two saved states."""
    select: str = "auto"
    """`auto`: the snapshot with the best scores, where there is a scorer at hand (the embedded model has one), else the
    last; `last`: the last."""
    scorer: Path | None = None
    """Folder of the scorer: a CLIP model, or ONNX graphs."""

    def __post_init__(self) -> None:
        check_visible("superclass", self.superclass)
        check_visible("token", self.token)
        if not self.superclass.strip():
            raise TrainingError(
                'The superclass is empty; say what kind of thing the pictures show, such as "cat".'
            )
        if not self.token:
            object.__setattr__(self, "token", f"<{'-'.join(self.superclass.lower().split())}>")
        if not re.fullmatch(r"<[^<>\s]{1,62}>", self.token):
            raise TrainingError(
                f"The token is {self.token!r:.80}, expected a word in angle brackets without spaces, at most 64 "
                "characters, such as '<cat>'."
            )
        self._check_companions()
        for name, low, high in (
            ("rows", 1, 4),
            ("seed", 0, 2**32 - 1),
            ("steps", 1, 100_000),
            ("batch_size", 1, 1024),
            ("crops", 1, 64),
            ("accumulate", 1, self.batch_size),
            ("save_every", 1, 100_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise TrainingError(f"The option {name} is {value}, expected {low} to {high}.")
        for name in ("lr_embedding", "lr_values", "temperature"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise TrainingError(f"The option {name} is {getattr(self, name)}, expected a number above 0.")
        if not 0 < self.direction_decay < 1:
            raise TrainingError(
                f"The option direction_decay is {self.direction_decay}, expected a number between 0 and 1."
            )
        for name, known in (
            ("direction_gradient", ("ema", "detach", "straight_through")),
            ("precision", ("auto", "fp32", "bf16", "fp16")),
            ("weights", ("auto", "fp32", "half")),
            ("select", ("auto", "last")),
            ("values", ("auto", *LEARNED_VALUES)),
        ):
            if getattr(self, name) not in known:
                raise TrainingError(
                    f"The option {name} is {getattr(self, name)!r}, expected one of {', '.join(known)}."
                )

    def _check_companions(self) -> None:
        """Options that need or exclude each other."""
        if isinstance(self.masks, str) and self.masks not in MASKS:
            object.__setattr__(self, "masks", Path(self.masks))
        if (self.masks == "clipseg") != (self.segmenter is not None):
            raise TrainingError(
                f"The option masks is {str(self.masks)!r} and segmenter {self.segmenter}, expected both or neither: "
                "--masks clipseg and --segmenter DIR, the folder of a CLIPSeg model, go together."
            )
        if self.weights == "half" and self.precision == "fp32":
            raise TrainingError(
                "The weights are to be held in 16 bits and the UNet is to compute in float32; give --precision bf16 or "
                "fp16, or leave --weights out."
            )
        if self.scorer is not None and self.select == "last":
            raise TrainingError(
                "A scorer was given, and with --select last nothing is scored; leave one of them out."
            )


def check_visible(name: str, text: str) -> None:
    """Refuse now what the concept's file would refuse after the training.

    Raises:
        TrainingError: a character of the text cannot be seen, so that nobody could type it in a prompt.
    """
    if (hidden := hidden_character(text)) is not None:
        raise TrainingError(
            f"The {name} is {text!r:.80}, with the character {hidden}, which cannot be seen. Type it without."
        )
