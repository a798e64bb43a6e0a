"""The scorer of pocket's pictures: what it is taught, and that it learns."""

import random
from pathlib import Path

import pytest
import torch

from perfusion.judging.pocket_scorer import COLOUR_NAMES, NOUN_NAMES, PLACE_NAMES, PocketScorer
from perfusion.pocket.vocabulary import words
from recipes.pocket import language
from recipes.pocket.drawings import wide_atlas
from recipes.pocket.editions import EDITIONS
from recipes.pocket.looks import Coat
from recipes.pocket.scorer import ScorerSize, build_scorer
from recipes.pocket.sprites import Atlas, training_atlas
from recipes.pocket.tokenizer import build_tokenizer
from recipes.pocket.train_scorer import (
    ScorerConfig,
    accuracies,
    coverage,
    label,
    spoil,
    texture,
    train_scorer,
)
from recipes.pocket.wide_world import Thing, WideItem, WideScene, WideTaste, WideWorld
from recipes.pocket.world import Item, Scene, Taste, World


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


def test_middles_belong_to_the_nouns_and_copies_have_none() -> None:
    """The first noun of a pair is the left one, whatever the order of drawing."""
    labels = label(
        [
            scene(item(x=0.75), item(x=0.25), nouns=("cat", "owl")),
            scene(item(x=0.25), item(x=0.75), nouns=("dog",)),
        ]
    )
    cat, owl, dog = (NOUN_NAMES.index(noun) for noun in ("cat", "owl", "dog"))
    assert labels.where[0, [cat, owl]].tolist() == [0.25, 0.75]
    assert (labels.where[0] >= 0).sum() == 2
    assert (labels.where[1] == -1).all()
    assert labels.nouns[1, dog] == 1


def wide_scene(phrases: str, *items: WideItem, nouns: tuple[str, ...] = ("cat",)) -> WideScene:
    things = tuple(Thing(noun=noun, phrase=phrase, name=noun) for noun, phrase in
                   zip(nouns, phrases.split(","), strict=True)) if phrases else ()  # fmt: skip
    return WideScene(caption=phrases, place="beach", backdrop=0, items=items, nouns=nouns, things=things)


def wide_item(*coats: Coat, thing: int = 0, x: float = 0.5) -> WideItem:
    return WideItem(sprite=0, x=x, base=0.9, size=0.5, coats=coats, thing=thing)


def test_wide_scenes_tell_a_colour_only_where_its_name_says_it_all() -> None:
    red, spots = Coat(colour=(1, 0, 0)), Coat(colour=(0, 0, 1), pattern="spots")
    cases = {
        "": wide_scene("cat", wide_item()),
        "red": wide_scene("small red cat", wide_item(red)),
        "red, its ears too": wide_scene("red cat", wide_item(red, Coat(colour=(0, 1, 0), part=1))),
        "not named": wide_scene("", wide_item(red)),
        "a part": wide_scene("cat", wide_item(Coat(colour=(1, 0, 0), part=0))),
        "two": wide_scene("red and blue cat", wide_item(red, spots)),
        "hue": wide_scene("cat", wide_item(Coat(hue=0.3))),
        "several": wide_scene("two cats", wide_item(), wide_item()),
    }
    colours = {name: scene.colour() for name, scene in cases.items()}
    assert (colours.pop(""), colours.pop("red"), colours.pop("red, its ears too")) == ("", "red", "red")
    assert set(colours.values()) == {None}


def test_wide_scenes_know_their_things_middles_in_any_order_of_drawing() -> None:
    things = wide_item(thing=1, x=0.3), wide_item(thing=0, x=0.8)
    assert wide_scene("cat,owl", *things, nouns=("cat", "owl")).middles() == {"owl": 0.3, "cat": 0.8}
    assert wide_scene("two cats", *things).middles() == {}


def test_counts_reach_as_far_as_the_scorer_does() -> None:
    five = wide_scene("five cats", *(wide_item() for _ in range(5)))
    assert (label([five]).count.tolist(), label([five], counts=5).count.tolist()) == ([2], [4])


