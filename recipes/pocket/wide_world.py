"""The second edition's world: more drawings, each in many coats; pairs and triples in their places; counts to five.

`WideWorld` composes like the first edition's `World` and keeps a mask for every thing that the caption names.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from perfusion.pocket.vocabulary import (
    COLOURS,
    GROUND,
    NOUNS,
    PLACES,
    PLAIN_GROUND,
    article,
    plural,
)
from recipes.pocket.language import COUNTS, SIZES, listing, place_phrases, relation_phrases
from recipes.pocket.layouts import (
    RELATIONS,
    SIDE_BY_SIDE,
    SUPPORTS,
    WEARERS,
    Extent,
    Ground,
    Spot,
    beside,
    copies,
    ground,
    related,
    row,
)
from recipes.pocket.looks import WHOLE, Coat, find_parts, paint, sample_look
from recipes.pocket.sprites import Atlas
from recipes.pocket.withheld import allowed
from recipes.pocket.world import OPENINGS, Item, Scene, Taste, World

__all__ = ["FAVOURITES", "THINGS", "Thing", "WideScene", "WideTaste", "WideWorld"]

THINGS = 3
"""Most things in a scene; copies of one thing count once."""
FAVOURITES = NOUNS | {"cat": "🐱", "dog": "🐶", "rabbit": "🐰"}
"""Noun → the emoji that pictures it best, a face where there is one."""


@dataclass(frozen=True, kw_only=True)
class WideTaste(Taste):
    """What kinds of scenes are drawn. `counts` means two to five copies."""

    triples: float = 0.0
    """Share of scenes with three different things."""
    sized: float = 0.15
    """Share of objects that are small or large and called so."""
    sides: float = 0.0
    """Share of pairs that stand side by side and whose caption says who is left; so do some of the others."""
    unpatterned: float = 0.0
    """Share of the things with a pattern that no word names which keep their own colours instead."""
    favoured: float = 0.0
    """Share of the things that are drawn as the favourite emoji of their noun; so do some of the others."""
    withheld: bool = False
    """Whether there is also what the model never sees together: for those who judge it."""


@dataclass(frozen=True, kw_only=True)
class WideItem(Item):
    """One object: its coats and its build. `thing` is the number of the thing that it shows."""

    coats: tuple[Coat, ...] = ()
    thing: int = 0
    width: float = 1.0
    height: float = 1.0
    """Share of the drawing's own width and height."""
    bend: float = 0.0
    bend_phase: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What a caption names: `phrase` stands in it word for word and holds the noun (or its plural) in the end."""

    noun: str
    phrase: str
    name: str
    """The noun as the caption has it."""


@dataclass(frozen=True, kw_only=True)
class WideScene(Scene):
    """A picture's description; `items` are drawn in their order, `things` are numbered by it."""

    things: tuple[Thing, ...] = ()

    def colour(self) -> str | None:
        """As `Scene.colour`, and None as well for what is painted and has no caption."""
        if len(self.items) > 1:
            return None
        coats = _wide(self.items[0]).coats
        if not coats:
            return ""
        named = [word for thing in self.things for word in thing.phrase.split() if word in COLOURS]
        return named[0] if len(named) == 1 and coats[0].part == WHOLE and not coats[0].pattern else None

    def middles(self) -> dict[str, float]:
        """As `Scene.middles`."""
        if len(self.items) != len(self.nouns):
            return {}
        return {self.nouns[_wide(item).thing]: item.x for item in self.items}


Placed = tuple[str, list[Thing], list[tuple[int, Spot]]]
"""What the caption says, its things, and a spot for every object with the number of its thing, farthest first."""


