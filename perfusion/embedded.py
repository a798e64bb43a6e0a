"""Where the embedded model lies: pocket, a small text-to-image model that comes with the package (docs/pocket.md)."""

import json
from functools import cache
from pathlib import Path

__all__ = ["EDITIONS", "bundle_path", "embedded_fingerprint", "is_embedded", "model_path", "scorer_path"]

_POCKET = Path(__file__).parent / "pocket"
EDITIONS = ("pocket", "pocket2")
"""Families of the embedded model, the one that ships last."""


def is_embedded(family: str) -> bool:
    """Whether a base model's family is an edition of the embedded model, whose words and probes are known."""
    return family in EDITIONS


def model_path() -> Path:
    """The embedded model's folder, in diffusers' `StableDiffusionPipeline` layout."""
    return _POCKET / "model"


def bundle_path() -> Path:
    """The embedded bundle: the exported graphs lie beside the weights that they read, in one folder."""
    return model_path()


@cache
def embedded_fingerprint() -> str:
    """The fingerprint of the embedded model, which its bundles and concepts carry; fine-tunes of it have others."""
    facts = json.loads((bundle_path() / "bundle.json").read_text("utf-8"))
    return str(facts["base_fingerprint"])


def scorer_path() -> Path:
    """The folder of the scorer of this model's pictures (`perfusion.judging.pocket_scorer`)."""
    return _POCKET / "scorer"
