"""Captioned scenes: objects from the atlas, composed on painted backgrounds in batches, on CPU or GPU.

`World.sample` draws a scene's description (what, where, which colours) with its caption; `World.render` composes a
batch of descriptions into pictures and gives each picture's object mask for free.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from perfusion.pocket.vocabulary import (
    COLOURS,
    COUNTS,
    GROUND,
    PLACES,
    PLAIN_GROUND,
    article,
    place_phrases,
    plural,
)
from recipes.pocket.scenes import paint
from recipes.pocket.sprites import Atlas

OVERSIZE = 1.15
"""Backgrounds are painted this much larger than the picture and cropped at random."""

OPENINGS = (
    "a good photo of ", "a close up photo of ", "a cropped photo of ", "a nice picture of ", "a photo of ",
)  # fmt: skip
"""What training templates begin with besides the plain forms, so that none of their words is new to the model."""

PATTERN_CODES = {"": 0, "striped": 1, "spotted": 2, "two-tone": 3}
COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One object in a scene. Lengths are fractions of the picture's side, angles degrees."""

    sprite: int
    x: float
    base: float
    size: float
    angle: float = 0.0
    flip: bool = False
    tint: int = -1
    """Index of a colour that repaints the object, −1 for none."""
    second: int = -1
    """Index of the pattern's colour, −1 for none."""
    pattern: int = 0
    hue: float = 0.0
    """Rotation of the hue, in turns."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture's description: what `World.render` draws."""

    caption: str
    place: str
    backdrop: int
    items: tuple[Item, ...]
    nouns: tuple[str, ...] = ()

    def colour(self) -> str | None:
        """What a single object is painted in, "" for nothing; None where a colour's name does not say it all."""
        item = self.items[0]
        if len(self.items) > 1 or item.pattern or item.hue:
            return None
        return COLOUR_NAMES[item.tint] if item.tint >= 0 else ""

    def middles(self) -> dict[str, float]:
        """Noun → where its object's middle stands, 0 the left end … 1 the right. Copies have no middle."""
        if len(self.items) != len(self.nouns):
            return {}
        return dict(zip(self.nouns, sorted(item.x for item in self.items), strict=True))


@dataclass(frozen=True, kw_only=True)
class Taste:
    """What kinds of scenes are drawn; the training's curriculum moves these."""

    pairs: float = 0.0
    """Share of scenes with two different objects."""
    counts: float = 0.0
    """Share of scenes with two or three copies of one object."""
    size: tuple[float, float] = (0.45, 0.88)
    spread: float = 0.10
    """How far a single object may stand from the middle."""
    recoloured: float = 0.45
    """Share of objects with a look other than their own."""
    empty_caption: float = 0.0
    """Share of scenes whose caption is left out, for classifier-free guidance."""