class WideWorld(World):
    """The scenes that the second edition learns from; arguments as for `World`."""

    def __init__(
        self, atlas: Atlas, *, size: int = 128, backdrops: int = 32, device: str = "cpu", seed: int = 0
    ) -> None:
        super().__init__(atlas, size=size, backdrops=backdrops, device=device, seed=seed)
        self.parts = torch.from_numpy(find_parts(atlas.pixels)).to(self.device)
        self.extents = [_extent(tile[..., 3]) for tile in atlas.pixels]
        self.poses: dict[str, list[list[int]]] = {noun: [] for noun in self.nouns}
        drawings: dict[str, list[int]] = {}
        for index, (noun, drawing) in enumerate(zip(atlas.nouns, atlas.drawings, strict=True)):
            if drawing not in drawings:
                drawings[drawing] = []
                self.poses[noun].append(drawings[drawing])
            drawings[drawing].append(index)
        self.favourites = {
            noun: [pose for pose in poses if atlas.drawings[pose[0]].endswith(f"/{FAVOURITES[noun]}")]
            or poses
            for noun, poses in self.poses.items()
        }

    def sample(
        self, rng: random.Random, taste: Taste = WideTaste(), *, noun: str | None = None, place: str | None = None
    ) -> WideScene:  # fmt: skip
        """A random scene without anything withheld; with a noun, of that one thing (in a place of one's own choice)."""
        wide = taste if isinstance(taste, WideTaste) else WideTaste(**vars(taste))
        kind = 1.0 if noun else rng.random()
        count = 3 if kind < wide.triples else 2 if kind < wide.triples + wide.pairs else 1
        relation = rng.choice(RELATIONS) if count == 2 else ""
        if count == 2 and wide.sides and rng.random() < wide.sides:
            relation = "sides"
        nouns, where = self._choose(rng, count, relation, noun, place, wide.withheld)
        low, high = GROUND.get(where, PLAIN_GROUND)
        sprites = {name: self._drawing(rng, name, wide.favoured) for name in nouns}
        base = ground(rng, low, high)
        if count == 1 and kind < wide.triples + wide.pairs + wide.counts:
            return self._scene(rng, wide, where, nouns, sprites, *self._counted(rng, nouns[0], base))
        sized = wide.sized if relation in ("", *SIDE_BY_SIDE) else 0.0
        dressed = [
            self._dress(rng, wide, wide.recoloured * (1 if count == 1 else 0.75), sized, name)
            for name in nouns
        ]
        things = [thing for thing, _, _ in dressed]
        said, spots = self._layout(
            rng, wide, relation, things, [size for _, _, size in dressed], sprites, base
        )
        coats = [coats for _, coats, _ in dressed]
        return self._scene(rng, wide, where, nouns, sprites, said, things, spots, coats)

    def pair(self, rng: random.Random, first: str, second: str, place: str) -> WideScene:
        """Two things side by side, whether or not they are withheld: for measuring."""
        sprites = {name: self._drawing(rng, name) for name in (first, second)}
        things = [Thing(noun=name, phrase=name, name=name) for name in (first, second)]
        said = f"{article(first)} next to {article(second)}"
        spots = list(enumerate(beside(rng, ground(rng, *GROUND.get(place, PLAIN_GROUND)))))
        return self._scene(rng, WideTaste(), place, [first, second], sprites, said, things, spots)

    def _drawing(self, rng: random.Random, noun: str, favoured: float = 0.0) -> int:
        """A pose of a drawing: each drawing as likely as any other, or one of the favourites."""
        drawings = self.favourites if favoured and rng.random() < favoured else self.poses
        return rng.choice(rng.choice(drawings[noun]))

    def _choose(
        self,
        rng: random.Random,
        count: int,
        relation: str,
        noun: str | None,
        place: str | None,
        withheld: bool,
    ) -> tuple[list[str], str]:
        """Nouns that fit the relation and a place; what is withheld only where it is asked for."""
        while True:
            where = place or rng.choice(tuple(PLACES) if rng.random() < 0.72 else tuple(COLOURS))
            nouns = [noun] if noun else rng.sample(self.nouns, count)
            if relation == "on":
                nouns[1] = rng.choice(SUPPORTS)
            elif relation == "wearing":
                nouns = [rng.choice(WEARERS), "hat"]
            elif relation == "under":
                nouns[1] = "umbrella"
            known = all(name in self.by_noun for name in nouns)
            if (
                len(set(nouns)) == len(nouns)
                and known
                and (withheld or (noun and place) or allowed(nouns, where))
            ):
                return nouns, where

    def _dress(
        self, rng: random.Random, taste: WideTaste, recoloured: float, sized: float, noun: str
    ) -> tuple[Thing, tuple[Coat, ...], str]:
        """A thing of the noun in some look: what it is called, its coats, and its size where that is named."""
        adjective, coats = sample_look(rng) if rng.random() < recoloured else ("", ())
        unnamed = not adjective and any(coat.pattern for coat in coats)
        if unnamed and taste.unpatterned and rng.random() < taste.unpatterned:
            coats = ()
        size = rng.choice(tuple(SIZES)) if rng.random() < sized else ""
        phrase = " ".join(word for word in (size, adjective, noun) if word)
        return Thing(noun=noun, phrase=phrase, name=noun), coats, size

    def _layout(
        self, rng: random.Random, taste: WideTaste, relation: str, things: list[Thing], sizes: list[str],
        sprites: dict[str, int], base: Ground,
    ) -> tuple[str, list[tuple[int, Spot]]]:  # fmt: skip
        """What the caption says of the things, and their spots, farthest first."""
        named = [article(thing.phrase) for thing in things]
        if len(things) == 3:
            spots = [_resized(s, size) for s, size in zip(row(rng, 3, base, 0.31), sizes, strict=True)]
            order = rng.sample(named, 3)
            between = f"{named[1]} between {named[0]} and {named[2]}"
            return (listing(order) if rng.random() < 0.65 else between), _far_first(spots)
        if len(things) == 2:
            extents = [self.extents[sprites[thing.noun]] for thing in things]
            seat = things[1].noun == "chair"
            spots = related(rng, relation, base, *extents, seat=seat)
            if relation in SIDE_BY_SIDE:
                spots = [_resized(spot, size) for spot, size in zip(spots, sizes, strict=True)]
            said = rng.choice(relation_phrases(relation, *named))
            if relation in SIDE_BY_SIDE:
                return said, _far_first(spots)
            numbered = list(enumerate(spots))
            return said, numbered[::-1] if relation in ("on", "under") else numbered
        size = rng.uniform(*(SIZES[sizes[0]] if sizes[0] else taste.size))
        x = rng.uniform(0.5 - taste.spread, 0.5 + taste.spread)
        return _determined(rng, things[0].phrase), [(0, Spot(x=x, base=base(size), size=size))]

    def _counted(self, rng: random.Random, noun: str, base: Ground) -> Placed:
        count = rng.choice((2, 2, 3, 3, 4, 5))
        phrase = f"{COUNTS[count]} {plural(noun)}"
        thing = Thing(noun=noun, phrase=phrase, name=plural(noun))
        return phrase, [thing], _far_first(copies(rng, count, base), thing=0)

    def _scene(
        self, rng: random.Random, taste: WideTaste, place: str, nouns: list[str], sprites: dict[str, int], said: str,
        things: list[Thing], spots: list[tuple[int, Spot]], coats: Sequence[tuple[Coat, ...]] = ((),) * THINGS,
    ) -> WideScene:  # fmt: skip
        """The whole caption, and the objects in their build."""
        items = [
            _build(
                rng,
                WideItem(
                    sprite=sprites[things[number].noun], x=spot.x, base=spot.base, size=spot.size,
                    angle=rng.gauss(0, 4), flip=rng.random() < 0.5, coats=coats[number], thing=number,
                ),
            )
            for number, spot in spots
        ]  # fmt: skip
        caption = "" if rng.random() < taste.empty_caption else _caption(rng, said, place, len(things))
        return WideScene(
            caption=caption,
            place=place,
            backdrop=rng.randrange(len(self.backdrops[place])),
            items=tuple(items),
            nouns=tuple(nouns),
            things=tuple(things) if caption else (),
        )

    @torch.no_grad()
    def render(self, scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compose a batch: pictures (batch, 3, size, size) and masks of all objects (batch, 1, size, size)."""
        pictures, masks = self.compose(scenes)
        return pictures, masks.amax(1, keepdim=True)

    @torch.no_grad()
    def compose(self, scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compose a batch.

        Returns:
            Pictures (batch, 3, size, size) in [0, 1] and, for each thing, the mask of what is seen of it,
            (batch, THINGS, size, size) in [0, 1].
        """
        picture = self._backgrounds(scenes)
        masks = torch.zeros(len(scenes), THINGS, self.size, self.size, device=self.device)
        for layer in range(max(len(scene.items) for scene in scenes)):
            rows = [row for row, scene in enumerate(scenes) if layer < len(scene.items)]
            items = [_wide(scenes[row].items[layer]) for row in rows]
            shadow, sprite = self._shadow(items), self._place(items, self._paint(items))
            alpha = sprite[:, 3:]
            index = torch.tensor(rows, device=self.device)
            picture[index] = picture[index] * (1 - shadow) * (1 - alpha) + sprite[:, :3]
            things = torch.tensor([item.thing for item in items], device=self.device)
            masks[index] *= 1 - alpha
            masks[index, things] = torch.maximum(masks[index, things], alpha[:, 0])
        return picture.clamp(0, 1), masks

    @torch.no_grad()
    def portraits(self, scenes: Sequence[WideScene]) -> torch.Tensor:
        """The drawing of each scene's first thing in its coats, whole and upright however it stands in the scene.

        Premultiplied, (batch, 4, 128, 128). The balance of colours is drawn anew: it differs a little from the scene's.
        """
        items = [next(item for item in map(_wide, scene.items) if item.thing == 0) for scene in scenes]
        return self._paint(items)

    def _paint(self, items: Sequence[Item]) -> torch.Tensor:
        """The objects' pictures in their coats, premultiplied. (batch, 4, 128, 128)."""
        index = torch.tensor([item.sprite for item in items], device=self.device)
        sprite = self.sprites[index].float() / 255
        rgb = paint(sprite[:, :3], self.parts[index], [_wide(item).coats for item in items])
        alpha, count = sprite[:, 3:], len(items)
        balance = 1 + 0.05 * torch.randn(count, 3, 1, 1, device=self.device)
        rgb = (rgb * balance + 0.03 * torch.randn(count, 1, 1, 1, device=self.device)).clamp(0, 1)
        return torch.cat([rgb * alpha, alpha], 1)

    def _place(self, items: Sequence[Item], sprite: torch.Tensor) -> torch.Tensor:
        """The objects in their build, scaled, turned and moved to where they stand. (batch, 4, size, size)."""
        half = [row for row, item in enumerate(items) if item.size * self.size < 0.5 * sprite.shape[-1]]
        full = sorted(set(range(len(items))) - set(half))
        output = torch.zeros(len(items), 4, self.size, self.size, device=self.device)
        for rows, shrink in ((full, 1), (half, 2)):  # a much smaller copy would alias
            if rows:
                tiles = sprite[torch.tensor(rows, device=self.device)]
                tiles = F.avg_pool2d(tiles, shrink) if shrink > 1 else tiles
                grid = self._grid([_wide(items[row]) for row in rows])
                output[torch.tensor(rows, device=self.device)] = F.grid_sample(
                    tiles, grid, align_corners=False
                )
        return output

    def _grid(self, items: Sequence[WideItem]) -> torch.Tensor:
        """For each pixel of the picture, the place in the drawing that it shows, −1 … 1. (batch, size, size, 2)."""
        number = lambda read: self._numbers(items, read)  # noqa: E731
        steps = (torch.arange(self.size, device=self.device) + 0.5) / self.size
        size, angle = number(lambda i: i.size), number(lambda i: i.angle) * torch.pi / 180
        x = 2 * (steps.view(1, 1, -1) - number(lambda i: i.x)) / size
        y = 2 * (steps.view(1, -1, 1) - number(lambda i: i.base) + size / 2) / size
        across, down = (
            x * torch.cos(angle) + y * torch.sin(angle),
            y * torch.cos(angle) - x * torch.sin(angle),
        )
        down = 1 - (1 - down) / number(lambda i: i.height)
        across = across / number(lambda i: i.width)
        across = across + number(lambda i: i.bend) * torch.sin(2.5 * down + number(lambda i: i.bend_phase))
        return torch.stack([across * (1 - 2 * number(lambda i: i.flip)), down], -1)


def _wide(item: Item) -> WideItem:
    if not isinstance(item, WideItem):
        raise TypeError(f"A wide world draws WideItem, not {type(item).__name__}; sample the scene from it.")
    return item


def _extent(alpha: np.ndarray) -> Extent:
    """How high a drawing stands in its tile and where its head is: the middle of the uppermost tenth."""
    rows = np.flatnonzero((alpha > 127).any(1))
    top, bottom = rows[0], rows[-1] + 1
    columns = np.nonzero(alpha[top : top + max(1, (bottom - top) // 10)] > 127)[1]
    side = alpha.shape[0]
    return Extent(height=(side - top) / side, crown=float(columns.mean() / side - 0.5))


def _build(rng: random.Random, item: WideItem) -> WideItem:
    """The object with proportions and a bend of its own; half of the objects keep their drawing's."""
    if rng.random() < 0.5:
        return item
    return replace(
        item,
        width=rng.uniform(0.82, 0.96),
        height=rng.uniform(0.84, 1.0),
        bend=rng.uniform(-0.05, 0.05),
        bend_phase=rng.uniform(0, 6.28),
    )


def _resized(spot: Spot, size: str) -> Spot:
    """A thing among others that is called small or large."""
    return replace(spot, size=spot.size * {"small": 0.6, "large": 1.18}.get(size, 1.0))


def _far_first(spots: list[Spot], thing: int | None = None) -> list[tuple[int, Spot]]:
    """Spots with the numbers of their things (their own, or one for all); who stands lower is nearer."""
    numbered = [(index if thing is None else thing, spot) for index, spot in enumerate(spots)]
    return sorted(numbered, key=lambda pair: pair[1].base)


def _determined(rng: random.Random, phrase: str) -> str:
    kind = rng.random()
    return article(phrase) if kind < 0.7 else f"{'the' if kind < 0.9 else rng.choice(('my', 'one'))} {phrase}"


def _caption(rng: random.Random, said: str, place: str, things: int) -> str:
    """The things and their place, in either order, behind an opening or none; sometimes without the place."""
    opening = rng.choice(("", "", "", "a photo of ", "a picture of ", *OPENINGS))
    kind, where = rng.random(), rng.choice(place_phrases(place))
    if kind < 0.06:
        return f"{opening}{said}"
    if kind < 0.16:
        return f"{where}, {said}"
    verb = rng.choice(("", "", "sitting ", "standing ")) if things == 1 else ""
    return f"{opening}{said} {verb}{where}"
