"""The figures of the evaluation, against arithmetic that can be done by hand."""

import math

import numpy as np
import pytest

from benchmarks.evaluation.figures import along, below, harmonic, interval, paired, reach, scaled_text

FRONT = [[(0.0, 1.0), (0.5, 0.9), (1.0, 0.2)]]


def test_the_two_anchors_of_image_similarity_are_zero_and_one_and_sideways_counts_nothing():
    start, target = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    sideways = start + np.array([0.0, 0.0, 5.0])
    halfway, beyond = (start + target) / 2, start + 1.5 * (target - start)
    found = along(np.stack([start, target, sideways, halfway, beyond]), start, target)
    np.testing.assert_allclose(found, [0, 1, 0, 0.5, 1.5], atol=1e-12)


def test_text_similarity_is_zero_at_the_floor_and_one_at_the_ceiling():
    np.testing.assert_allclose(scaled_text(np.array([0.2, 0.5, 0.8]), 0.2, 0.8), [0, 0.5, 1])


def test_the_harmonic_mean_needs_both_and_counts_nothing_above_one():
    assert harmonic(0.5, 0.5) == 0.5
    assert harmonic(0.0, 1.0) == harmonic(-0.3, 1.0) == 0.0
    assert harmonic(2.0, 2.0) == 1.0
    assert harmonic(0.5, 1.0) == pytest.approx(2 / 3)


def test_an_interval_of_equal_values_has_no_width_and_of_others_holds_the_mean():
    assert interval([0.4] * 12) == interval([0.4] * 3)
    found = interval([0.0, 1.0] * 6)
    assert found.low < 0.5 < found.high
    assert found.mean == 0.5
    assert interval([0.0, 1.0] * 6) == found  # the resamples are fixed
    assert math.isnan(interval([]).mean)


def test_an_interval_has_about_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(size=200)
    found = interval(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 200**0.5, rel=0.1)


def test_a_paired_difference_sees_what_the_spread_of_subjects_hides():
    spread = np.random.default_rng(0).normal(scale=10, size=12)
    first = {str(at): value + 0.5 for at, value in enumerate(spread)}
    second = {str(at): float(value) for at, value in enumerate(spread)}
    found = paired(first, second)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5)


def test_a_front_is_joined_by_straight_lines_and_ends_at_its_last_point():
    assert reach(FRONT, 0.5) == 0.9
    assert reach(FRONT, 0.75) == pytest.approx(0.55)
    assert reach(FRONT, -1.0) == 1.0
    assert reach(FRONT, 1.01) == -math.inf


def test_a_line_may_run_either_way():
    assert reach([FRONT[0][::-1]], 0.75) == pytest.approx(0.55)


def test_a_setting_that_another_one_beats_does_not_pull_the_front_down():
    assert reach([*FRONT, [(0.0, 1.0), (0.25, 0.1)]], 0.2) >= 0.9


def test_nothing_lies_between_the_settings_of_two_sliders():
    """No file can be drawn half with local and half with global keys."""
    local, globally = [(0.0, 1.0), (0.4, 0.9)], [(0.0, 1.0), (1.0, 0.5)]
    assert reach([local, globally], 0.7) == pytest.approx(0.65)  # on the global line, not between 0.9 and 0.5


@pytest.mark.parametrize(
    "point, expected", [((0.3, 0.5), True), ((0.75, 0.6), False), ((1.2, 0.0), False), ((0.5, 0.9), False)]
)
def test_a_point_lies_below_a_front_that_has_its_likeness_and_more_text(point, expected):
    assert below(lambda picked: point, lambda picked: FRONT, 12) == (expected, float(expected))


def test_how_sure_it_is_that_a_point_lies_below_follows_the_subjects():
    values = np.array([0.0] * 6 + [1.0] * 6)
    point = lambda picked: (0.5, float(values[picked].mean()))  # noqa: E731
    holds, sure = below(point, lambda picked: [[(0.5, 0.6)]], 12)
    assert holds  # on average 0.5, below 0.6
    assert 0.55 < sure < 0.95