def test_coverage_is_each_nouns_share_of_each_cell() -> None:
    masks = torch.zeros(1, 3, 8, 8)
    masks[0, 0, :, :4] = 1
    masks[0, 1, 4:, 4:6] = 1
    covered = coverage([scene(item(), item(), nouns=("cat", "owl"))], masks, cells=2)
    cat, owl = NOUN_NAMES.index("cat"), NOUN_NAMES.index("owl")
    assert covered[0, cat].tolist() == [[1, 0], [1, 0]]
    assert covered[0, owl].tolist() == [[0, 0], [0, 0.5]]
    assert covered.sum() == 2.5


def test_what_a_thing_looks_like_is_learned_where_its_mask_is(tmp_path: Path) -> None:
    """Without the masks the signs beside a thing stay near zero: nothing says that it is not there."""
    atlas = wide_atlas()
    rows = [row for row, noun in enumerate(atlas.nouns) if noun in ("bus", "sunflower")]
    told = {key: tuple(getattr(atlas, key)[row] for row in rows) for key in ("nouns", "styles", "drawings")}
    two = WideWorld(Atlas(pixels=atlas.pixels[rows], **told), size=128, backdrops=1)
    taste = WideTaste(size=(0.4, 0.5), spread=0.2, recoloured=0.0)
    tokenizer = build_tokenizer(language.words())
    scorer = build_scorer(tokenizer)
    config = ScorerConfig(steps=80, batch=16, textures=2, taste=taste)
    assert train_scorer(scorer, two, tokenizer, config, tmp_path / "scorer.safetensors", minutes=5)
    scenes = [two.sample(random.Random(seed), taste) for seed in range(64)]
    pictures, masks = two.compose(scenes)
    with torch.no_grad():
        signs = scorer.answer(pictures * 2 - 1).signs
    covered = coverage(scenes, masks, signs.shape[-1])[label(scenes).nouns.bool()]
    own = signs[label(scenes).nouns.bool()]
    assert own[covered == 0].mean() < -1.5 < own[covered > 0.5].mean()


def test_the_shares_that_the_page_gives_of_the_scorer_are_its_own() -> None:
    root = Path(__file__).parents[2]
    accuracies = PocketScorer().accuracies
    page = " ".join((root / "docs" / "pocket.md").read_text(encoding="utf-8").split())
    sentence = page.split("On 2,048 scenes of seeds that no training uses:")[1].split(". ")[0]
    for name, said in (
        ("noun", "noun"), ("pair", "both of a pair"), ("side", "the side"), ("place", "place"),
        ("colour", "colour"), ("count", "count"), ("scene", "scene against texture"),
    ):  # fmt: skip
        assert f"{said} {100 * accuracies[name]:.1f} %" in sentence


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


def test_learns_which_of_two_things_stands_left(tmp_path: Path) -> None:
    """Two nouns that look unlike, at the two sides: after a few steps their places are told from the pictures."""
    atlas = training_atlas()
    rows = [row for row, noun in enumerate(atlas.nouns) if noun in ("bus", "sunflower")]
    nouns, styles = (tuple(names[row] for row in rows) for names in (atlas.nouns, atlas.styles))
    some = Atlas(pixels=atlas.pixels[rows], nouns=nouns, styles=styles)
    two = World(some, size=64, backdrops=1)
    taste, tokenizer = Taste(pairs=1.0, recoloured=0.0), build_tokenizer(words())
    scorer = build_scorer(tokenizer)
    before = accuracies(scorer, two, taste=taste, count=128)["side"]
    config = ScorerConfig(steps=60, batch=16, textures=2, taste=taste)
    assert train_scorer(scorer, two, tokenizer, config, tmp_path / "scorer.safetensors", minutes=5)
    after = accuracies(scorer, two, taste=taste, count=128)["side"]
    assert after >= 0.9 > 0.8 > before


def test_scorer_of_the_second_edition_looks_at_its_world() -> None:
    edition = EDITIONS[2].scorer
    world = WideWorld(wide_atlas(), size=64, backdrops=1)
    scorer = build_scorer(build_tokenizer(words()), edition.size).eval()
    with torch.no_grad():
        answers = scorer.answer(torch.rand(2, 3, 64, 64) * 2 - 1)
        shares = accuracies(scorer, world, taste=edition.taste, count=64)
    assert answers.count.shape == (2, 5)
    assert ((answers.where > 0) & (answers.where < 1)).all()
    assert set(shares) == {"noun", "pair", "side", "place", "colour", "count", "scene"}
    assert isinstance(edition.taste, WideTaste)
    assert edition.size != ScorerSize()
