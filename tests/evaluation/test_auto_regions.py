"""The benchmark of the default for regions asks for every relation, and compares what it should."""

import json
from collections import Counter

import pytest

from benchmarks.auto_regions import JOINS, SUBJECTS, scenes, summary
from benchmarks.evaluation.plan import subject_named
from benchmarks.record import ROOT
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


def test_the_page_has_the_shares_of_the_record():
    (path,) = (ROOT / "benchmarks" / "records").glob("auto_regions-*.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    section = page.split("### The default makes nothing worse")[1].split("\n## ")[0]
    assert [row["what"] for row in rows] == ["all", *(kind for kind in JOINS if kind != "one")]
    assert not any(row["worse"] for row in rows)
    assert f"{rows[0]['read_once']} more prompts" in section
    for row in rows:
        shares = [
            f"{row['auto'][name]:.0%} (without {row['none'][name]:.0%})".replace("%", " %")
            for name in ("both", "in_order", "place")
        ]
        texts = f"{row['auto']['text']:.2f} (without {row['none']['text']:.2f})"
        assert f"| {row['prompts']} | {' | '.join([*shares, texts])} |" in section, row["what"]
