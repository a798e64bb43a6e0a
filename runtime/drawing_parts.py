"""What draws: a bundle's graphs, for one caller at a time, and the steps that callers see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.description import Bundle
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.preparation import Draft, Preparation
from perfusion.runtime.sampling.course import Phase
from perfusion.runtime.sampling.loop import Drawn, decode, draw
from perfusion.runtime.step import Step
from perfusion.runtime.stopping import Stop, Stops
from perfusion.runtime.text.feeds import Feeds
from perfusion.runtime.turn import Turn

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DrawingParts"]

Array = NDArray[np.float32]


class DrawingParts:
    """The parts that draw, which `Runtime` and its queue share."""

    def __init__(
        self, bundle: Bundle, graphs: Graphs, feeds: Feeds, preparation: Preparation, stops: Stops
    ) -> None:
        self.bundle, self.graphs, self.feeds, self.preparation = bundle, graphs, feeds, preparation
        self.turn = Turn()  # the graphs are for one thread at a time
        self._stops = stops

    def begin(self, draft: Draft, stop: Stop, batch_size: int) -> Iterator[Step]:
        """Encode a request's prompts; a step after each evaluation of the UNet, `batch_size` pictures in one call.

        For the caller whose turn it is, here and at each step.

        Raises:
            RequestError: it does not fit into the memory.
            CancelledError: it is to end.
        """
        size = draft.call_size(batch_size)
        self.preparation.admit(size)
        return self._steps(draft, self.preparation.phases(draft, stop.check), stop, size, batch_size)

    def _steps(
        self, draft: Draft, phases: Sequence[Sequence[Phase]], stop: Stop, size: CallSize, batch_size: int
    ) -> Iterator[Step]:
        states = draw(
            self.bundle, self.graphs, self.feeds, draft.request, draft.schedule, phases,
            batch_size=batch_size, check=stop.check,
        )  # fmt: skip
        while True:
            self.preparation.admit(size)  # again: another caller may have drawn in between
            state = next(states, None)
            if state is None:
                return
            yield self.step(state, size)

    def step(self, state: Drawn, size: CallSize) -> Step:
        """The step of a state, for its caller; `size`: what decoding it needs."""
        return Step(
            index=state.index, total=state.total, timestep=state.timestep,
            _latents=state.latents, _clean=state.clean, _decode=partial(self.decode, size=size),
            _latent_rgb=self.bundle.decoder.latent_rgb,
        )  # fmt: skip

    def decode(self, latents: Array, check: Callable[[], None] | None, *, size: CallSize) -> list[Image]:
        """Latents to pictures, as a turn of its own; where nothing else stops it, `Runtime.cancel` does from now on."""
        check = check or self._stops.begin().check
        with self.turn:
            self.preparation.admit(size)
            return decode(self.bundle, self.graphs, latents, check)
