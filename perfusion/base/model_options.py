"""What a user knows of a model better than its files do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion.base.lora import LoRAFile
from perfusion.errors import ModelError

__all__ = ["ModelOptions", "noise_settings"]

_PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of reading a base model; None leaves a thing as the files say it. Raises `ModelError` for
    words that mean nothing."""

    vae: Path | None = None
    """Another VAE: a file, or a folder of diffusers."""
    prediction: str | None = None
    """What the UNet predicts: epsilon or v_prediction."""
    zero_terminal_snr: bool | None = None
    """Whether it was trained down to no signal at all at the last timestep."""
    clip_skip: int | None = None
    """From which of the text encoder's layers, counted from the end, its encodings are read, as A1111 counts: 1 is the
    last one."""
    loras: tuple[LoRAFile, ...] = ()
    """Added to the weights, one after the other."""
    distilled: str | None = None
    """What kind of distillation one of `loras` is, or "none"; None: told by their names."""
    steps: int | None = None
    """How many it is drawn in, where a request leaves that open."""
    guidance_scale: float | None = None
    """Likewise; 1 is off."""

    def __post_init__(self) -> None:
        if self.prediction not in (None, *_PREDICTIONS):
            raise ModelError(
                f"The prediction {self.prediction!r} is not known, expected {' or '.join(_PREDICTIONS)}."
            )
        if self.clip_skip is not None and self.clip_skip < 1:
            raise ModelError(
                f"The clip skip is {self.clip_skip}, expected 1, which is the last layer, or more."
            )

        if self.steps is not None and self.steps < 1:
            raise ModelError(f"The model is to be drawn in {self.steps} steps, expected 1 or more.")

    def scheduler_settings(self) -> dict[str, Any]:
        """What these say of the noise, in the words of diffusers."""
        return noise_settings(self.prediction, self.zero_terminal_snr)


def noise_settings(prediction: str | None, zero_terminal_snr: bool | None) -> dict[str, Any]:
    """The settings of a scheduler that follow from what is known of a UNet.

    A model that learned to begin at pure noise must be asked at the last timestep, which only "trailing" reaches
    ("Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891, section 3.3).
    """
    settings: dict[str, Any] = {} if prediction is None else {"prediction_type": prediction}
    if zero_terminal_snr is not None:
        settings["rescale_betas_zero_snr"] = zero_terminal_snr
    return settings | ({"timestep_spacing": "trailing"} if zero_terminal_snr else {})
