"""What controls a picture: an image that a ControlNet reads before each call of the UNet."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.bundle.names import CONTROLNET
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.pictures import as_levels
from perfusion.runtime.request import Request
from perfusion.runtime.text.prompt_spec import Row

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Control", "residuals"]

Array = NDArray[np.float32]

_log = logging.getLogger(__name__)
_SQUEEZED = 1.02  # a side against the other, as it was and as it is to be


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """One picture's image for the ControlNet, and how much it counts."""

    image: Array  # (1, 3, height, width) in [0, 1]
    scale: float
    conditions: tuple[str, ...]  # of the UNet's, those that the ControlNet reads

    @classmethod
    def of(cls, bundle: Bundle, request: Request, number: int) -> Control | None:
        """That of picture `number` of a request; None where nothing controls it."""
        if not request.controlled or bundle.controlnet is None:
            return None
        image = request.control_images[number]
        _warn_of_shape(image, request)
        return cls(
            image=as_levels(image, request.width, request.height),
            scale=request.control_scale,
            conditions=bundle.controlnet.conditions,
        )


def residuals(
    graphs: Graphs,
    controls: Sequence[Control],
    rows: Sequence[Row],
    inputs: Mapping[str, Array],
    fed: Mapping[str, Array],
) -> dict[str, Array]:
    """What the UNet adds to its own on the way down and in the middle, by the names of its inputs.

    With guidance both rows of a picture are controlled, as in diffusers.

    Args:
        controls: of the pictures of a call.
        rows: of the UNet's batch, as many for each picture.
        inputs: the latents and timesteps of the rows.
        fed: what else the UNet reads.

    Raises:
        PerfusionError: the graph failed.
    """
    times = len(rows) // len(controls)
    states = [row.control_states for row in rows if row.control_states is not None]
    return graphs.run(
        CONTROLNET,
        **inputs,
        encoder_hidden_states=np.stack(states),
        control_image=np.repeat(np.concatenate([control.image for control in controls]), times, axis=0),
        control_scale=np.repeat(np.array([control.scale for control in controls], np.float32), times),
        **{name: fed[name] for name in controls[0].conditions},
    )


def _warn_of_shape(image: Image, request: Request) -> None:
    """Say it where an image is squeezed: what it shows then stands elsewhere."""
    ratio = image.width * request.height / (image.height * request.width)
    if not 1 / _SQUEEZED < ratio < _SQUEEZED:
        _log.warning(
            "the control image has %d × %d pixels and the picture %d × %d, so it is squeezed into that shape",
            image.width, image.height, request.width, request.height,
        )  # fmt: skip
