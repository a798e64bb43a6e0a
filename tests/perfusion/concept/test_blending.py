"""Strengths between 0 and 1: the readings of a prompt, their mean, and which tokens of two readings are partners."""

import numpy as np
import pytest

from perfusion.concept.blending import blended, readings
from perfusion.concept.words import Frame, Word, aligned, tokenize

FRAME = Frame(vocab_size=1000, context_length=16, bos_token_id=0, eos_token_id=1, pad_token_id=2)
IDS = {"a": 10, "teddy": 11, "bear": 12, "on": 13, "cat": 14}


def tokenized(text, **words):
    def encode(piece):
        return [IDS[word] for word in piece.split()], [0] * len(piece.split())

    return tokenize(text, {f"<{name}>": word for name, word in words.items()}, encode, FRAME, lambda _: False)


def test_a_concept_is_on_at_the_levels_below_its_strength():
    strengths = {"<a>": 0.75, "<b>": 0.25, "<c>": 1.0, "<d>": 0.0, "<e>": 0.75}
    found = [(one.weight, set(one.active)) for one in readings(strengths)]
    assert found == [(0.25, {"<a>", "<b>", "<c>", "<e>"}), (0.5, {"<a>", "<c>", "<e>"}), (0.25, {"<c>"})]
    for token, strength in strengths.items():
        assert sum(weight for weight, active in found if token in active) == strength


@pytest.mark.parametrize(
    "strengths, active", [({"<a>": 1, "<b>": 0}, {"<a>"}), ({"<a>": 0}, set()), ({}, set())]
)
def test_strengths_of_0_and_1_need_one_reading(strengths, active):
    (only,) = readings(strengths)
    assert (only.weight, only.active) == (1, active)


def test_a_single_reading_is_left_as_it_is_and_several_are_averaged():
    first, second = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    assert np.array_equal(blended([first], [1.0]), first)
    found = blended([first, second], [0.3, 0.7])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 0.3 * first + 0.7 * second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("superclass", ["cat", "teddy bear"])
@pytest.mark.parametrize("text", ["a <x> on a", "<x>", "<x> <y> a <x>"])
def test_partners_are_a_permutation_that_pairs_like_with_like(text, superclass, rows):
    words = {"x": Word(rows=rows, superclass=superclass), "y": Word(rows=1, superclass="teddy bear")}
    off = {name: Word(rows=one.rows, superclass=one.superclass, active=False) for name, one in words.items()}
    prompt, plain = tokenized(text, **words), tokenized(text, **off)
    places = aligned(prompt, plain)
    assert sorted(places) == list(range(FRAME.context_length))
    partners = list(zip(prompt.input_ids, plain.input_ids[places], strict=True))
    for ours, theirs in partners:
        if ours < FRAME.vocab_size and ours != FRAME.pad_token_id:  # a word, the start or the end
            assert ours == theirs
    beside_the_last_row = {theirs for ours, theirs in partners if ours == FRAME.vocab_size + rows - 1}
    assert beside_the_last_row == {IDS[superclass.split()[-1]]}
    assert np.array_equal(aligned(prompt, prompt), np.arange(FRAME.context_length))
