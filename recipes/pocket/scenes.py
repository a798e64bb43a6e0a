"""Painted backgrounds: thirteen scenes and plain colours, drawn with numpy from a seeded generator.

Every painter takes the coordinate grids of the picture (`x`, `y` in [0, 1], shape (size, size)) and a generator, and
returns RGB in about [0, 1], (size, size, 3). Randomness moves horizons, hues, clouds and details.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from perfusion.pocket.vocabulary import COLOURS

Array = npt.NDArray[Any]
Colour = Sequence[float] | Array
Painter = Callable[[Array, Array, np.random.Generator], Array]


def paint(place: str, size: int, random: np.random.Generator) -> Array:
    """A background of one place (a painted scene or a colour name). (size, size, 3) uint8."""
    y, x = np.mgrid[0:size, 0:size] / size
    picture = plain(COLOURS[place], x, y, random) if place in COLOURS else PAINTERS[place](x, y, random)
    return np.asarray(np.clip(picture, 0, 1) * 255, np.uint8)


def jitter(colour: Colour, random: np.random.Generator, amount: float = 0.04) -> Array:
    """The colour, moved a little."""
    return np.clip(np.asarray(colour) + random.normal(0, amount, 3), 0, 1)


def fade(y: Array, top: Colour, bottom: Colour, start: float = 0.0, stop: float = 1.0) -> Array:
    """A vertical gradient between two colours."""
    t = np.clip((y - start) / (stop - start), 0, 1)[..., None]
    return (1 - t) * np.asarray(top) + t * np.asarray(bottom)


def noise(size: int, cells: int, random: np.random.Generator, octaves: int = 3) -> Array:
    """Smooth noise around zero, each octave twice as fine and half as strong. (size, size)."""
    total = np.zeros((size, size))
    for octave in range(octaves):
        grid = random.random((max(2, cells * 2**octave),) * 2).astype(np.float32) - 0.5
        total += np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) / 2**octave
    return total


def put(picture: Array, where: Array, colour: Array) -> None:
    """Paint `colour`, one colour or a picture, where the mask is true."""
    picture[where] = colour if colour.ndim == 1 else colour[where]


def wave(x: Array, random: np.random.Generator, height: float, slow: float = 3, fast: float = 8) -> Array:
    """A hill line: a sine of random length and phase."""
    return np.asarray(height * np.sin(x * random.uniform(slow, fast) + random.uniform(0, 6)))


def clouds(picture: Array, y: Array, above: float, random: np.random.Generator) -> None:
    """White clouds that thin out towards the line `above`."""
    cover = np.clip((noise(len(y), 4, random, 4) - 0.12) * 4, 0, 1) * np.clip((above - y) * 6, 0, 1) * 0.8
    picture[:] = picture * (1 - cover[..., None]) + cover[..., None]


def plain(colour: Colour, x: Array, y: Array, random: np.random.Generator) -> Array:
    """One colour with a faint vignette."""
    return (
        np.ones((*x.shape, 3))
        * jitter(colour, random, 0.03)
        * (1 - 0.15 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None]
    )


def beach(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Sky, sea, a white shore line and sand."""
    horizon = random.uniform(0.38, 0.56)
    picture = fade(y, jitter((0.35, 0.68, 0.95), random), jitter((0.8, 0.92, 1), random), 0, horizon)
    clouds(picture, y, horizon, random)
    shore = horizon + random.uniform(0.12, 0.18) + wave(x, random, 0.012, 8, 16)
    sea = fade(
        y, jitter((0.08, 0.42, 0.7), random), jitter((0.3, 0.75, 0.8), random), horizon, float(shore.max())
    )
    sand = fade(
        y, jitter((0.94, 0.84, 0.62), random), jitter((0.86, 0.7, 0.45), random), float(shore.min()), 1
    )
    put(picture, (y > horizon) & (y <= shore), sea)
    put(picture, y > shore, sand + 0.08 * noise(len(y), 24, random, 2)[..., None])
    put(picture, abs(y - shore) < 0.01, np.ones(3))
    return picture


