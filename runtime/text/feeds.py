"""What the UNet is fed besides its latents: the same arrays for every step, and again where nothing differs.

A backend may keep on its device an array that is the same object as in the last call, so nothing here is ever
changed in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.concept.conditioning import unet_feeds
from perfusion.runtime.cache import Cache
from perfusion.runtime.request import Request
from perfusion.runtime.text.prompt_spec import Row

__all__ = ["Feeds", "guidance_embedding"]

Array = NDArray[np.float32]

_MOST_BYTES = 16 << 20


class Feeds:
    """The UNet's inputs of a call, by its rows and the request they belong to."""

    def __init__(self, bundle: Bundle) -> None:
        self._conditions = bundle.unet.conditions
        self._has_regions = bundle.has_regions
        self._downscale = bundle.decoder.downscale
        self._inputs: Cache[_Entry] = Cache(
            _MOST_BYTES, lambda entry: sum(array.nbytes for array in entry[1].values())
        )

    def of(self, rows: Sequence[Row], request: Request) -> dict[str, Array]:
        """All inputs but `sample` and `timestep`; only the gates are new where the rows' encodings were fed before."""
        states = [row.state for row in rows]
        encodings = [(state.conditioning.value_states, state.conditioning.key_states) for state in states]
        slots = [state.rows.slots for state in states]
        targets = [(state.rows.keys, state.rows.values) for state in states]
        key: Hashable = (
            tuple(id(array) for pair in (*encodings, *targets) for array in pair), tuple(slots),
            tuple((id(row.pooled), id(row.regions)) for row in rows),
            request.height, request.width, request.guidance_scale,
        )  # fmt: skip

        def make() -> _Entry:
            fed = unet_feeds(states) | self._of_conditions(rows, request)
            if self._has_regions:
                size = (1, request.height // self._downscale, request.width // self._downscale)
                everywhere = np.ones(size, np.float32)
                fed["regions"] = np.stack(
                    [everywhere if row.regions is None else row.regions for row in rows]
                )
            return (encodings, targets, [(row.pooled, row.regions) for row in rows]), fed

        inputs = self._inputs.get(key, make)[1]
        columns = {slot: column for column, slot in enumerate(dict.fromkeys(itertools.chain(*slots)))}
        gates = np.zeros((2, *inputs["key_gate"].shape), np.float32)
        for row, state in enumerate(states):
            own = [columns[slot] for slot in state.rows.slots]
            gates[0, row][:, own] = state.conditioning.key_gate
            gates[1, row][:, own] = state.conditioning.value_gate
        return inputs | {"key_gate": gates[0], "value_gate": gates[1]}

    def forget(self) -> None:
        """Give the memory of what is kept back."""
        self._inputs.clear()

    def forget_concept(self, token: str) -> None:
        """Give the memory back of what was fed with a concept."""
        self._inputs.drop(lambda key: any(token == named for slots in key[1] for named, _ in slots))

    def _of_conditions(self, rows: Sequence[Row], request: Request) -> dict[str, Array]:
        """What some UNets read beside the timestep, (rows, width) each."""
        fed: dict[str, Array] = {}
        for name, width in self._conditions.items():
            if name == "text_embeds":
                fed[name] = np.stack([row.pooled for row in rows if row.pooled is not None])
            elif name == "time_ids":  # original size, crop, target size: a picture as it was asked for
                size = (request.height, request.width)
                fed[name] = np.tile(np.array([*size, 0, 0, *size], np.float32), (len(rows), 1))
            else:
                fed[name] = np.tile(guidance_embedding(request.guidance_scale, width), (len(rows), 1))
        return fed


_Entry = tuple[object, dict[str, Array]]
"""The arrays that a key names by their ids, so that no other can take those ids, and what was made of them."""


def guidance_embedding(guidance_scale: float, width: int) -> Array:
    """(width,) the guidance scale as a distilled UNet reads it (Luo et al. 2023; diffusers' sinusoids of w - 1)."""
    half = width // 2
    frequencies = np.exp(-np.log(10000.0) / (half - 1) * np.arange(half))
    angles = 1000.0 * (guidance_scale - 1.0) * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2)])
    return waves.astype(np.float32)
