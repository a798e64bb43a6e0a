"""What a picture is drawn from: its prompt in parts before it is encoded, and a row of the UNet's batch afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfusion.concept.conditioning import PromptState
from perfusion.concept.phases import in_force
from perfusion.concept.weighted_text import WeightedText
from perfusion.concept.words import named
from perfusion.runtime.concepts import Bank

__all__ = ["Parts", "PromptSpec", "Row"]

Array = NDArray[np.float32]

Parts = tuple[WeightedText, ...]
"""A prompt in parts that the text encoder can read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One row of the UNet's batch."""

    state: PromptState
    pooled: Array | None = None  # (width,) where the UNet reads pooled encodings
    control_states: Array | None = (
        None  # (tokens of a reading, text_dim) what a ControlNet reads; None: there is none
    )
    regions: Array | None = None  # (readings, height, width); None: one reading, read everywhere

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and readings; rows of one call have the same."""
        return len(self.state.conditioning.value_states), 1 if self.regions is None else len(self.regions)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptSpec:
    """What one picture is drawn from, in parts that the text encoder can read."""

    parts: Parts
    negative_parts: Parts | None  # None without guidance
    active: tuple[str, ...]  # the concepts that its prompt names and that are not off
    bank: Bank  # with the settings of this picture
    tokens: int  # that cross-attention reads, of all readings
    readings: tuple[Parts, ...] = ()  # their parts, where there are several
    maps: Array | None = None  # (readings, height, width)
    control_parts: Parts | None = None  # what a ControlNet reads of the prompt; None: there is none
    start: float = 0.0  # the share of the noise levels, from pure noise on, after which this holds
    earlier: tuple[PromptSpec, ...] = ()  # what holds until then, by their starts

    @property
    def phases(self) -> tuple[PromptSpec, ...]:
        """What holds one after another, this the last."""
        return (*self.earlier, self)

    def at(self, share: float) -> PromptSpec:
        """What holds at a share of the noise levels."""
        return in_force(self.phases, share)

    def reading(self, parts: Parts) -> PromptSpec:
        """One of its readings, alone."""
        words = self.bank.words()
        tokens = dict.fromkeys(token for part in parts for token in named(part.text, words))
        return replace(self, parts=parts, active=self.bank.active(tokens), readings=(), maps=None, earlier=())

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and readings; pictures of one call have the same."""
        return self.tokens, max(1, len(self.readings))

    @property
    def slots(self) -> dict[str, int]:
        """How many rows each of its concepts has."""
        return {concept.token: concept.rows for concept in self.bank.identity(self.active)}
