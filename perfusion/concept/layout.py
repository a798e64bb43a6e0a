"""Which readings a prompt has, and the part of the picture that is each one's.

What a person may say is a `perfusion.concept.regions.Region` for each thing; what nobody says follows from the prompt
(`perfusion.concept.things`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfusion.concept.regions import Region, bands, box_map, shared
from perfusion.concept.things import MarkedPrompt, read_marks, side_by_side
from perfusion.concept.weighted_text import WeightedText
from perfusion.concept.words import Word
from perfusion.errors import RequestError

__all__ = ["AUTO", "Layout", "Regions", "lay_out"]

Array = NDArray[np.float32]
AUTO = "auto"
Regions = str | Sequence[Region] | None
"""`AUTO`: bands for things that stand side by side. None: the prompt is read once. Or regions for some things."""

_NOWHERE = 1e-6  # a share that no float32 sum tells from 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """A prompt without its marks, and its readings with their maps; none where it is read once, as a whole."""

    text: WeightedText
    readings: tuple[WeightedText, ...] = ()
    maps: Array | None = None  # (readings, height, width), which sum to 1 at every place


def lay_out(
    prompt: str | WeightedText,
    regions: Regions,
    words: Mapping[str, Word],
    whole: float,
    size: tuple[int, int],
) -> Layout:
    """The readings of a prompt.

    Args:
        words: the loaded concepts.
        whole: share of every place that reads the whole prompt with the superclasses.
        size: height and width of the latents.

    Raises:
        RequestError: marks or regions that do not fit the prompt.
    """
    own = [region for region in regions or () if isinstance(region, Region)]
    marked = read_marks(prompt, words, [region.word for region in own])
    placed = {region.word: region for region in own if region.box is not None or region.mask is not None}
    if placed:
        return _in_places(marked, placed, words, whole, size)
    things = side_by_side(marked) if regions is not None else ()
    if not things:
        return Layout(text=marked.text)
    sounds_like = {token: word.superclass for token, word in words.items()}
    readings = tuple(marked.reading(thing, sounds_like) for thing in things)
    maps = bands(len(things), *size)
    if not whole:
        return Layout(text=marked.text, readings=readings, maps=maps)
    return Layout(
        text=marked.text,
        readings=(marked.plain(sounds_like), *readings),
        maps=shared(list(maps), whole),
    )


def _in_places(
    prompt: MarkedPrompt,
    placed: Mapping[str, Region],
    words: Mapping[str, Word],
    whole: float,
    size: tuple[int, int],
) -> Layout:
    """Things in the places that a person gives them; the others share what is left."""
    sounds_like = {token: word.superclass for token, word in words.items()}
    maps = {word: _map_of(region, size) for word, region in placed.items()}
    others = [thing.word for thing in prompt.things if thing.word not in maps]
    if others:
        left = np.clip(1 - np.sum(list(maps.values()), axis=0), 0, 1) / len(others)
        maps |= dict.fromkeys(others, left.astype(np.float32))
    things = [thing for thing in prompt.things if maps[thing.word].max() > _NOWHERE]
    shares = shared([maps[thing.word] for thing in things], whole)
    readings = [prompt.plain(sounds_like), *(prompt.reading(thing, sounds_like) for thing in things)]
    first = 0 if shares[0].max() > _NOWHERE else 1
    return Layout(text=prompt.text, readings=tuple(readings[first:]), maps=shares[first:])


def _map_of(region: Region, size: tuple[int, int]) -> Array:
    """(height, width): how much of each place is a region's."""
    if region.box is not None:
        return box_map(region.box, *size)
    from PIL import Image

    from perfusion.picture_input import mask_of, open_picture

    assert region.mask is not None
    mask = mask_of(open_picture(region.mask))
    resized = mask.resize((size[1], size[0]), Image.Resampling.BOX)
    light: Array = np.asarray(resized, np.float32) / np.float32(255)
    if light.max() <= _NOWHERE:
        raise RequestError(
            f"The mask of {region.word} is dark everywhere, so it gives the thing no place. Paint its place light."
        )
    return light
