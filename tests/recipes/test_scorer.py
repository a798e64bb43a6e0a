"""The scorer of pocket's pictures: what it is taught, and that it learns."""

import random
from pathlib import Path

import pytest
import torch

from perfusion.judging.pocket_scorer import COLOUR_NAMES, NOUN_NAMES, PLACE_NAMES
from perfusion.pocket.vocabulary import words
from recipes.pocket.scorer import build_scorer
from recipes.pocket.sprites import training_atlas
from recipes.pocket.tokenizer import build_tokenizer
from recipes.pocket.train_scorer import ScorerConfig, accuracies, label, spoil, texture, train_scorer
from recipes.pocket.world import Item, Scene, World


@pytest.fixture(scope="module")
def world() -> World:
    return World(training_atlas(), size=32, backdrops=2)


def item(**changes: object) -> Item:
    return Item(**{"sprite": 0, "x": 0.5, "base": 0.9, "size": 0.5, **changes})


def scene(*items: Item, nouns: tuple[str, ...] = ("cat",), place: str = "beach") -> Scene:
    return Scene(caption="", place=place, backdrop=0, items=items, nouns=nouns)


def test_labels_say_what_is_in_the_scene_and_nothing_where_it_is_ambiguous() -> None:
    red = COLOUR_NAMES.index("red") - 1
    labels = label(
        [
            scene(item(tint=red)),
            scene(item(), item(), nouns=("dog",), place="blue"),
            scene(item(tint=red), item(), nouns=("cat", "owl")),
            scene(item(hue=0.4)),
        ]
    )
    assert [[NOUN_NAMES[i] for i in row.nonzero()[:, 0]] for row in labels.nouns] == [
        ["cat"], ["dog"], ["cat", "owl"], ["cat"],
    ]  # fmt: skip
    assert [PLACE_NAMES[i] for i in labels.place] == ["beach", "blue", "beach", "beach"]
    assert labels.colour.tolist() == [red + 1, -1, -1, -1]
    assert labels.count.tolist() == [0, 1, -1, 0]


def test_spoiled_pictures_and_textures_stay_in_range_and_about_half_are_left_alone(world: World) -> None:
    rng = random.Random(0)
    torch.manual_seed(0)
    pictures = world.render([world.sample(rng) for _ in range(40)])[0] * 2 - 1
    spoiled, nothing = spoil(pictures, rng), texture(6, 32, rng, pictures)
    untouched = sum(torch.equal(before, after) for before, after in zip(pictures, spoiled, strict=True))
    assert 8 <= untouched <= 32
    assert nothing.shape == (6, 3, 32, 32)
    assert float(torch.cat([spoiled, nothing]).abs().max()) <= 1


def test_embeddings_have_length_one() -> None:
    tokenizer = build_tokenizer(words())
    scorer = build_scorer(tokenizer).eval()
    with torch.no_grad():
        pictures = scorer.answer(torch.rand(3, 3, 64, 64) * 2 - 1).embeddings
        texts = scorer.embed_text(tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids)
    torch.testing.assert_close(pictures.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(1))


def test_learns_places_in_a_few_steps_and_resumes(world: World, tmp_path: Path) -> None:
    """Backgrounds come first: 24 places are far above chance long before nouns are."""
    tokenizer = build_tokenizer(words())
    scorer = build_scorer(tokenizer)
    config = ScorerConfig(steps=50, batch=32)
    checkpoint = tmp_path / "scorer.safetensors"
    assert train_scorer(scorer, world, tokenizer, config, checkpoint, minutes=5)
    place = accuracies(scorer, world, count=128)["place"]
    assert place > 0.3
    again = build_scorer(tokenizer)
    assert train_scorer(again, world, tokenizer, config, checkpoint, minutes=5)
    assert accuracies(again, world, count=128)["place"] == place
