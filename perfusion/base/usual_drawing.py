"""What suits a model where a request leaves it open: guidance and steps in drawing, what is learned in training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.base.loading import read_json, scheduler_class
from perfusion.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = [
    "DEFAULT_GUIDANCE_SCALE",
    "DEFAULT_LR_VALUES",
    "DEFAULT_STEPS",
    "FAMILY_FILE",
    "LEARNED_VALUES",
    "read_own",
    "usual_drawing",
]

FAMILY_FILE = "perfusion.json"
"""Beside model_index.json, for models that are not Stable Diffusion's: those are told apart by their shapes.

``{"family": "pocket2", "guidance_scale": 5.0, "num_inference_steps": 20, "lr_values": 0.004, "values": "encoding"}``;
all but the family may be missing.
"""

DEFAULT_GUIDANCE_SCALE, DEFAULT_STEPS = 5.0, 20
DEFAULT_LR_VALUES = 0.03
"""The paper's, for Stable Diffusion (appendix of arXiv 2305.01644)."""
LEARNED_VALUES = ("layers", "encoding")
"""What a training learns of a concept's values, see `TrainingConfig.values`; the first is the paper's."""
CONSISTENCY_GUIDANCE_SCALE, CONSISTENCY_STEPS = 8.5, 4
"""Of models that were distilled with their guidance (LCM): diffusers' own defaults, amid the scales they learned."""
TURBO_GUIDANCE_SCALE, TURBO_STEPS = 1.0, 4
"""Of models that were distilled to a few steps without guidance (ADD, arXiv 2311.17042): 1 is off."""


def usual_drawing(unet: UNet2DConditionModel, source: Path) -> tuple[float, int]:
    """The guidance scale and the steps that suit a model which does not say so itself."""
    if unet.config.time_cond_proj_dim is not None:
        return CONSISTENCY_GUIDANCE_SCALE, CONSISTENCY_STEPS
    settings = read_json(source / "scheduler" / "scheduler_config.json")
    # nothing else in a turbo model tells: its timesteps begin at the last one, and each step adds noise anew
    trailing = settings.get("timestep_spacing") == "trailing"
    if trailing and scheduler_class(source) == "EulerAncestralDiscreteScheduler":
        return TURBO_GUIDANCE_SCALE, TURBO_STEPS
    return DEFAULT_GUIDANCE_SCALE, DEFAULT_STEPS


def read_own(folder: Path) -> dict[str, Any]:
    """The content of perfusion.json, checked; empty where there is none."""
    path = folder / FAMILY_FILE
    if not path.exists():
        return {}
    own = read_json(path)
    for name, kind, expected in (
        ("family", str, "a word"),
        ("guidance_scale", (int, float), "a number above 0"),
        ("num_inference_steps", int, "a whole number above 0"),
        ("lr_values", (int, float), "a number above 0"),
    ):
        if name not in own:
            continue
        value = own[name]
        if not isinstance(value, kind) or not value or (not isinstance(value, str) and value < 0):
            raise ModelError(f"{path}: {name} is {value!r}, expected {expected}.")
    if own.get("values", LEARNED_VALUES[0]) not in LEARNED_VALUES:
        raise ModelError(f"{path}: values is {own['values']!r}, expected {' or '.join(LEARNED_VALUES)}.")
    if "family" not in own:
        raise ModelError(f'{path}: it names no family, expected {{"family": "<name>"}}.')
    return own
