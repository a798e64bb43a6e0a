"""Where the embedded model lies: pocket, a small text-to-image model that comes with the package (docs/pocket.md)."""

from pathlib import Path

__all__ = ["bundle_path", "model_path", "scorer_path"]

_POCKET = Path(__file__).parent / "pocket"


def model_path() -> Path:
    """The embedded model's folder, in diffusers' `StableDiffusionPipeline` layout."""
    return _POCKET / "model"


def bundle_path() -> Path:
    """The embedded bundle: the exported graphs lie beside the weights that they read, in one folder."""
    return model_path()


def scorer_path() -> Path:
    """The folder of the scorer of this model's pictures (`perfusion.judging.pocket_scorer`)."""
    return _POCKET / "scorer"
