"""Decoded samples as pictures."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from perfusion.errors import RequestError
from perfusion.runtime.pictures import as_mask, as_pictures, as_sample, grid, open_picture


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
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("size", [(24, 16), (40, 21)])
def test_a_picture_is_read_as_diffusers_reads_it(mode, size):
    expected = VaeImageProcessor(do_convert_rgb=True).preprocess(noise(size, mode), 16, 24)
    found = as_sample(noise(size, mode), 24, 16)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_mask_is_read_as_diffusers_reads_it(mode):
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    mask = noise((40, 21), mode)
    expected = torch.nn.functional.interpolate(processor.preprocess(mask, 16, 24), size=(4, 6))
    found = as_mask(mask, 24, 16, 4)
    np.testing.assert_array_equal(found, expected.numpy())
    assert 0 < found.mean() < 1


def test_a_picture_of_few_colours_is_resized_in_the_colours_it_stands_for(tmp_path):
    two = Image.new("RGB", (2, 1), "white")
    two.putpixel((0, 0), (255, 0, 0))
    two.quantize(2).save(tmp_path / "two.png")
    opened = open_picture(tmp_path / "two.png")
    assert opened.mode == "RGB" and opened.getpixel((0, 0)) == (255, 0, 0)


def test_a_photo_is_upright_as_its_camera_was_held(tmp_path):
    photo = Image.new("RGB", (16, 8), "black")
    photo.paste("white", (8, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    photo.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as lazy:
        for source in (tmp_path / "photo.png", lazy):
            opened = open_picture(source)
            assert opened.size == (8, 16)
            assert opened.getpixel((4, 2)) == (0, 0, 0) and opened.getpixel((4, 14)) == (255, 255, 255)


def test_a_picture_that_needs_no_turning_is_no_copy():
    picture = Image.new("RGB", (4, 4))
    assert open_picture(picture) is picture


def test_a_file_that_was_cut_is_a_sentence_however_it_is_given(tmp_path):
    noise((64, 64), "RGB").save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "cut.png") as lazy:
        for source in (tmp_path / "cut.png", lazy):
            with pytest.raises(RequestError, match="cannot be read as a picture: image file is truncated"):
                open_picture(source)
    closed = Image.open(tmp_path / "whole.png")
    closed.close()
    with pytest.raises(RequestError, match="The picture cannot be read as a picture"):
        open_picture(closed)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(RequestError, match=r"has 0 × 5 pixels, expected some"):
        open_picture(Image.new("RGB", (0, 5)))


def test_grey_of_16_bits_is_the_same_grey_in_8():
    levels = np.array([[0, 1 << 15, 65535]], np.uint16)
    np.testing.assert_array_equal(np.asarray(open_picture(Image.fromarray(levels))), [[0, 128, 255]])


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_a_picture_whose_colours_are_not_known_is_refused(mode):
    with pytest.raises(RequestError, match=f"mode {mode}, whose colours are not known. Convert it to RGB"):
        open_picture(Image.new(mode, (4, 4)))
