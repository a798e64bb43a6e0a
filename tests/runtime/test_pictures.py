"""Decoded samples as pictures."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from perfusion.runtime.pictures import as_pictures, grid


def test_levels_are_rounded_and_clipped_as_diffusers_does():
    sample = (np.random.default_rng(0).standard_normal((2, 3, 16, 24)) * 0.7).astype(np.float32)
    expected = VaeImageProcessor().postprocess(torch.from_numpy(sample), output_type="pil")
    for found, theirs in zip(as_pictures(sample), expected, strict=True):
        assert found.size == (24, 16)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(theirs))


@pytest.mark.parametrize(
    "count, columns, rows", [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 2, 2), (5, 3, 2), (10, 4, 3)]
)
def test_a_grid_is_as_square_as_its_number_allows(count, columns, rows):
    pictures = [Image.new("RGB", (3, 2), (index, 0, 0)) for index in range(count)]
    sheet = grid(pictures)
    assert sheet.size == (3 * columns, 2 * rows)
    for index in range(count):
        assert sheet.getpixel((index % columns * 3, index // columns * 2)) == (index, 0, 0)