class World:
    """The scenes that pocket learns from.

    Args:
        atlas: object pictures.
        size: width and height of the pictures, in pixels.
        backdrops: painted backgrounds kept for each scene.
        device: where composing happens.
        seed: of the painted backgrounds.
    """

    def __init__(
        self, atlas: Atlas, *, size: int = 128, backdrops: int = 32, device: str = "cpu", seed: int = 0
    ) -> None:
        self.size, self.device = size, torch.device(device)
        self.sprites = torch.from_numpy(atlas.pixels.transpose(0, 3, 1, 2).copy()).to(self.device)
        self.by_noun: dict[str, list[int]] = {}
        for index, noun in enumerate(atlas.nouns):
            self.by_noun.setdefault(noun, []).append(index)
        self.nouns = tuple(self.by_noun)
        painter = np.random.default_rng(seed)
        oversize = round(size * OVERSIZE)
        self.backdrops = {
            place: torch.from_numpy(
                np.stack([paint(place, oversize, painter) for _ in range(backdrops if place in PLACES else 6)])
            ).permute(0, 3, 1, 2).to(self.device)
            for place in (*PLACES, *COLOURS)
        }  # fmt: skip
        self.colours = torch.tensor(list(COLOURS.values()), device=self.device)

    def sample(
        self, rng: random.Random, taste: Taste = Taste(), *, noun: str | None = None, place: str | None = None
    ) -> Scene:
        """Draw one scene. `noun` and `place` fix what stands where; the rest is chance."""
        place = place or rng.choice(tuple(PLACES) if rng.random() < 0.72 else COLOUR_NAMES)
        where = rng.choice(place_phrases(place))
        kind = rng.random()
        if noun is None and kind < taste.pairs:
            what, items, nouns = self._pair(rng, taste, place)
        elif noun is None and kind < taste.pairs + taste.counts:
            what, items, nouns = self._copies(rng, place)
        else:
            what, items, nouns = self._single(rng, taste, place, noun or rng.choice(self.nouns))
        opening = (
            rng.choice(OPENINGS) if rng.random() < 0.3 else rng.choice(("a photo of ", "a picture of ", ""))
        )
        verb = rng.choice(("", "", "", "sitting ", "standing ")) if len(items) == 1 else ""
        caption = "" if rng.random() < taste.empty_caption else f"{opening}{what} {verb}{where}"
        backdrop = rng.randrange(len(self.backdrops[place]))
        ordered = tuple(sorted(items, key=lambda item: item.base))
        return Scene(caption=caption, place=place, backdrop=backdrop, items=ordered, nouns=nouns)

    def _item(
        self, rng: random.Random, noun: str, place: str, x: float, size: float, recoloured: float
    ) -> tuple[str, Item]:
        """An object of the noun in some look, and the words for it."""
        low, high = GROUND.get(place, PLAIN_GROUND)
        base = min(0.97, max(rng.uniform(low, high), size + 0.02))
        item = Item(
            sprite=rng.choice(self.by_noun[noun]),
            x=x,
            base=base,
            size=size,
            angle=rng.gauss(0, 4),
            flip=rng.random() < 0.5,
        )
        if rng.random() >= recoloured:
            return noun, item
        return _restyle(rng, noun, item)

    def _single(
        self, rng: random.Random, taste: Taste, place: str, noun: str
    ) -> tuple[str, list[Item], tuple[str, ...]]:
        size = rng.uniform(*taste.size)
        words, item = self._item(
            rng, noun, place, rng.uniform(0.5 - taste.spread, 0.5 + taste.spread), size, taste.recoloured
        )
        kind = rng.random()
        determined = (
            article(words) if kind < 0.7 else f"{'the' if kind < 0.9 else rng.choice(('my', 'one'))} {words}"
        )
        return determined, [item], (noun,)

    def _pair(self, rng: random.Random, taste: Taste, place: str) -> tuple[str, list[Item], tuple[str, ...]]:
        first, second = rng.sample(self.nouns, 2)
        size = rng.uniform(0.36, 0.5)
        left, left_item = self._item(rng, first, place, rng.uniform(0.22, 0.3), size, taste.recoloured / 2)
        right, right_item = self._item(
            rng, second, place, rng.uniform(0.7, 0.78), size * rng.uniform(0.85, 1.15), taste.recoloured / 2
        )
        left, right = article(left), article(right)
        phrases = (
            f"{left} and {right}",
            f"{right} and {left}",
            f"{left} next to {right}",
            f"{left} to the left of {right}",
            f"{right} to the right of {left}",
        )
        return rng.choice(phrases), [left_item, right_item], (first, second)

    def _copies(self, rng: random.Random, place: str) -> tuple[str, list[Item], tuple[str, ...]]:
        noun, count = rng.choice(self.nouns), rng.choice((2, 2, 3))
        sprite, size = rng.choice(self.by_noun[noun]), 0.46 if count == 2 else 0.33
        items = []
        for index in range(count):
            x = (index + 0.5) / count + rng.uniform(-0.03, 0.03)
            _, item = self._item(rng, noun, place, x, size * rng.uniform(0.85, 1.1), 0.0)
            items.append(replace(item, sprite=sprite))
        return f"{COUNTS[count]} {plural(noun)}", items, (noun,)

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """The same chances at every call; torch's generators, this device's too, then go on as if it had not been."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    @torch.no_grad()
    def render(self, scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compose a batch.

        Returns:
            Pictures (batch, 3, size, size) in [0, 1] and object masks (batch, 1, size, size) in [0, 1].
        """
        picture = self._backgrounds(scenes)
        mask = torch.zeros(len(scenes), 1, self.size, self.size, device=self.device)
        for layer in range(max(len(scene.items) for scene in scenes)):
            rows = [row for row, scene in enumerate(scenes) if layer < len(scene.items)]
            items = [scenes[row].items[layer] for row in rows]
            shadow, sprite = self._shadow(items), self._place(items, self._paint(items))
            alpha = sprite[:, 3:]
            index = torch.tensor(rows, device=self.device)
            picture[index] = picture[index] * (1 - shadow) * (1 - alpha) + sprite[:, :3]
            mask[index] = torch.maximum(mask[index], alpha)
        return picture.clamp(0, 1), mask

    def _backgrounds(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Backgrounds cropped, mirrored and lit at random. (batch, 3, size, size)."""
        pool = torch.stack([self.backdrops[scene.place][scene.backdrop] for scene in scenes]).float() / 255
        count, chance = len(scenes), torch.rand(len(scenes), 4, device=self.device)
        zoom = 1 / OVERSIZE
        theta = torch.zeros(count, 2, 3, device=self.device)
        theta[:, 0, 0] = zoom * torch.where(chance[:, 0] < 0.5, -1.0, 1.0)
        theta[:, 1, 1] = zoom
        theta[:, 0, 2] = (chance[:, 1] * 2 - 1) * (1 - zoom)
        theta[:, 1, 2] = (chance[:, 2] * 2 - 1) * (1 - zoom) * 0.3
        grid = F.affine_grid(theta, [count, 3, self.size, self.size], align_corners=False)
        picture = F.grid_sample(pool, grid, align_corners=False, padding_mode="reflection")
        light = 0.9 + 0.2 * chance[:, 3].view(-1, 1, 1, 1)
        return (picture * light + 0.02 * torch.randn(count, 3, 1, 1, device=self.device)).clamp(0, 1)

    def _numbers(self, items: Sequence[Item], read: Callable[[Item], float]) -> torch.Tensor:
        return torch.tensor([float(read(item)) for item in items], device=self.device).view(-1, 1, 1)

    def _shadow(self, items: Sequence[Item]) -> torch.Tensor:
        """A soft contact shadow below each object. (batch, 1, size, size) darkness."""
        steps = (torch.arange(self.size, device=self.device) + 0.5) / self.size
        x, base, size = (
            self._numbers(items, read) for read in (lambda i: i.x, lambda i: i.base, lambda i: i.size)
        )
        across = (steps[None, None, :] - x) / (0.40 * size)
        down = (steps[None, :, None] - base + 0.012) / (0.085 * size)
        return (0.42 * torch.exp(-((across**2 + down**2) ** 1.3)))[:, None]

    def _paint(self, items: Sequence[Item]) -> torch.Tensor:
        """The objects' pictures in their colours, premultiplied. (batch, 4, 128, 128)."""
        sprite = self.sprites[torch.tensor([item.sprite for item in items], device=self.device)].float() / 255
        rgb, alpha = sprite[:, :3], sprite[:, 3:]
        rgb = rotate_hue(rgb, self._numbers(items, lambda i: i.hue)[..., 0, 0])
        luminance = (rgb * torch.tensor([0.3, 0.59, 0.11], device=self.device).view(1, 3, 1, 1)).sum(
            1, keepdim=True
        )
        rgb = self._tint(rgb, luminance, [item.tint for item in items])
        pattern = _pattern(items, rgb.shape[-1], self.device)
        patched = self._tint(rgb, luminance, [item.second for item in items])
        rgb = rgb * (1 - pattern) + patched * pattern
        count = len(items)
        balance = 1 + 0.05 * torch.randn(count, 3, 1, 1, device=self.device)
        rgb = (rgb * balance + 0.03 * torch.randn(count, 1, 1, 1, device=self.device)).clamp(0, 1)
        return torch.cat([rgb * alpha, alpha], 1)

    def _tint(self, rgb: torch.Tensor, luminance: torch.Tensor, colour: Sequence[int]) -> torch.Tensor:
        """Repaint with named colours, keeping the shading; −1 leaves a row as it is."""
        index = torch.tensor(colour, device=self.device)
        base = self.colours[index.clamp(min=0)][:, :, None, None]
        painted = (base * (0.35 + 1.05 * luminance) + 0.35 * (luminance - 0.75).clamp(min=0)).clamp(0, 1)
        weight = torch.where(index >= 0, 0.85, 0.0).view(-1, 1, 1, 1)
        return rgb * (1 - weight) + painted * weight

    def _place(self, items: Sequence[Item], sprite: torch.Tensor) -> torch.Tensor:
        """The objects scaled, turned and moved to where they stand. (batch, 4, size, size), premultiplied."""
        number = lambda read: self._numbers(items, read)[:, 0, 0]  # noqa: E731
        angle, flip = number(lambda i: i.angle) * torch.pi / 180, 1 - 2 * number(lambda i: i.flip)
        scale, size = 1 / number(lambda i: i.size), number(lambda i: i.size)
        x, y = 2 * number(lambda i: i.x) - 1, 2 * (number(lambda i: i.base) - size / 2) - 1
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        theta = torch.stack(
            [
                torch.stack([cos * flip, sin * flip, -(cos * x + sin * y) * flip], 1),
                torch.stack([-sin, cos, sin * x - cos * y], 1),
            ],
            1,
        )
        if float(size.mean()) < 0.5 and sprite.shape[-1] >= self.size:
            sprite = F.avg_pool2d(sprite, 2)  # a much smaller copy would alias
        grid = F.affine_grid(theta, [len(items), 4, self.size, self.size], align_corners=False)
        return F.grid_sample(sprite, grid, align_corners=False)


def _restyle(rng: random.Random, noun: str, item: Item) -> tuple[str, Item]:
    """A different look; captions name colours and some patterns and leave the rest unnamed, so that the model's
    range of looks is wider than its words."""
    kind, colour, other = rng.random(), rng.randrange(len(COLOURS)), rng.randrange(len(COLOURS))
    if kind < 0.5:
        return f"{COLOUR_NAMES[colour]} {noun}", replace(item, tint=colour)
    if kind < 0.72:
        return noun, replace(item, hue=rng.uniform(0.08, 0.92))
    name = rng.choice(("striped", "spotted", "two-tone"))
    patterned = replace(item, second=other, pattern=PATTERN_CODES[name])
    if kind < 0.86:
        patterned = replace(patterned, tint=colour)
        named = rng.random() < 0.6 and colour != other
        return (f"{COLOUR_NAMES[colour]} and {COLOUR_NAMES[other]} {noun}" if named else noun), patterned
    return (f"{name} {noun}" if rng.random() < 0.6 else noun), patterned


def rotate_hue(rgb: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn colours about the grey axis. `turns` is (batch,)."""
    cos, sin = torch.cos(2 * torch.pi * turns), torch.sin(2 * torch.pi * turns) / 3**0.5
    even = (1 - cos) / 3
    diagonal, after, before = cos + even, even - sin, even + sin  # a rotation permutes itself cyclically
    matrix = ((diagonal, after, before), (before, diagonal, after), (after, before, diagonal))
    rows = [torch.stack(row, 1) for row in matrix]
    return torch.einsum("bij,bjhw->bihw", torch.stack(rows, 1), rgb).clamp(0, 1)


def _pattern(items: Sequence[Item], size: int, device: torch.device) -> torch.Tensor:
    """Where each object's second colour goes. (batch, 1, size, size) in {0, 1}."""
    y, x = torch.meshgrid(*(torch.arange(size, device=device) / size,) * 2, indexing="ij")
    phase = 6.28 * torch.rand(len(items), 1, 1, device=device)
    stripes = torch.sin(28 * x + 9 * y + phase) > 0
    spots = torch.sin(22 * x + phase) * torch.sin(22 * y + 0.5 * phase) > 0.35
    halves = y > 0.45 + 0.12 * torch.sin(5 * x + phase)
    nothing = torch.zeros_like(stripes)
    kinds = torch.stack([nothing, stripes, spots, halves], 1)
    index = torch.tensor([item.pattern for item in items], device=device)
    return kinds[torch.arange(len(items), device=device), index][:, None].float()
