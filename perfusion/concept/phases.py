"""When a concept comes in: starts, as shares of the base model's noise levels on the way from noise to a picture.

Shared by the runtime, whose schedules are its own, and by `perfusion.diffusers`, which is told timesteps.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

__all__ = ["in_force", "noise_share"]


class _Starting(Protocol):
    @property
    def start(self) -> float: ...


T = TypeVar("T", bound=_Starting)


def noise_share(timestep: float, levels: int) -> float:
    """The share of `levels` noise levels that lies behind a timestep, 0 to 1, from pure noise on. Rounded, for it is
    compared with starts, and 1 − 0.8 is not quite 0.2."""
    return max(0.0, round(1 - timestep / levels, 6))


def in_force(phases: Sequence[T], share: float) -> T:
    """The last of some phases that has begun at a share of the noise levels; their starts rise, the first is 0."""
    return next(phase for phase in reversed(phases) if phase.start <= share)