def grass(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Sky with clouds over a green hill."""
    horizon = random.uniform(0.38, 0.58)
    picture = fade(y, jitter((0.45, 0.75, 0.97), random), jitter((0.85, 0.95, 1), random), 0, horizon)
    clouds(picture, y, horizon, random)
    green = fade(y, jitter((0.45, 0.76, 0.3), random), jitter((0.18, 0.52, 0.16), random), horizon, 1)
    put(picture, y > horizon + wave(x, random, 0.03), green + 0.12 * noise(len(y), 30, random, 2)[..., None])
    return picture


def night(x: Array, y: Array, random: np.random.Generator) -> Array:
    """A dark sky with stars and a moon over black ground."""
    picture = fade(y, jitter((0.03, 0.04, 0.16), random, 0.02), jitter((0.12, 0.12, 0.36), random, 0.03))
    put(picture, random.random(x.shape) > 0.992, np.ones(3))
    moon = (x - random.uniform(0.15, 0.85)) ** 2 + (y - random.uniform(0.1, 0.3)) ** 2
    put(picture, moon < random.uniform(0.05, 0.1) ** 2, np.array((0.98, 0.96, 0.8)))
    put(
        picture,
        y > random.uniform(0.72, 0.82) + wave(x, random, 0.03),
        jitter((0.05, 0.07, 0.12), random, 0.02),
    )
    return picture


def snow(x: Array, y: Array, random: np.random.Generator) -> Array:
    """A grey-blue sky, white hills and falling flakes."""
    horizon = random.uniform(0.38, 0.58)
    picture = fade(
        y, jitter((0.6, 0.72, 0.86), random, 0.03), jitter((0.86, 0.92, 0.97), random, 0.02), 0, horizon
    )
    white = (
        fade(y, (0.97, 0.98, 1), (0.83, 0.89, 0.97), horizon, 1)
        + 0.04 * noise(len(y), 8, random, 2)[..., None]
    )
    put(picture, y > horizon + wave(x, random, 0.05), white)
    for column, row in random.integers(0, len(y) - 2, (40, 2)):
        picture[row : row + 2, column : column + 2] = 1
    return picture


def table(x: Array, y: Array, random: np.random.Generator) -> Array:
    """A pale wall behind a wooden board."""
    edge = random.uniform(0.38, 0.58)
    picture = (
        np.ones((*x.shape, 3)) * jitter((0.86, 0.82, 0.76), random, 0.06)
        + 0.06 * noise(len(y), 3, random, 2)[..., None]
    )
    grain = 0.04 * np.sin(y * random.uniform(40, 52) + 7 * noise(len(y), 5, random, 2))
    wood = (
        fade(y, jitter((0.66, 0.43, 0.24), random), jitter((0.5, 0.3, 0.15), random), edge, 1)
        + grain[..., None]
    )
    put(picture, y > edge, wood)
    put(picture, abs(y - edge) < 0.008, np.array((0.36, 0.2, 0.1)))
    return picture


def room(x: Array, y: Array, random: np.random.Generator) -> Array:
    """A wall with a window, a skirting board and a floor."""
    floor = random.uniform(0.53, 0.73)
    picture = np.ones((*x.shape, 3)) * jitter((0.8, 0.74, 0.62), random, 0.11)
    put(picture, y > floor, jitter((0.55, 0.42, 0.32), random, 0.06))
    frame = np.array((0.95, 0.95, 0.93))
    put(picture, abs(y - floor) < 0.012, frame)
    left, top, width, height = random.uniform(0.08, 0.68), 0.07, 0.24, 0.26
    put(picture, (x > left) & (x < left + width) & (y > top) & (y < top + height), frame)
    inside = (x > left + 0.02) & (x < left + width - 0.02) & (y > top + 0.02) & (y < top + height - 0.02)
    put(picture, inside & (abs(x - left - width / 2) > 0.01), jitter((0.6, 0.82, 0.97), random))
    return picture


def underwater(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Blue depth with a sandy bottom and bubbles."""
    picture = fade(y, jitter((0.3, 0.75, 0.9), random), jitter((0.03, 0.2, 0.5), random))
    picture += 0.08 * noise(len(y), 5, random)[..., None]
    bottom = y > 0.85 + wave(x, random, 0.03, 7, 8)
    picture[bottom] = 0.4 * picture[bottom] + 0.6 * np.array((0.75, 0.68, 0.5))
    for _ in range(8):
        bubble = (x - random.random()) ** 2 + (y - 0.8 * random.random()) ** 2 < random.uniform(
            0.008, 0.023
        ) ** 2
        picture[bubble] = 0.5 * picture[bubble] + 0.5
    return picture


def desert(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Three dunes below a hot sky."""
    horizon = random.uniform(0.38, 0.58)
    picture = fade(y, jitter((0.35, 0.65, 0.92), random), jitter((0.98, 0.9, 0.75), random), 0, horizon)
    for dune in range(3):
        sand = (0.93 - 0.06 * dune, 0.68 - 0.07 * dune, 0.38 - 0.06 * dune)
        put(picture, y > horizon + 0.14 * dune + wave(x, random, 0.05, 2, 6), jitter(sand, random, 0.02))
    return picture


def sunset(x: Array, y: Array, random: np.random.Generator) -> Array:
    """A violet to orange sky with a low sun over dark water."""
    picture = fade(y, jitter((0.35, 0.2, 0.5), random), jitter((1, 0.6, 0.25), random), 0, 0.68)
    put(picture, (x - random.uniform(0.2, 0.8)) ** 2 + (y - 0.58) ** 2 < 0.09**2, np.array((1, 0.9, 0.5)))
    put(
        picture, y > 0.68, fade(y, jitter((0.7, 0.3, 0.3), random), jitter((0.2, 0.1, 0.25), random), 0.68, 1)
    )
    return picture


def mountains(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Snow-capped peaks behind a meadow."""
    picture = fade(y, jitter((0.4, 0.68, 0.95), random), jitter((0.85, 0.93, 1), random), 0, 0.6)
    clouds(picture, y, 0.35, random)
    for _ in range(3):
        ridge = random.uniform(0.15, 0.35) + abs(x - random.random()) * random.uniform(0.9, 1.7)
        ridge = ridge + 0.06 * noise(len(y), 10, random)[0]
        put(picture, y > ridge, jitter((0.45, 0.48, 0.56), random, 0.02))
        put(picture, (y > ridge) & (y < ridge + 0.08 + 0.03 * np.sin(x * 60)), np.array((0.96, 0.97, 1)))
    put(picture, y > 0.68 + wave(x, random, 0.02, 7, 9), jitter((0.3, 0.58, 0.28), random))
    return picture


def forest(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Trunks and leaves over a mossy floor."""
    picture = fade(y, jitter((0.55, 0.75, 0.6), random), jitter((0.3, 0.5, 0.3), random), 0, 0.7)
    moss = fade(y, jitter((0.3, 0.5, 0.2), random), jitter((0.16, 0.34, 0.12), random), 0.66, 1)
    put(picture, y > 0.66, moss + 0.1 * noise(len(y), 24, random, 2)[..., None])
    for _ in range(11):
        trunk = (abs(x - random.random()) < random.uniform(0.02, 0.045)) & (y < random.uniform(0.62, 0.72))
        put(picture, trunk, jitter((0.32, 0.22, 0.14), random, 0.03))
    leaves = noise(len(y), 10, random)
    put(picture, y < 0.3 + 0.3 * leaves, jitter((0.1, 0.36, 0.14), random) + 0.2 * leaves[..., None])
    return picture


def street(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Houses with windows, a pavement and a road with dashes."""
    picture = fade(y, jitter((0.55, 0.75, 0.92), random), jitter((0.9, 0.94, 0.97), random), 0, 0.5)
    left = 0.0
    while left < 1:
        width, top = random.uniform(0.1, 0.24), random.uniform(0.08, 0.38)
        house = (x >= left) & (x < left + width) & (y > top) & (y < 0.66)
        put(picture, house, jitter((0.62, 0.5, 0.46), random, 0.1))
        panes = ((x - left) % 0.05 > 0.018) & ((y - top) % 0.07 > 0.03) & house
        picture[panes] = 0.45 * picture[panes] + 0.3 * np.array((0.9, 0.88, 0.6))
        left += width
    put(picture, y > 0.64, jitter((0.62, 0.62, 0.63), random, 0.02))
    put(picture, y > 0.7, jitter((0.3, 0.3, 0.33), random, 0.02))
    put(
        picture,
        (abs(y - 0.86) < 0.012) & ((x * 5 + random.random()) % 1 > 0.45),
        np.array((0.95, 0.93, 0.85)),
    )
    return picture


def brick(x: Array, y: Array, random: np.random.Generator) -> Array:
    """A brick wall above a strip of pavement."""
    picture = (
        np.ones((*x.shape, 3)) * jitter((0.7, 0.33, 0.24), random)
        + 0.1 * noise(len(y), 20, random, 2)[..., None]
    )
    offset = 0.07 * (np.floor(y / 0.07) % 2)
    put(picture, (y % 0.07 < 0.01) | ((x + offset) % 0.14 < 0.012), np.array((0.82, 0.78, 0.73)))
    put(picture, y > 0.82, jitter((0.5, 0.48, 0.46), random, 0.03))
    return picture


PAINTERS: dict[str, Painter] = {
    painter.__name__: painter
    for painter in (
        beach, grass, night, snow, table, room, underwater, desert, sunset, mountains, forest, street, brick,
    )
}  # fmt: skip
