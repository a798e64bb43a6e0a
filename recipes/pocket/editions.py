"""The two editions of the embedded model: what each is, what it sees and how it is trained."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recipes.pocket.drawings import wide_atlas
from recipes.pocket.scorer import ScorerSize
from recipes.pocket.sprites import training_atlas
from recipes.pocket.train_scorer import ScorerConfig
from recipes.pocket.train_unet import Trainer, UnetConfig
from recipes.pocket.train_vae import Pictures, VaeConfig, gauge_pictures
from recipes.pocket.train_wide import WideConfig, WideTrainer, wide_taste_at
from recipes.pocket.wide_world import WideScene, WideTaste, WideWorld
from recipes.pocket.world import Taste, World

__all__ = ["EDITIONS", "JUDGED", "Edition", "edition_of"]

WIDE_SCENES = WideTaste(pairs=0.3, triples=0.15, counts=0.12, recoloured=0.6)
"""What the autoencoder sees."""
JUDGED = WideTaste(spread=0.18, pairs=0.3, triples=0.05, counts=0.15, recoloured=0.5, withheld=True)
"""What the scorer sees: all of the world, since it judges what the model composes."""


@dataclass(frozen=True, kw_only=True)
class Edition:
    """One edition of the recipe."""

    family: str
    """What the model's folder calls itself; also the key of its `Size`."""
    world: Callable[..., World]
    """Takes `size`, `backdrops`, `device`, `seed`."""
    vae: VaeConfig
    unet: UnetConfig
    scorer: ScorerConfig
    trainer: Callable[[Any, Any, Any], Trainer]
    caption_taste: Taste
    """The scenes whose captions describe the model's language."""
    gauge: Callable[[World], Pictures]
    """Fixed pictures that the autoencoder is judged by."""
    guidance_scale: float = 3.0
    steps: int = 20
    """Of a picture."""
    lr_values: float = 0.03
    """At which its concepts' values learn."""
    values: str = "layers"
    """What is learned of them, see `perfusion.training.TrainingConfig`."""


def first_world(**options: Any) -> World:
    """The first edition's world."""
    return World(training_atlas(), **options)


def second_world(**options: Any) -> WideWorld:
    """The second edition's world."""
    return WideWorld(wide_atlas(), **options)


def old_and_new_drawings(world: World, seed: int = 7, count: int = 24) -> Pictures:
    """The same scenes at every call: some of drawings that the first edition knew, some of those it did not."""
    first, rng = len(training_atlas().pixels), random.Random(seed)
    scenes: dict[str, list[WideScene]] = {"old drawings": [], "new drawings": []}
    while any(len(some) < count for some in scenes.values()):
        scene = world.sample(rng, WIDE_SCENES)
        known = {item.sprite < first for item in scene.items}
        if len(known) == 1 and isinstance(scene, WideScene):
            scenes["old drawings" if known.pop() else "new drawings"].append(scene)
    with world.seeded(seed):
        return {name: world.render(some[:count])[0] * 2 - 1 for name, some in scenes.items()}


EDITIONS = {
    1: Edition(
        family="pocket",
        world=first_world,
        vae=VaeConfig(),
        unet=UnetConfig(),
        scorer=ScorerConfig(),
        trainer=Trainer,
        caption_taste=Taste(pairs=0.25, counts=0.1),
        gauge=gauge_pictures,
    ),
    2: Edition(
        family="pocket2",
        world=second_world,
        vae=VaeConfig(
            steps=8_400,
            whole_every=8,
            edges=2.0,
            adam_lr=7e-4,
            muon_lr=0.012,
            save_every=300,
            taste=WIDE_SCENES,
        ),
        unet=WideConfig(),
        scorer=ScorerConfig(
            steps=10_000, taste=JUDGED, size=ScorerSize(channels=(48, 96, 192, 256), blocks=2, counts=5)
        ),
        trainer=WideTrainer,
        caption_taste=wide_taste_at(1.0),
        gauge=old_and_new_drawings,
        guidance_scale=5.0,
        lr_values=0.004,
        values="encoding",
    ),
}
"""By number."""


def edition_of(family: str) -> Edition:
    """The edition that is this family."""
    (edition,) = (edition for edition in EDITIONS.values() if edition.family == family)
    return edition
