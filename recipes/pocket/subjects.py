"""Personal subjects: known nouns in drawing styles that the model has never seen, on pictures composed like photos.

They stand for "my cat": a handful of pictures of one thing, with a mask each.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from perfusion.errors import ModelError
from perfusion.files import writing
from perfusion.pocket.vocabulary import PLACES
from recipes.pocket.sprites import Atlas, held_out_atlas
from recipes.pocket.world import Taste, World

__all__ = ["SUBJECTS", "Subject", "compose", "only", "save", "save_all"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One held-out look of a known noun."""

    name: str
    noun: str
    style: str

    @property
    def token(self) -> str:
        return f"<{self.name}>"


SUBJECTS = tuple(
    Subject(name=name, noun=noun, style=style)
    for name, noun, style in (
        ("tuxedo-cat", "cat", "emojione"), ("pug", "dog", "emojione"), ("purple-owl", "owl", "emojione"),
        ("grey-penguin", "penguin", "fxemoji"), ("grey-fish", "fish", "emojione"),
        ("old-robot", "robot", "emojione"), ("school-bus", "bus", "emojione"), ("green-bus", "bus", "fxemoji"),
        ("pink-mushroom", "mushroom", "emojione"), ("pink-cake", "cake", "fxemoji"),
        ("gold-hat", "hat", "fxemoji"), ("rainbow-umbrella", "umbrella", "emojione"),
    )
)  # fmt: skip
"""Those in examples/subjects, taken for looking unlike the three pictures of their noun in the training."""


def only(atlas: Atlas, noun: str, style: str) -> Atlas:
    """The part of an atlas that shows one noun in one style."""
    chosen = [
        i for i, pair in enumerate(zip(atlas.nouns, atlas.styles, strict=True)) if pair == (noun, style)
    ]
    if not chosen:
        known = ", ".join(n for n, s in zip(atlas.nouns, atlas.styles, strict=True) if s == style)
        raise ModelError(f"there is no {noun!r} in the style {style}; there is {known or 'nothing'}")
    return Atlas(pixels=atlas.pixels[chosen], nouns=(noun,) * len(chosen), styles=(style,) * len(chosen))


def compose(
    noun: str, style: str, *, count: int = 5, size: int = 128, seed: int = 5
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Pictures of one subject, each in another place, and the object's mask in each."""
    rng = random.Random(seed)
    world = World(only(held_out_atlas(), noun, style), size=size, backdrops=4, seed=seed)
    taste = Taste(size=(0.6, 0.85), spread=0.08, recoloured=0.0)
    places = rng.sample([place for place in PLACES if place not in ("night", "sunset")], count)
    scenes = [world.sample(rng, taste, noun=noun, place=place) for place in places]
    upright = [replace(s, items=tuple(replace(i, angle=i.angle / 2) for i in s.items)) for s in scenes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pictures, masks = world.render(upright)
    return _images(pictures), [image.convert("L") for image in _images(masks.expand(-1, 3, -1, -1))]


def save(noun: str, style: str, folder: Path) -> None:
    """Write a subject's pictures and, in `masks/`, their masks."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for number, (picture, mask) in enumerate(zip(*compose(noun, style), strict=True), 1):
        with writing(folder / f"{number}.png") as file:
            picture.save(file, "PNG", optimize=True)
        with writing(folder / "masks" / f"{number}.png") as file:
            mask.save(file, "PNG", optimize=True)


def save_all(folder: Path) -> None:
    """Write the pictures of every one of SUBJECTS into a folder of its name."""
    for subject in SUBJECTS:
        save(subject.noun, subject.style, folder / subject.name)


def _images(batch: torch.Tensor) -> list[Image.Image]:
    arrays = (batch.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
