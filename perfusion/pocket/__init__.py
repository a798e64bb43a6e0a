"""Pocket: the embedded text-to-image model, its world, and the recipe that trained it."""

from pathlib import Path

__all__ = ["bundle_path", "model_path", "scorer_path"]


def model_path() -> Path:
    """The embedded model's folder, in diffusers' `StableDiffusionPipeline` layout."""
    return Path(__file__).parent / "model"


def bundle_path() -> Path:
    """The embedded bundle: the exported graphs lie beside the weights that they read, in one folder."""
    return model_path()


def scorer_path() -> Path:
    """The folder of the judge of this model's pictures (`perfusion.pocket.judge`)."""
    return Path(__file__).parent / "scorer"
