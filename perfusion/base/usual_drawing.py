"""The guidance and the steps that a model is drawn with, where a request leaves them open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.base.loading import read_json, scheduler_class
from perfusion.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["DEFAULT_GUIDANCE_SCALE", "DEFAULT_STEPS", "FAMILY_FILE", "read_own", "usual_drawing"]

FAMILY_FILE = "perfusion.json"
"""Beside model_index.json, for models that are not Stable Diffusion's: those are told apart by their shapes.

``{"family": "pocket", "guidance_scale": 3.0, "num_inference_steps": 20}``; the last two may be missing.
"""

DEFAULT_GUIDANCE_SCALE, DEFAULT_STEPS = 5.0, 20
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
        ("guidance_scale", (int, float), "a number"),
        ("num_inference_steps", int, "a whole number above 0"),
    ):
        if name in own and (not isinstance(own[name], kind) or not own[name]):
            raise ModelError(f"{path}: {name} is {own[name]!r}, expected {expected}.")
    if "family" not in own:
        raise ModelError(f'{path}: it names no family, expected {{"family": "<name>"}}.')
    return own
