"""The measures of a sweep on points whose answers are known."""

import pytest

from perfusion.sweep import Setting, pareto_front, points_of
from perfusion.sweep.front import _falling


def test_the_front_holds_what_nothing_beats():
    assert pareto_front([(0, 1), (1, 0), (0.5, 0.5), (0.4, 0.4), (1, -1)]) == (0, 1, 2)


def test_equal_points_share_the_front(similarities_of):
    assert pareto_front([(1, 1), (1, 1), (0, 0)]) == (0, 1)


def test_the_recommended_point_balances_both_on_the_front(similarities_of):
    settings = [Setting(bias=bias, temperature=0.1) for bias in (0.4, 0.5, 0.6, 0.7)]
    values = [(1.0, 0.0), (0.8, 0.7), (0.0, 1.0), (0.1, 0.1)]
    points = points_of(
        {s: similarities_of([a, a], [b, b]) for s, (a, b) in zip(settings, values, strict=True)}
    )
    assert [point.on_front for point in points] == [True, True, True, False]
    assert [point.recommended for point in points] == [False, True, False, False]


def test_a_likeness_that_rises_with_the_bias_recommends_nothing(similarities_of):
    """As it was once measured: at a bias of 1 the scorer liked what had lost its parts."""
    measured = {
        0.4: (0.523, 0.562), 0.5: (0.453, 0.639), 0.6: (0.396, 0.690), 0.7: (0.376, 0.719), 0.8: (0.338, 0.755),
        0.9: (0.337, 0.789), 1.0: (0.429, 0.770),
    }  # fmt: skip
    found = points_of(
        {
            Setting(bias=bias, temperature=0.1): similarities_of([a, a], [b, b])
            for bias, (a, b) in measured.items()
        }
    )
    assert [point.setting.bias for point in found if point.recommended] == [0.5]
    assert found[-1].on_front and found[-1].image == 0.429  # what was measured is told as it was


def test_only_what_rises_is_levelled_and_each_lock_by_itself(similarities_of):
    images = {("local", 0.4): 0.9, ("local", 0.6): 0.2, ("local", 0.8): 0.4, ("global", 0.5): 0.5}
    points = points_of(
        {
            Setting(bias=b, temperature=0.1, lock=lock): similarities_of([x], [0])
            for (lock, b), x in images.items()
        }
    )
    levelled = {(one.lock, one.bias): value for one, value in _falling(points).items()}
    assert levelled == pytest.approx(images | {("local", 0.6): 0.3, ("local", 0.8): 0.3})


def test_errors_are_those_of_a_mean(similarities_of):
    (point,) = points_of(
        {Setting(bias=0.4, temperature=0.1): similarities_of([0.0, 1.0, 2.0], [1.0, 1.0, 1.0])}
    )
    assert point.image_error == pytest.approx(3**-0.5)
    assert (point.text_error, point.recommended) == (0, True)


def test_texture_is_never_recommended_however_well_it_scores(similarities_of):
    settings = [Setting(bias=bias, temperature=0.1) for bias in (0.4, 0.5, 0.6)]
    values = dict(zip(settings, [(1.0, 1.0), (0.4, 0.5), (0.2, 0.6)], strict=True))
    measured = {setting: similarities_of([a], [b]) for setting, (a, b) in values.items()}
    points = points_of(measured, dict(zip(settings, (0.2, 0.7, 0.5), strict=True)))
    assert [point.is_texture for point in points] == [True, False, False]
    assert points[0].on_front and not points[0].recommended  # what was measured is told as it was
    assert sum(point.recommended for point in points) == 1
    assert not any(point.recommended for point in points_of(measured, dict.fromkeys(settings, 0.4)))
