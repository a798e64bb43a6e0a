"""What training minimises: the base model's own denoising error, where the object is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perfusion.base.base_model import BaseModel
from perfusion.errors import TrainingError

__all__ = ["Noising", "everywhere_if_empty", "masked_error"]


def masked_error(output: Tensor, target: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Σ m (target − output)² / Σ m over a batch: (batch, channels, h, w) and a soft mask (batch, 1, h, w).

    A picture whose mask is empty counts everywhere. With m = 1 it is the mean squared error; scaling m changes nothing.

    Args:
        weight: Σ m, where this is a part of a batch and the whole batch's is meant. The masks of the whole batch
            then go through `everywhere_if_empty` first.
    """
    mask = everywhere_if_empty(mask)
    total = mask.sum() if weight is None else weight
    return (mask * (output - target).square()).sum() / (total * output.shape[1])


def everywhere_if_empty(mask: Tensor) -> Tensor:
    """Empty masks filled with the largest number of all, so that one counts no more than its neighbours do."""
    empty = mask.flatten(1).sum(1) <= 0
    highest = mask.amax()
    filled = torch.where(highest > 0, highest, torch.ones_like(highest))
    return torch.where(empty.view(-1, 1, 1, 1), filled, mask)


@dataclass(frozen=True, kw_only=True, eq=False)
class Noising:
    """The base model's forward process and what its UNet predicts."""

    scheduler: Any
    prediction: str

    @classmethod
    def of(cls, base: BaseModel) -> Noising:
        """The process that a base model's scheduler settings describe."""
        from diffusers import DDPMScheduler

        known = {key: value for key, value in base.scheduler.items() if key in _SCHEDULE_KEYS}
        if "beta_schedule" not in known:  # diffusers would fill in a schedule that the model never saw
            raise TrainingError(
                f"The scheduler of {base.folder} has no noise schedule of betas (EDM or flow matching?), expected one "
                "such as DDIMScheduler, PNDMScheduler or EulerDiscreteScheduler."
            )
        scheduler = DDPMScheduler(**known)
        prediction = str(base.scheduler.get("prediction_type", "epsilon"))
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise TrainingError(
                f"The base model predicts {prediction!r}, expected epsilon, v_prediction or sample."
            )
        return cls(scheduler=scheduler, prediction=prediction)

    def __call__(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents and the target of the UNet."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        if self.prediction == "epsilon":
            return noisy, noise
        if self.prediction == "sample":
            return noisy, latents
        return noisy, self.scheduler.get_velocity(latents, noise, timesteps)


_SCHEDULE_KEYS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
)  # fmt: skip
