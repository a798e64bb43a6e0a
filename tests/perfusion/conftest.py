"""A tiny base model with random weights, in pocket's structure."""

import random
from pathlib import Path

import pytest

from perfusion.base import BaseModel, load_base
from perfusion.pocket.architecture import build_pipeline
from perfusion.pocket.vocabulary import NOUNS, PLACES, article, place_phrases


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the tiny pipeline, with captions."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    pipeline = build_pipeline("tiny")
    pipeline.save_pretrained(folder)
    (folder / "perfusion.json").write_text('{"family": "pocket"}')
    rng = random.Random(0)
    places = [phrase for place in PLACES for phrase in place_phrases(place)]
    captions = [f"a photo of {article(rng.choice(list(NOUNS)))} {rng.choice(places)}\n" for _ in range(400)]
    (folder / "captions.txt").write_text("".join(captions))
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_model: Path) -> BaseModel:
    """The tiny model, opened; tests must leave it as it is."""
    return load_base(tiny_model)
