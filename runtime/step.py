"""A batch of pictures on its way, as the caller of `denoise` meets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import LatentRGB
from perfusion.errors import RequestError
from perfusion.runtime.pictures import as_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Step"]

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """Where a batch of pictures stands after one evaluation of the UNet; "heun" has two in most of its steps."""

    index: int  # from 0
    total: int
    timestep: float
    _latents: Array
    _clean: Array
    _decode: Callable[[Array, Callable[[], None] | None], list[Image]]
    _latent_rgb: LatentRGB | None = None

    @property
    def latents(self) -> Array:
        """A copy of the latents, (pictures, channels, height, width)."""
        return self._latents.copy()

    def preview(self) -> list[Image]:
        """The pictures as the model now believes they will be; every call decodes anew.

        Raises:
            CancelledError: `Runtime.cancel` was called meanwhile.
        """
        return self._decode(self._clean, None)

    def sketch(self) -> list[Image]:
        """What `preview` shows, in little and almost for nothing: one pixel a latent, its colour a linear guess.

        Raises:
            RequestError: the bundle does not say how latents become colours.
        """
        if self._latent_rgb is None:
            raise RequestError(
                "This bundle was exported without colours for its latents. Use preview(), or export it again."
            )
        weight, bias = self._latent_rgb.weight, self._latent_rgb.bias
        colours = np.einsum("nchw,cr->nrhw", self._clean, weight) + bias[:, None, None]
        return as_pictures(colours.astype(np.float32))

    def pictures(self, check: Callable[[], None] | None = None) -> list[Image]:
        """The latents decoded as they are: after the last step the finished pictures.

        `check` is called before each picture and raises where there is to be none; without it `Runtime.cancel` stops
        them from now on.
        """
        return self._decode(self._latents, check)
