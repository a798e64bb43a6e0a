"""The verdict: what the evidence says, in words."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfusion.judging.probes import Shown
from perfusion.judging.verdict import Evidence, Remedy, compare, gather, pass_verdict, tell

GOOD = Evidence(pictures=24, nearer=1.0, scene=1.0, noun=0.9, place=1.0, plain_noun=1.0, plain_place=1.0)


@pytest.mark.parametrize(
    ("change", "grade", "words"),
    [
        ({}, "learned", "the pictures of <my-cat> are like yours, 90% show a cat"),
        ({"noun": 0.1}, "colours only", "have its colours, and a cat is seen in only 10% of them. Try fog."),
        ({"noun": 0.5}, "colours only", "only 50%"),  # a border is not called learned
        ({"noun": 0.1, "nearer": 0.3}, "not learned", "only 10%"),
        ({"noun": 0.1, "scene": 0.2}, "not learned", "have become texture. Try fog."),
        ({"place": 0.5}, "not learned", "keep the place that the prompt asks for. Try fewer steps, masks"),
        ({"nearer": 0.5}, "not learned", "in only 50% of the pictures <my-cat> is nearer to yours"),
        ({"plain_noun": 0.2, "noun": 0.2}, "not learned", "base model's own pictures of 'cat' show one in only 20%"),
        ({"place": 0.65, "plain_place": 0.7}, "learned", "65% keep the place"),  # as good as the base's
    ],
)  # fmt: skip
def test_the_grade_follows_from_the_evidence(change: dict[str, float], grade: str, words: str) -> None:
    verdict = pass_verdict(replace(GOOD, **change), "<my-cat>", "cat", [Remedy("fog", "--fog")])
    assert verdict.grade == grade
    assert verdict.sentence.startswith(f"{grade}: ")
    assert words in verdict.sentence
    assert verdict.sentence.endswith(".")
    assert ("Try " in verdict.sentence) == (grade != "learned")
    assert verdict.as_dict()["noun"] == verdict.evidence.noun
    assert "--" not in verdict.sentence


@pytest.mark.parametrize("noun", [0.9, 0.1])
def test_the_noun_has_its_article(noun: float) -> None:
    assert "an owl" in pass_verdict(replace(GOOD, noun=noun), "<my-owl>", "owl", [Remedy("fog")]).sentence


def test_a_remedy_names_the_switch_of_the_place_where_it_is_read() -> None:
    remedies = (Remedy("fewer steps", "--steps"), Remedy("more light"), Remedy("a larger model", "--model"))
    assert tell("not learned", "it is fog", remedies, {"--steps": "--steps", "--model": "ask the owner"}) == (
        "not learned: it is fog. Try fewer steps (--steps), more light, or a larger model (ask the owner)."
    )
    assert tell("not learned", "it is fog", remedies[1:2]) == "not learned: it is fog. Try more light."
    assert tell("learned", "it is a cat", ()) == "learned: it is a cat."


class Greys:
    """A picture's grey is its place on the line from black, the base's, to white, the subject's."""

    def embed_pictures(self, pictures: Any) -> Any:
        angles = np.array([picture.getpixel((0, 0)) / 255 for picture in pictures]) * np.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    def embed_texts(self, texts: Any) -> Any:
        return np.tile(np.float32([1, 0]), (len(texts), 1))


def test_evidence_compares_each_picture_with_that_of_the_same_seed() -> None:
    def pictures(*levels: int) -> list[Image.Image]:
        return [Image.new("L", (2, 2), level) for level in levels]

    def probes(part: Any, prompts: Any, nouns: Any) -> Shown:
        bright = np.array([picture.getpixel((0, 0)) < 200 for picture in part])
        return Shown(scene=np.ones(len(part), bool), noun=bright, place=np.ones(len(part), bool))

    own, plain, prompts = pictures(90, 120, 10, 220), pictures(40, 40, 40, 40), ["a cat"] * 4
    measures = compare(own, plain, pictures(255), prompts, Greys())
    evidence = gather(own, plain, prompts, "cat", measures, probes)
    assert (evidence.pictures, evidence.nearer) == (4, 0.75)
    assert (evidence.noun, evidence.plain_noun) == (0.75, 1.0)
