"""Probes: true pictures show what they show, and texture in the right colours shows nothing."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion.embedded import scorer_path
from perfusion.judging.probes import NOTHING, TEXTURES, PocketProbes, ScorerProbes, open_probes
from perfusion.judging.scorer import OnnxScorer

EXAMPLES = Path(__file__).parents[3] / "examples" / "subjects"


class WordScorer:
    """Pictures are single numbers, each of which stands for one text: the cosine is 1 with it and 0 with others."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def embed_pictures(self, pictures):
        return np.stack([self._axis(self.texts[picture.getpixel((0, 0))]) for picture in pictures])

    def embed_texts(self, texts):
        return np.stack([self._axis(text) for text in texts])

    def _axis(self, text):
        axis = np.zeros(len(self.texts) + 1, np.float32)
        axis[self.texts.index(text) if text in self.texts else -1] = 1
        return axis


def numbered(*levels: int) -> list[Image.Image]:
    return [Image.new("L", (4, 4), level) for level in levels]


@pytest.fixture(scope="module")
def probes() -> PocketProbes:
    return PocketProbes(threads=1)


def pictures_of(name: str) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((EXAMPLES / name).glob("*.png"))]


def test_true_pictures_show_their_noun_and_no_other(probes: PocketProbes) -> None:
    pictures = pictures_of("school-bus")
    assert probes(pictures, ["a photo of a bus"] * 5, ["bus"]).share >= 0.8
    assert probes(pictures, ["a photo of a cake"] * 5, ["cake"]).share <= 0.2


def test_the_pieces_of_a_picture_in_disorder_are_no_scene(probes: PocketProbes) -> None:
    """The same colours, and nothing in them: what a likeness alone takes for the thing."""
    picture = pictures_of("school-bus")[0]
    rng = np.random.default_rng(0)
    pixels = np.asarray(picture).reshape(32, 4, 32, 4, 3).transpose(0, 2, 1, 3, 4).reshape(1024, 4, 4, 3)
    shuffled = rng.permutation(pixels).reshape(32, 32, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(128, 128, 3)
    shown = probes([picture, Image.fromarray(shuffled)], ["a photo of a bus"] * 2, ["bus"])
    assert shown.scene.tolist() == [True, False]
    assert shown.share == 0.5


def test_the_place_is_that_of_the_prompt_and_free_where_none_is_named(probes: PocketProbes) -> None:
    (beach,) = (pictures_of("pink-cake")[3],)
    shown = probes([beach] * 3, ["a cake on a beach", "a cake in the snow", "a cake"], ["cake"])
    assert shown.place.tolist() == [True, False, True]


def test_only_nouns_that_a_prompt_names_are_looked_for(probes: PocketProbes) -> None:
    (bus,) = pictures_of("school-bus")[:1]
    prompts = ["a photo of a bus", "a photo of a bus next to a cake"]
    assert probes([bus] * 2, prompts, ["bus", "cake"]).noun.tolist() == [True, False]


def test_a_scorer_sees_the_noun_where_its_sentence_is_nearest() -> None:
    cat, texture = "a photo of a cat", TEXTURES[1]
    scorer = WordScorer(cat, texture, NOTHING)
    shown = ScorerProbes(scorer)(numbered(0, 1, 2), [cat] * 3, ["cat"])
    assert shown.noun.tolist() == [True, False, False]
    assert shown.scene.tolist() == [True, False, False]
    assert shown.share == pytest.approx(1 / 3)


def test_a_scorer_finds_a_place_kept_where_no_other_prompt_is_nearer() -> None:
    beach, snow = "a cat on a beach", "a cat in the snow"
    shown = ScorerProbes(WordScorer(beach, snow))(numbered(0, 0, 1), [beach, snow, snow], ["cat"])
    assert shown.place.tolist() == [True, False, True]


def test_the_classifier_judges_the_embedded_model_and_nobody_else() -> None:
    scorer = OnnxScorer(scorer_path(), threads=1)
    for edition in ("pocket", "pocket2"):
        assert isinstance(open_probes(scorer_path(), scorer, edition), PocketProbes)
    assert isinstance(open_probes(scorer_path(), scorer, "sd15"), ScorerProbes)
