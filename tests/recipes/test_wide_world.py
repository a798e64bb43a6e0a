"""The second edition's world: what it withholds, what its captions say, what its masks show."""

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.pocket.vocabulary import COLOURS, NOUNS, PLACES, article
from recipes.pocket.drawings import wide_atlas
from recipes.pocket.language import words
from recipes.pocket.layouts import Extent, ground, related
from recipes.pocket.looks import PARTS, Coat, find_parts, paint
from recipes.pocket.subjects import SUBJECTS, Subject, compose
from recipes.pocket.tokenizer import build_tokenizer
from recipes.pocket.wide_world import FAVOURITES, WideItem, WideScene, WideTaste, WideWorld
from recipes.pocket.withheld import is_withheld, withheld_noun_pairs, withheld_noun_places
from tests.recipes.small import small_world

EXAMPLES = Path(__file__).parents[2] / "examples" / "subjects"
FIRST_PLACES = [("cat", "grass"), ("cat", "night"), ("cat", "mountains")]
FIRST_PAIRS = [("cat", "robot"), ("cat", "boat"), ("dog", "elephant")]
EVERYTHING = WideTaste(pairs=0.35, triples=0.25, counts=0.15, recoloured=0.6)


@pytest.fixture(scope="module")
def world() -> WideWorld:
    return small_world()


@pytest.fixture(scope="module")
def scenes(world: WideWorld) -> list[WideScene]:
    rng = random.Random(5)
    return [world.sample(rng, EVERYTHING) for _ in range(4000)]


def test_one_pair_in_ten_is_withheld_and_every_noun_keeps_most_places() -> None:
    places, pairs = withheld_noun_places(), withheld_noun_pairs()
    assert 0.06 < len(places) / (len(NOUNS) * len(PLACES)) < 0.14
    assert 0.06 < len(pairs) / (len(NOUNS) * (len(NOUNS) - 1) / 2) < 0.14
    for noun in NOUNS:
        assert sum(noun == withheld for withheld, _ in places) <= 5, noun
    for place in PLACES:
        assert sum(place == withheld for _, withheld in places) <= 6, place


def test_what_is_withheld_never_changes_and_has_no_order() -> None:
    """A measure of composition is worth nothing once its pairs were trained."""
    assert withheld_noun_places()[:3] == FIRST_PLACES
    assert withheld_noun_pairs()[:3] == FIRST_PAIRS
    assert all(is_withheld(second, first) for first, second in withheld_noun_pairs())


def test_judges_see_what_is_withheld_as_well(world: WideWorld) -> None:
    rng, taste = random.Random(5), WideTaste(pairs=0.5, withheld=True)
    scenes = [world.sample(rng, taste) for _ in range(300)]
    assert any(
        is_withheld(noun, scene.place) for scene in scenes for noun in scene.nouns if scene.place in PLACES
    )
    assert any(is_withheld(*pair) for scene in scenes for pair in combinations(scene.nouns, 2))


def test_nothing_withheld_comes_out_of_the_sampler(scenes: list[WideScene]) -> None:
    for scene in scenes:
        assert not any(is_withheld(noun, scene.place) for noun in scene.nouns if scene.place in PLACES)
        assert not any(is_withheld(*pair) for pair in combinations(scene.nouns, 2))


def test_everything_else_comes_out_of_it(scenes: list[WideScene]) -> None:
    together = {pair for scene in scenes for pair in combinations(sorted(scene.nouns), 2)}
    assert len(together) > 0.8 * 276
    assert {len(scene.items) for scene in scenes} == {1, 2, 3, 4, 5}


def test_captions_hold_the_phrase_of_every_thing_and_only_known_words(scenes: list[WideScene]) -> None:
    known = set(words()) | {","}
    for scene in scenes:
        assert set(scene.caption.replace(",", " ,").replace("-", " ").split()) <= known
        assert len(scene.things) == len(scene.nouns)
        for thing in scene.things:
            assert thing.phrase in scene.caption
            assert thing.phrase.endswith(thing.name)


def test_every_caption_fits_the_tokenizer(scenes: list[WideScene]) -> None:
    tokenizer = build_tokenizer(words())
    assert max(len(tokenizer(scene.caption).input_ids) for scene in scenes) < 40


