"""The measures of pictures, on embeddings whose answers can be computed by hand."""

import math

import numpy as np
import pytest

from perfusion.errors import RequestError
from perfusion.judging.scales import (
    harmonic_mean,
    rescale,
    similarities,
    standard_error,
    subject_cosines,
)


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_the_base_has_an_image_similarity_of_zero_and_the_subject_of_one():
    rng = np.random.default_rng(0)
    plain, subject, prompts = (unit(rng.standard_normal((6, 16))) for _ in range(3))
    of_base = similarities(plain, plain, subject, prompts)
    assert of_base.image.mean() == pytest.approx(0, abs=1e-6)
    of_subject = similarities(subject, plain, subject, prompts)
    assert of_subject.image.mean() == pytest.approx(1, abs=1e-6)
    half = similarities((plain + subject) / 2, plain, subject, prompts)
    assert half.image.mean() == pytest.approx(0.5, abs=1e-6)


def test_text_similarity_is_the_cosine_of_each_picture_with_its_own_prompt():
    prompts = unit(np.eye(4))
    found = similarities(prompts, unit(np.ones((4, 4))), unit([[1, 2, 3, 4]]), prompts)
    assert found.text == pytest.approx(np.ones(4))
    turned = similarities(prompts[::-1], unit(np.ones((4, 4))), unit([[1, 2, 3, 4]]), prompts)
    assert turned.text == pytest.approx(np.zeros(4))


def test_a_subject_like_the_base_gives_no_line_to_measure_along():
    same = unit(np.ones((3, 4)))
    with pytest.raises(RequestError, match="cannot tell"):
        similarities(same, same, same, same)


def test_likeness_to_several_pictures_is_the_mean_of_their_cosines():
    subject = unit([[1, 0], [0, 1]])
    cosines = subject_cosines(unit([[1, 0], [1, 1]]), subject)
    assert cosines == pytest.approx([0.5, math.sqrt(0.5)])


def test_a_scale_runs_from_the_worst_candidate_to_the_best_picture_by_picture():
    table = np.array([[0.1, 0.3], [0.2, 0.4], [0.5, 0.7]])
    shares = rescale(table, table[0], table[2])
    assert shares.mean(1) == pytest.approx([0, 0.25, 1])
    assert shares[1] == pytest.approx(
        [0.25, 0.25]
    )  # the second picture is easier at every step, and counts alike
    assert (rescale(table, table[0], table[2], least=0.5) == 1).all()


def test_the_harmonic_mean_is_the_reciprocal_of_the_mean_reciprocal():
    assert harmonic_mean(0.2, 0.6) == pytest.approx(1 / ((1 / 0.2 + 1 / 0.6) / 2))
    assert harmonic_mean(0, 0) == harmonic_mean(0, 1) == 0


def test_the_error_of_a_mean_is_that_of_the_textbook_and_unknown_for_one_value():
    assert standard_error(np.array([0.0, 1.0, 2.0])) == pytest.approx(1 / math.sqrt(3))
    assert standard_error(np.array([0.5])) == math.inf
