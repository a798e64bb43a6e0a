"""The stage that measures: what the scorer sees in every picture, and how far the plain superclass has drifted.

Kept are embeddings and answers, a few hundred numbers a picture; the report makes its figures from them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.evaluation.cutting import as_array, cut, object_masks, overlap
from benchmarks.evaluation.drawing import (
    BASES,
    base_drawn_by,
    drawing_path,
    drawing_units,
    read_drawings,
    same_drawings,
)
from benchmarks.evaluation.methods import Method, method_named
from benchmarks.evaluation.models import pocket_scorer
from benchmarks.evaluation.plan import Plan, pictures_of, subject_named
from benchmarks.evaluation.units import Context, Unit
from perfusion.files import writing
from recipes.pocket.sprites import Atlas, held_out_atlas
from recipes.pocket.subjects import Subject, only
from recipes.pocket.world import Taste, World

__all__ = [
    "Measures",
    "measure_pictures",
    "measuring_units",
    "own_embeddings",
    "pair_path",
    "read_measures",
    "render_pair",
    "render_subject",
    "target_path",
    "write_measures",
]

Array = NDArray[np.float32]
SECONDS = 0.08
RENDER_SEED = 911


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """What the scorer says of some pictures; the arrays have a row each."""

    rows: tuple[dict[str, Any], ...]
    """As in `Drawings`."""
    whole: Array
    """(n, 128) embeddings of whole pictures, of length one."""
    objects: Array
    """(n, nouns, 128) embeddings of the object alone, for each noun that was asked for; (n, 0, 128) where none was."""
    nouns: Array
    """(n, 24) logits."""
    places: tuple[str, ...]
    colours: tuple[str, ...]
    distance: Array
    """(n,) root mean square difference from the base model's picture, of 255 levels; NaN where there is none."""

    def seen(self, row: int, count: int = 1) -> tuple[str, ...]:
        """The likeliest nouns of a picture."""
        from perfusion.judging.pocket_scorer import NOUN_NAMES

        return tuple(NOUN_NAMES[index] for index in np.argsort(-self.nouns[row])[:count])


def measuring_units(methods: Sequence[Method], subjects: Sequence[str], plan: Plan) -> list[Unit]:
    """One for every file of drawings, and one for every subject's own pictures."""
    units = [
        Unit(path=target_path(name), cost=5 + 0.3 * plan.renders, call=measure_subject, arguments=(name,))
        for name in subjects
    ]
    for pair in plan.pairs_among(subjects):
        units.append(Unit(path=pair_path(*pair), cost=5, call=measure_pair, arguments=pair))
    for unit in drawing_units(methods, subjects, plan):
        whom, kind, _ = unit.path.name.split(".")
        path = Path("measure") / unit.path.relative_to("draw")
        arguments = (unit.path.parent.name, whom, kind)
        units.append(Unit(path=path, cost=0.15 * unit.cost, call=measure_drawings, arguments=arguments))
    return units


def target_path(subject: str) -> Path:
    """Of what is known of a subject's own pictures, relative to the work folder."""
    return Path("measure") / "subjects" / f"{subject}.npz"


def pair_path(first: str, second: str) -> Path:
    """Of what is seen in true pictures of two subjects, relative to the work folder."""
    return Path("measure") / "pairs" / f"{first}+{second}.npz"


def measure_pictures(
    pictures: NDArray[np.uint8],
    rows: Sequence[dict[str, Any]],
    nouns: Sequence[str],
    originals: NDArray[np.uint8] | None = None,
) -> Measures:
    """Score pictures, whole and for each noun cut to its object.

    Args:
        before: (n, …) the base model's pictures, for the distance.
    """
    verdict = pocket_scorer()([Image.fromarray(one) for one in pictures])
    cuts = [
        pocket_scorer()(
            [cut(one, mask) for one, mask in zip(pictures, object_masks(pictures, noun), strict=True)]
        ).embeddings
        for noun in nouns
    ]
    distance = np.full(len(pictures), np.nan)
    if originals is not None:
        distance = np.sqrt(np.square(pictures.astype(np.float64) - originals).mean((1, 2, 3)))
    return Measures(
        rows=tuple(rows), whole=verdict.embeddings, nouns=verdict.nouns, places=verdict.place, colours=verdict.colour,
        objects=np.stack(cuts, 1) if cuts else np.empty((len(pictures), 0, verdict.embeddings.shape[1]), np.float32),
        distance=distance.astype(np.float32),
    )  # fmt: skip


def measure_drawings(context: Context, name: str, label: str, kind: str) -> None:
    """One file of drawings."""
    drawings, nouns, originals = (
        read_drawings(context.work / drawing_path(name, label, kind)),
        list[str](),
        None,
    )
    if name in BASES:
        nouns = [noun.replace("-", " ") for noun in label.split("+")]
    else:
        nouns = [subject_named(one).noun for one in label.split("+")]
    if kind == "plain" and name not in BASES:
        base = base_drawn_by(method_named(name).artist)
        original = read_drawings(context.work / drawing_path(base, nouns[0], "plain"))
        originals = original.pictures[same_drawings(drawings.rows, original.rows)]
    measures = measure_pictures(drawings.pictures, drawings.rows, nouns, originals)
    write_measures(context.work / drawing_path(name, label, kind, "measure"), measures)


