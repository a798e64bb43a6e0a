"""The second edition's training, so small that it takes seconds."""

from recipes.pocket.architecture import build_pipeline
from recipes.pocket.drawings import wide_atlas
from recipes.pocket.train_wide import WideConfig, WideTrainer
from recipes.pocket.wide_world import WideWorld

CONFIG = WideConfig(steps=6, batch=4, pool=16, fresh=4, first=8, known=128, save_every=10_000)


def small_world() -> WideWorld:
    """Scenes of 32 pixels."""
    return WideWorld(wide_atlas(), size=32, backdrops=1)


def small_trainer(world: WideWorld) -> WideTrainer:
    """A training of six steps."""
    return WideTrainer(build_pipeline("tiny2"), world, CONFIG)