def test_things_stand_where_the_caption_puts_them(world: WideWorld, scenes: list[WideScene]) -> None:
    checked = 0
    for scene in scenes:
        for words_between, sign in ((" to the left of ", -1), (" to the right of ", 1)):
            if words_between not in scene.caption or len(scene.things) != 2:
                continue
            before = scene.caption.split(words_between)[0]
            named = next(i for i, thing in enumerate(scene.things) if before.endswith(thing.phrase))
            spot = {item.thing: item.x for item in scene.items if isinstance(item, WideItem)}
            assert sign * (spot[named] - spot[1 - named]) > 0.2, scene.caption
            checked += 1
    assert checked > 50


@pytest.mark.parametrize("relation", ["on", "wearing"])
def test_what_is_on_top_touches_what_is_below(relation: str) -> None:
    rng, full = random.Random(1), Extent(height=1.0, crown=0.0)
    for _ in range(50):
        first, second = related(rng, relation, ground(rng, 0.7, 0.95), full, full)
        upper, lower = (first, second) if relation == "on" else (second, first)
        assert lower.base - lower.size == pytest.approx(upper.base, abs=0.13)
        assert upper.base - upper.size >= 0


def test_masks_share_out_the_visible_pixels(world: WideWorld, scenes: list[WideScene]) -> None:
    """Whatever stands in front takes its pixels from what stands behind."""
    some = [scene for scene in scenes if len(scene.things) > 1][:40]
    torch.manual_seed(0)
    _, masks = world.compose(some)
    assert float(masks.sum(1).max()) < 1.01
    for scene, mask in zip(some, masks, strict=True):
        assert all(float(mask[number].sum()) > 2 for number in range(len(scene.things))), scene.caption


def test_same_seed_draws_the_same_scene(world: WideWorld) -> None:
    assert world.sample(random.Random(3), EVERYTHING) == world.sample(random.Random(3), EVERYTHING)


def test_a_first_edition_item_is_refused(world: WideWorld) -> None:
    scene = world.sample(random.Random(0))
    from recipes.pocket.world import Item

    with pytest.raises(TypeError, match="sample the scene"):
        world.compose([replace(scene, items=(Item(sprite=0, x=0.5, base=0.9, size=0.5),))])


def test_parts_are_regions_of_like_colours_the_largest_first() -> None:
    tile = np.zeros((1, 128, 128, 4), np.uint8)
    tile[0, 20:, :, 3] = 255
    tile[0, 20:100, :, :3] = (200, 40, 40)
    tile[0, 100:, :, :3] = (40, 40, 220)
    parts = find_parts(tile)[0]
    assert set(parts[:20].ravel()) == {PARTS}
    assert set(parts[20:100].ravel()) == {0}
    assert set(parts[100:].ravel()) == {1}


@pytest.mark.parametrize("name", ["red", "green", "blue", "pink"])
def test_coat_of_a_colour_brings_dark_and_light_drawings_to_it(name: str) -> None:
    rgb = torch.stack([torch.full((3, 16, 16), 0.15), torch.full((3, 16, 16), 0.9)])
    painted = paint(rgb, torch.zeros(2, 16, 16, dtype=torch.uint8), [(Coat(colour=COLOURS[name]),)] * 2)
    for colour in painted.mean((2, 3)):
        gaps = {known: float((colour - torch.tensor(value)).norm()) for known, value in COLOURS.items()}
        assert min(gaps, key=gaps.__getitem__) == name


def test_coat_on_a_part_leaves_the_rest_alone() -> None:
    rgb, parts = torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 16, 16, dtype=torch.uint8)
    parts[:, 8:] = 1
    painted = paint(rgb, parts, [(Coat(colour=(1, 0, 0), part=1),)])
    assert torch.equal(painted[:, :, :7], rgb[:, :, :7])
    assert float((painted[:, :, 9:] - rgb[:, :, 9:]).abs().max()) > 0.2