def measure_subject(context: Context, name: str) -> None:
    """A subject's five pictures with their true masks, and true pictures that nobody has seen, with found ones."""
    subject, plan = subject_named(name), context.plan
    own_objects, own_whole = own_embeddings(context, subject)
    renders, true, rows = render_subject(subject, plan)
    masks = object_masks(renders, subject.noun)
    rendered = measure_pictures(renders, rows, [subject.noun])
    exact = pocket_scorer()([cut(one, mask) for one, mask in zip(renders, true, strict=True)]).embeddings
    extra = {
        "own": own_objects,
        "own_whole": own_whole,
        "exact": exact,
        "overlap": np.array([overlap(a, b) for a, b in zip(masks, true, strict=True)], np.float32),
    }
    write_measures(context.work / target_path(name), rendered, extra)


def own_embeddings(context: Context, subject: Subject) -> tuple[Array, Array]:
    """Of a subject's five pictures, (5, 128): cut to the object by their true masks, and whole."""
    folder = pictures_of(context.work, subject)
    pictures = as_array([Image.open(path) for path in sorted(folder.glob("*.png"))])
    masks = [Image.open(path).convert("L") for path in sorted(folder.glob("masks/*.png"))]
    levels = [np.asarray(mask, np.float32) / np.float32(255) for mask in masks]
    objects = pocket_scorer()([cut(one, mask) for one, mask in zip(pictures, levels, strict=True)]).embeddings
    return objects, pocket_scorer()([Image.fromarray(one) for one in pictures]).embeddings


def measure_pair(context: Context, first: str, second: str) -> None:
    """True pictures of two subjects side by side: how many the probe can recognise at all."""
    pictures, rows = render_pair([subject_named(first), subject_named(second)], context.plan)
    write_measures(context.work / pair_path(first, second), measure_pictures(pictures, rows, []))


def render_pair(subjects: Sequence[Subject], plan: Plan) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """True pictures of two subjects in the places of the pair prompts, as the world paints pairs; and their places."""
    parts = [only(held_out_atlas(), subject.noun, subject.style) for subject in subjects]
    atlas = Atlas(
        pixels=np.concatenate([part.pixels for part in parts]), nouns=sum((part.nouns for part in parts), ()),
        styles=sum((part.styles for part in parts), ()),
    )  # fmt: skip
    places = [prompt.place for prompt in plan.pair_prompts]
    pictures, _, rows = _rendered(atlas, Taste(pairs=1.0, recoloured=0.0), None, places, plan.renders)
    return pictures, rows


def render_subject(subject: Subject, plan: Plan) -> tuple[NDArray[np.uint8], Array, list[dict[str, Any]]]:
    """True pictures of a subject in the places of the prompts, their masks (n, height, width), and what they show."""
    alone = only(held_out_atlas(), subject.noun, subject.style)
    taste = Taste(size=(0.6, 0.85), spread=0.08, recoloured=0.0)
    return _rendered(alone, taste, subject.noun, list(plan.numbers_by_place), plan.renders)


def _rendered(
    atlas: Atlas, taste: Taste, noun: str | None, places: Sequence[str], count: int
) -> tuple[NDArray[np.uint8], Array, list[dict[str, Any]]]:
    rng, size = random.Random(RENDER_SEED), 128
    world = World(atlas, size=size, backdrops=4, seed=RENDER_SEED)
    scenes = [
        world.sample(rng, taste, noun=noun, place=places[number % len(places)]) for number in range(count)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RENDER_SEED)
        pictures, masks = world.render([replace(scene) for scene in scenes])
    levels = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [{"caption": scene.caption, "place": scene.place} for scene in scenes]
    return levels, masks[:, 0].numpy(), rows


def read_measures(path: Path) -> tuple[Measures, dict[str, Array]]:
    """What a unit of this stage wrote, and the arrays that only a subject's file has."""
    with np.load(path) as arrays:
        texts = json.loads(str(arrays["texts"]))
        numbers = {name: arrays[name] for name in arrays.files if name != "texts"}
    own: dict[str, Any] = {name: numbers.pop(name) for name in ("whole", "objects", "nouns", "distance")}
    own |= {name: tuple(texts[name]) for name in ("rows", "places", "colours")}
    return Measures(**own), numbers


def write_measures(path: Path, measures: Measures, extra: dict[str, Array] | None = None) -> None:
    """A finished file of measures."""
    texts = {"rows": measures.rows, "places": measures.places, "colours": measures.colours}
    arrays: dict[str, Any] = {
        name: getattr(measures, name) for name in ("whole", "objects", "nouns", "distance")
    }
    with writing(path) as file:
        np.savez_compressed(file, texts=np.array(json.dumps(texts)), **(arrays | (extra or {})))
