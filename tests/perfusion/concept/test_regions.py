"""Maps of regions: they share every place, and stand where they were asked for."""

import numpy as np
import pytest

from perfusion.concept.regions import RAMP, Region, bands, box_map, shared
from perfusion.errors import RequestError


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [5, 16, 64])
def test_bands_share_every_place_and_are_equally_wide(count, width):
    maps = bands(count, 3, width)
    assert maps.shape == (count, 3, width)
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-6)
    assert maps.min() >= 0
    if width % count == 0:
        np.testing.assert_allclose(maps.mean((1, 2)), 1 / count, atol=1e-6)


def test_a_border_passes_over_its_ramp_and_no_further():
    first = bands(2, 1, 64)[0, 0]
    changing = np.flatnonzero((first > 0) & (first < 1))
    assert len(changing) == RAMP * 64
    assert np.all(np.diff(first) <= 0)
    assert changing.mean() == pytest.approx(31.5)


def test_the_first_band_is_the_left_one():
    assert bands(2, 1, 8)[0, 0, 0] == 1
    assert bands(2, 1, 8)[1, 0, -1] == 1


def test_two_boxes_of_half_a_picture_are_two_bands():
    halves = [box_map((0, 0, 0.5, 1), 6, 16), box_map((0.5, 0, 1, 1), 6, 16)]
    np.testing.assert_allclose(shared(halves)[1:], bands(2, 6, 16), atol=1e-6)


def test_a_box_is_full_inside_and_empty_outside_of_its_ramp():
    inside = box_map((0.25, 0.25, 0.75, 0.75), 32, 32)
    assert inside[16, 16] == 1
    assert inside[0].max() == inside[:, -1].max() == 0


def test_overlaps_are_shared_and_what_is_left_is_the_whole_prompts():
    everywhere = np.ones((2, 2), np.float32)
    maps = shared([everywhere, everywhere])
    np.testing.assert_allclose(maps, np.array([0, 0.5, 0.5])[:, None, None] * np.ones((3, 2, 2)))
    corner = np.array([[1, 0], [0, 0]], np.float32)
    np.testing.assert_array_equal(shared([corner])[0], 1 - corner)


def test_a_share_of_every_place_may_be_the_whole_prompts():
    maps = shared(list(bands(2, 4, 16)), whole=0.2)
    np.testing.assert_allclose(maps[0], 0.2, atol=1e-6)
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 0, 1),
        (0.5, 0, 0.4, 1),
        (0, 0, 1.2, 1),
        (-0.1, 0, 1, 1),
        (0, 0, 1),
        "left",
        (0, float("nan"), 1, 1),
    ],
)
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(RequestError, match="expected left, top, right, bottom"):
        Region("<cat>", box=box)


def test_a_region_has_a_word_and_one_place():
    with pytest.raises(RequestError, match="expected a concept's token"):
        Region(" ")
    with pytest.raises(RequestError, match="a box and a mask"):
        Region("<cat>", box=(0, 0, 1, 1), mask="mask.png")
