"""LoRAs that let a model draw in a few steps, and what each must be drawn with.

What a LoRA is stands in no tensor of it, so it is told by the names of its file and folder, under which all of these
are published, or by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perfusion.errors import ModelError

__all__ = ["DISTILLATIONS", "Distillation", "find_distillation"]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How models with such a LoRA are drawn."""

    name: str
    words: str
    """A regular expression of how it is called in names of files."""
    scheduler_class: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the scheduler, beside the model's own."""
    steps: int
    guidance_scale: float = 1.0
    """1 is off: most were distilled together with the guidance."""


DISTILLATIONS = (
    # "LCM-LoRA: A Universal Stable-Diffusion Acceleration Module", arXiv 2311.05556
    Distillation(name="lcm", words=r"lcm", scheduler_class="LCMScheduler", steps=4),
    # "SDXL-Lightning: Progressive Adversarial Diffusion Distillation", arXiv 2402.13929
    Distillation(
        name="lightning",
        words=r"lightning",
        scheduler_class="EulerDiscreteScheduler",
        settings={"timestep_spacing": "trailing"},
        steps=4,
    ),
    # "Hyper-SD: Trajectory Segmented Consistency Model for Efficient Image Synthesis", arXiv 2404.13686
    Distillation(
        name="hyper",
        words=r"hyper[-_ ]?sd\w*",
        scheduler_class="DDIMScheduler",
        settings={"timestep_spacing": "trailing"},
        steps=4,
    ),
    # "Improved Distribution Matching Distillation for Fast Image Synthesis", arXiv 2405.14867: its four steps stand at
    # 999, 749, 499 and 249, which is every 250th of a thousand
    Distillation(
        name="dmd2",
        words=r"dmd2?",
        scheduler_class="LCMScheduler",
        settings={"original_inference_steps": 1000},
        steps=4,
    ),
)

_GUIDED = 5.0
"""For the LoRAs of Hyper-SD that keep the guidance ("CFG" in their names)."""


def find_distillation(paths: Sequence[Path], name: str | None) -> Distillation | None:
    """What a model with these LoRAs is drawn with; None where none of them is a distillation.

    Args:
        paths: the LoRAs.
        name: what the caller says it is: one of `DISTILLATIONS`, "none", or None to go by the paths.

    Raises:
        ModelError: an unknown name, two distillations at once, or one that needs what no sampler here does.
    """
    known = {kind.name: kind for kind in DISTILLATIONS}
    if name is not None and name not in (*known, "none"):
        raise ModelError(f"The distillation {name!r} is not known, expected {', '.join(known)} or none.")
    if name == "none" or not paths:
        return None
    told = [(path, kind) for path in paths if (kind := known.get(name or "") or _told_by(path))]
    if len({kind.name for _, kind in told}) > 1:
        names = " and ".join(f"{path.name} ({kind.name})" for path, kind in told)
        raise ModelError(
            f"{names} are distillations of two kinds, of which a model has one. Say which with --distilled."
        )
    return _for_file(*told[0]) if told else None


def _told_by(path: Path) -> Distillation | None:
    for text in _names(path):
        for kind in DISTILLATIONS:
            if re.search(rf"(?<![a-z]){kind.words}(?![a-z])", text):
                return kind
    return None


def _for_file(path: Path, kind: Distillation) -> Distillation:
    """With the steps and the guidance that the file's name tells."""
    text = " ".join(_names(path))
    number = re.search(r"(\d+)[-_ ]?steps?(?![a-z])", text)
    steps = int(number[1]) if number else kind.steps
    if kind.name == "hyper" and steps == 1:
        raise ModelError(
            f"{path}: Hyper-SD in one step begins at a timestep of its own, which no sampler here does. Use the LoRA "
            "of two steps or more."
        )
    guided = kind.name == "hyper" and re.search(r"(?<![a-z])cfg(?![a-z])", text)
    return replace(kind, steps=steps, guidance_scale=_GUIDED if guided else kind.guidance_scale)


def _names(path: Path) -> list[str]:
    """The names that tell what a file is: its own, its folder's, and its repository's in a cache of the hub."""
    folder = path.parent
    if folder.parent.name == "snapshots":
        folder = folder.parent.parent
    return [path.stem.lower(), folder.name.lower()]