def test_builds_and_bends_keep_the_object_on_its_ground(world: WideWorld) -> None:
    plain = WideItem(sprite=world.by_noun["car"][0], x=0.5, base=0.9, size=0.8)
    scene = WideScene(caption="", place="white", backdrop=0, items=(plain,))
    bent = replace(scene, items=(replace(plain, width=0.85, height=0.85, bend=0.04),))
    masks = world.compose([scene, bent])[1][:, 0] > 0.5
    lowest = [int(np.flatnonzero(mask.any(1).numpy())[-1]) for mask in masks]
    assert abs(lowest[0] - lowest[1]) <= 1
    assert int(masks[1].sum()) < int(masks[0].sum())


@pytest.mark.parametrize("subject", SUBJECTS[:2], ids=lambda subject: subject.name)
def test_first_edition_composes_its_subjects_as_ever(subject: Subject) -> None:
    pictures, _ = compose(subject.noun, subject.style)
    for number, picture in enumerate(pictures, 1):
        stored = np.asarray(Image.open(EXAMPLES / subject.name / f"{number}.png"), int)
        difference = np.abs(np.asarray(picture, int) - stored)
        assert difference.max() <= 1 and difference.sum() <= 5, "more than another processor's rounding"


def test_patterns_that_no_word_names_are_as_rare_as_they_are_asked_to_be(world: WideWorld) -> None:
    def shares(unpatterned: float) -> tuple[float, float]:
        """Of things with a pattern, those that a word tells of and the others."""
        rng = random.Random(1)
        taste = WideTaste(recoloured=1.0, sized=0.0, unpatterned=unpatterned)
        scenes = [world.sample(rng, taste) for _ in range(400)]
        named, unnamed = 0, 0
        for scene in scenes:
            (item,), (thing,) = scene.items, scene.things
            assert isinstance(item, WideItem)
            if any(coat.pattern for coat in item.coats):
                named, unnamed = named + (thing.phrase != thing.noun), unnamed + (thing.phrase == thing.noun)
        return named / 400, unnamed / 400

    named, unnamed = shares(0.0)
    assert unnamed > 0.12
    assert shares(1.0)[1] == 0
    rarer = shares(0.7)
    assert 0.15 * unnamed < rarer[1] < 0.5 * unnamed
    assert 0.7 * named < rarer[0] < 1.4 * named


def test_favourite_pictures_of_a_noun_are_as_frequent_as_they_are_asked_to_be(world: WideWorld) -> None:
    drawings = wide_atlas().drawings

    def share(favoured: float) -> float:
        rng, taste = random.Random(1), WideTaste(favoured=favoured)
        drawn = [world.sample(rng, taste, noun="rabbit").items[0].sprite for _ in range(400)]
        return sum(drawings[sprite].endswith("/🐰") for sprite in drawn) / 400

    plain = share(0.0)
    assert 0.3 < plain < 0.5, "five of thirteen drawings"
    assert share(1.0) == 1
    assert share(0.6) == pytest.approx(0.6 + 0.4 * plain, abs=0.06)


def test_every_noun_has_favourite_pictures(world: WideWorld) -> None:
    assert set(world.favourites) == set(FAVOURITES) == set(world.nouns)
    assert min(len(drawings) for drawings in world.favourites.values()) >= 3
    names = wide_atlas().drawings
    for noun, drawings in world.favourites.items():
        assert all(names[pose].endswith(f"/{FAVOURITES[noun]}") for poses in drawings for pose in poses), noun


def test_sides_are_said_where_they_are_asked_for_and_said_right(world: WideWorld) -> None:
    rng = random.Random(2)
    scenes = [world.sample(rng, WideTaste(pairs=1.0, sides=1.0)) for _ in range(60)]
    for scene in scenes:
        middles = scene.middles()
        left, right = (thing.noun for thing in scene.things)
        assert middles[left] < middles[right]
        left, right = (article(thing.phrase) for thing in scene.things)
        said = (
            f"{left} to the left of {right}", f"{right} to the right of {left}",
            f"{left} on the left and {right} on the right", f"{right} on the right and {left} on the left",
        )  # fmt: skip
        assert sum(phrase in scene.caption for phrase in said) == 1
    half = [world.sample(rng, WideTaste(pairs=1.0, sides=0.5)).caption for _ in range(400)]
    share = sum(" left" in caption or " right" in caption for caption in half) / 400
    assert 0.53 < share < 0.69, "half of them, and four in eight of those who stand side by side by chance"
