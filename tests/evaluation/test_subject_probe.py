"""The probe that knows the subjects: what it is taught, what it answers, and how often it was right."""

import hashlib
import json

import numpy as np
import pytest

from benchmarks.evaluation.plan import FULL
from benchmarks.evaluation.prompts import PAIR_PROMPTS, PAIRS, PROMPTS
from benchmarks.evaluation.subject_probe import (
    Question,
    SubjectProbe,
    compose,
    pair_question,
    questions_of,
    second_thing_question,
)
from benchmarks.record import ROOT
from perfusion.embedded import scorer_path
from perfusion.errors import RequestError

TABLE, STREET = PROMPTS[6], PROMPTS[10]
QUESTION = second_thing_question("school-bus", TABLE)


@pytest.fixture(scope="module")
def probe():
    return SubjectProbe.taught([QUESTION], scenes=48, seed=11)


def test_a_question_expects_its_things_in_the_order_of_mention():
    assert QUESTION.things == ("school-bus", "bus", "teapot")
    assert QUESTION.expected == ("school-bus", "teapot") and QUESTION.places == ("table",)
    assert second_thing_question("pug", STREET).expected == ("car", "pug")
    assert pair_question(PAIRS[1], PAIR_PROMPTS) == Question(
        things=("pug", "pink-mushroom", "dog", "mushroom"), expected=("pug", "pink-mushroom"),
        places=("grass", "beach"),
    )  # fmt: skip


def test_the_plan_asks_for_every_second_thing_and_every_pair():
    seconds, pairs = questions_of(FULL)
    assert len(seconds) == 3 * len(FULL.subjects) and len(pairs) == len(PAIRS)
    assert all(len(question.subjects) == 1 for question in seconds)
    assert all(len(question.subjects) == 2 for question in pairs)


def test_composed_pictures_are_the_same_from_the_same_seed_and_show_two_different_things():
    first, second = (compose(QUESTION.things, ("table",), 6, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (compose(QUESTION.things, ("table",), 6, seed=6)[0] != first[0]).any()
    assert first[0].shape == (6, 128, 128, 3) and first[0].dtype == np.uint8
    assert all(left != right for left, right in first[1])


def test_the_probe_tells_the_subject_from_the_ordinary_thing_and_left_from_right(probe):
    """By 48 pictures, where the evaluation's probe has learned from 2600."""
    pictures, truth = compose(QUESTION.things, ("table",), 24, seed=12)
    answers = probe(pictures, QUESTION)
    assert (
        np.mean([answer == tuple(pair) for answer, pair in zip(answers, truth.tolist(), strict=True)]) > 0.8
    )
    mirrored = probe(np.ascontiguousarray(pictures[:, :, ::-1]), QUESTION)
    swapped = [answer == other[::-1] for answer, other in zip(answers, mirrored, strict=True)]
    assert np.mean(swapped) > 0.8


def test_a_probe_is_the_same_after_it_was_saved_and_loaded(probe, tmp_path):
    probe.save(tmp_path / "probe.npz")
    pictures, _ = compose(QUESTION.things, ("table",), 4, seed=13)
    assert SubjectProbe.load(tmp_path / "probe.npz")(pictures, QUESTION) == probe(pictures, QUESTION)


def test_a_question_with_a_thing_that_was_not_taught_is_refused(probe):
    with pytest.raises(RequestError, match="not taught 'dog'"):
        probe(np.zeros((1, 128, 128, 3), np.uint8), second_thing_question("pug", TABLE))


def test_the_recorded_probe_is_as_good_as_its_answers_need():
    """On true pictures of seeds that it was not taught with, and with the scorer that ships."""
    (path,) = (ROOT / "benchmarks" / "records").glob("probe_accuracy-*.json")
    rows = {row["what"]: row for row in json.loads(path.read_text())["rows"]}
    digest = hashlib.sha256((scorer_path() / "image.onnx").read_bytes()).hexdigest()
    assert rows["probe"]["scorer_sha256"] == digest, "another scorer: run benchmarks/probe_accuracy.py again"
    seconds, pairs = rows["second things"], rows["pairs"]
    assert seconds["right"] >= 0.97 and pairs["right"] >= 0.93
    assert min(seconds["worst"], pairs["worst"]) >= 0.79
    assert max(seconds["false_alarms"], pairs["false_alarms"]) <= 0.05
