"""The benchmark of the default for regions asks for every relation, and compares what it should."""

from collections import Counter

import pytest

from benchmarks.auto_regions import JOINS, SUBJECTS, scenes, summary
from benchmarks.evaluation.plan import subject_named
from perfusion.concept.things import read_marks, side_by_side

TOKENS = {subject_named(name).token: name for name in SUBJECTS}


def test_at_least_a_hundred_prompts_get_regions_and_only_those_of_things_side_by_side():
    counts = Counter((scene.kind == "one", scene.has_places) for scene in scenes())
    assert set(counts) == {(False, True), (True, False)}
    assert counts[False, True] >= 100
    assert {scene.kind for scene in scenes()} == set(JOINS)


def test_what_is_expected_from_left_to_right_is_what_the_prompt_says():
    for scene in scenes():
        order = side_by_side(read_marks(scene.text, TOKENS))
        if order:
            assert tuple(TOKENS.get(thing.word, thing.word) for thing in order) == scene.things, scene.text


@pytest.mark.parametrize("share, worse", [(0.5, []), (0.47, ["both"])])
def test_a_share_that_falls_by_more_than_two_points_is_worse(share, worse):
    figures = {"none": [{"both": [0.5], "text": [0.9]}], "auto": [{"both": [share], "text": [0.1]}]}
    assert summary("all", scenes()[:1], figures)["worse"] == worse
