"""How a base model was trained to see noise, in the words of diffusers' scheduler config."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "NoiseModel"]

Floats = NDArray[np.float64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """Raises ValueError for a setting that is none of ours; the bundle's reader turns that into a sentence."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str = "scaled_linear"  # or linear, squaredcos_cap_v2
    prediction_type: str = "epsilon"  # or v_prediction
    timestep_spacing: str = "leading"  # or trailing, linspace
    steps_offset: int = 0
    set_alpha_to_one: bool = True  # DDIM's last level: 1, or that of timestep 0
    clip_sample: bool = False  # DDIM and LCM clip the clean sample; only models of pixels want it
    clip_sample_range: float = 1.0
    rescale_betas_zero_snr: bool = False  # the last timestep is noise and nothing else
    original_inference_steps: int = 50  # the steps that LCM was distilled on
    timestep_scaling: float = 10.0  # how fast LCM's weights turn to the clean sample

    def __post_init__(self) -> None:
        _among("beta_schedule", self.beta_schedule, ("scaled_linear", "linear", "squaredcos_cap_v2"))
        _among("prediction_type", self.prediction_type, ("epsilon", "v_prediction"))
        _among("timestep_spacing", self.timestep_spacing, ("leading", "trailing", "linspace"))
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps is {self.num_train_timesteps}, expected at least 1")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"betas go from {self.beta_start} to {self.beta_end}, expected 0 < start <= end < 1"
            )
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise ValueError(
                f"steps_offset is {self.steps_offset}, expected 0 to {self.num_train_timesteps - 1}"
            )
        if self.rescale_betas_zero_snr and self.num_train_timesteps < 2:
            raise ValueError("rescale_betas_zero_snr is set with 1 timestep, expected at least 2")

    def alphas(self) -> Floats:
        """(num_train_timesteps,) the share of the clean sample's variance left at every timestep, falling.

        Rounded to float32 where diffusers' tables are. The first levels are so near to 1 that otherwise what is
        missing there, the noise, would differ by some parts in ten thousand.
        """
        count = self.num_train_timesteps
        if self.beta_schedule == "linear":
            betas: Floats = np.linspace(self.beta_start, self.beta_end, count)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        else:  # "Improved Denoising Diffusion Probabilistic Models", eq. 17
            bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        kept = 1 - betas.astype(np.float32)
        if self.rescale_betas_zero_snr:
            kept = _to_pure_noise(kept)
        return np.cumprod(kept, dtype=np.float32).astype(np.float64)


def _to_pure_noise(kept: Float32) -> Float32:
    """What each timestep keeps, with the last level at 0 and the first where it was (Lin et al. 2023, algorithm 1)."""
    signal = np.sqrt(np.cumprod(kept, dtype=np.float32))
    levels = ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2
    return np.append(levels[:1], levels[1:] / levels[:-1])


def _among(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
