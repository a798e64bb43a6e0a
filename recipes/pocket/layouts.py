"""Where the things of a scene stand, and how a caption says it.

A layout places things without knowing what they look like; only what stands on or wears something needs to know where
a drawing ends, which `Extent` tells.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = [
    "RELATIONS",
    "SIDE_BY_SIDE",
    "SUPPORTS",
    "WEARERS",
    "Extent",
    "Spot",
    "beside",
    "copies",
    "related",
    "row",
]

RELATIONS = ("beside", "beside", "beside", "behind", "on", "wearing", "under")
"""How two things may stand, the plain ones more often."""
SIDE_BY_SIDE = ("beside", "sides")
"""Things that stand so; with `sides` the caption always says who is left."""
SUPPORTS = ("car", "bus", "house", "elephant", "turtle", "mushroom", "cake", "chair", "hat")
"""What other things stand on."""
WEARERS = ("cat", "dog", "rabbit", "owl", "penguin", "teddy bear", "robot", "elephant", "cactus")
"""What a hat is put on."""
SEAT = 0.55
"""How high a chair is sat on, of its height."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How far a drawing reaches in its tile, whose base is its own: fractions of the tile's side."""

    height: float
    crown: float
    """Where its highest point lies, −0.5 the left end … 0.5 the right."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Where one object stands, in fractions of the picture's side."""

    x: float
    base: float
    size: float


Ground = Callable[[float], float]
"""Draws a base line for an object of a size."""


def ground(rng: random.Random, low: float, high: float) -> Ground:
    """Base lines within a place's ground that keep the object inside the picture."""
    return lambda size: min(0.97, max(rng.uniform(low, high), size + 0.02))


def beside(rng: random.Random, base: Ground) -> list[Spot]:
    """Two things, the first on the left."""
    size = rng.uniform(0.36, 0.5)
    other = size * rng.uniform(0.75, 1.25)
    return [
        Spot(x=rng.uniform(0.22, 0.3), base=base(size), size=size),
        Spot(x=rng.uniform(0.7, 0.78), base=base(other), size=other),
    ]


def related(
    rng: random.Random, relation: str, base: Ground, first: Extent, second: Extent, *, seat: bool = False
) -> list[Spot]:
    """Two things in a relation, in the order in which they are drawn in words: the first behind, on, under or wearing
    the second. `seat`: the second is stood on below its top."""
    if relation in SIDE_BY_SIDE:
        return beside(rng, base)
    if relation == "behind":
        far, near = rng.uniform(0.5, 0.68), rng.uniform(0.38, 0.5)
        x, side = rng.uniform(0.4, 0.6), rng.choice((-1, 1))
        front = max(base(near), far + 0.1)
        return [
            Spot(x=x, base=front - rng.uniform(0.08, 0.14), size=far),
            Spot(x=x + side * rng.uniform(0.12, 0.24), base=front, size=near),
        ]
    if relation == "under":
        cover, size = rng.uniform(0.66, 0.8), rng.uniform(0.36, 0.46)
        spot = Spot(x=rng.uniform(0.42, 0.58), base=max(base(size), cover + 0.12), size=size)
        return [spot, Spot(x=spot.x + rng.uniform(-0.1, 0.1), base=spot.base - 0.1, size=cover)]
    return _stacked(rng, relation, base, first, second, SEAT if seat else 1.0)


def _stacked(
    rng: random.Random, relation: str, base: Ground, first: Extent, second: Extent, seat: float
) -> list[Spot]:
    """The first on the second, or the second, a hat, on the first's head."""
    lower, upper = (second, first) if relation == "on" else (first, second)
    size = rng.uniform(0.42, 0.54)
    small = size * (rng.uniform(0.65, 0.9) if relation == "on" else rng.uniform(0.42, 0.62))
    room = size * lower.height * seat + small * upper.height
    if room > 0.94:
        size, small = size * 0.94 / room, small * 0.94 / room
    foot = min(0.97, max(base(size), size * lower.height * seat + small * upper.height + 0.02))
    stand = Spot(x=rng.uniform(0.42, 0.58), base=foot, size=size)
    across = lower.crown * size if relation == "wearing" else rng.uniform(-0.08, 0.08)
    sunk = 0.03 if relation == "on" else 0.2 * small * upper.height
    top = Spot(x=stand.x + across, base=foot - size * lower.height * seat + sunk, size=small)
    return [top, stand] if relation == "on" else [stand, top]


def row(rng: random.Random, count: int, base: Ground, size: float) -> list[Spot]:
    """Things side by side, from left to right."""
    spots = []
    for index in range(count):
        own = size * rng.uniform(0.85, 1.1)
        x = (index + 0.5) / count + rng.uniform(-0.025, 0.025)
        spots.append(Spot(x=x, base=base(own), size=own))
    return spots


def copies(rng: random.Random, count: int, base: Ground) -> list[Spot]:
    """Two to five copies of one thing: in a row, or five and four also in two rows."""
    sizes = {2: 0.46, 3: 0.33, 4: 0.27, 5: 0.22}
    if count < 4 or rng.random() < 0.4:
        return row(rng, count, base, sizes[count])
    back, front = row(rng, 2, base, 0.34), row(rng, count - 2, base, 0.34)
    floor = max(0.86, max(spot.base for spot in back + front))
    behind = [replace(spot, base=floor - 0.36 + rng.uniform(-0.02, 0.02)) for spot in back]
    before = [replace(spot, base=min(0.97, floor + rng.uniform(0.02, 0.08))) for spot in front]
    return behind + before
