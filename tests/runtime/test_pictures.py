"""Decoded samples as pictures."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from perfusion.picture_input import as_rgb, mask_of
from perfusion.runtime.pictures import as_mask, as_pictures, as_sample, grid


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


def noise(size: tuple[int, int], mode: str) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    levels = np.random.default_rng(0).integers(0, 256, (*size[::-1], channels), np.uint8)
    return Image.fromarray(levels[..., 0] if channels == 1 else levels, mode)


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(24, 16), (40, 21)])
def test_a_picture_is_read_as_diffusers_reads_it(mode, size):
    expected = VaeImageProcessor(do_convert_rgb=True).preprocess(noise(size, mode), 16, 24)
    found = as_sample(as_rgb(noise(size, mode)), 24, 16)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_mask_is_read_as_diffusers_reads_it(mode):
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    mask = noise((40, 21), mode)
    expected = torch.nn.functional.interpolate(processor.preprocess(mask, 16, 24), size=(4, 6))
    found = as_mask(mask_of(mask), 24, 16, 4)
    np.testing.assert_array_equal(found, expected.numpy())
    assert 0 < found.mean() < 1
