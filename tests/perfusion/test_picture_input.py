"""Pictures and masks of strangers: what is taken, as what, and what is refused."""

import os
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageDraw

from perfusion.errors import PictureError, RequestError
from perfusion.picture_input import (
    GROUND,
    MAX_PIXELS,
    alpha_of,
    as_rgb,
    mask_fault,
    mask_of,
    open_picture,
)


def noise(size, mode):
    channels = len(Image.new(mode, (1, 1)).getbands())
    levels = np.random.default_rng(0).integers(0, 256, (*size[::-1], channels), np.uint8)
    return Image.fromarray(levels[..., 0] if channels == 1 else levels)


def png(width, height, depth, kind, rows=b"", *chunks):
    """A PNG file written by hand: Pillow writes neither declared transparency in 16 bits nor false sizes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    body = [chunk(*each) for each in chunks] + [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(body)


# --- upright and decoded


def test_a_picture_of_few_colours_becomes_the_colours_it_stands_for(tmp_path):
    two = Image.new("RGB", (2, 1), "white")
    two.putpixel((0, 0), (255, 0, 0))
    two.quantize(2).save(tmp_path / "two.png")
    opened = open_picture(tmp_path / "two.png")
    assert opened.mode == "RGB" and opened.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_as_its_camera_was_held_and_turned_once(tmp_path, orientation):
    photo = Image.new("RGB", (16, 8), "black")
    photo.paste("white", (8, 0, 16, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "photo.png", exif=exif)
    levels = np.asarray(photo)
    # the tag's definition: where the camera's first row and first column lie
    turned = {
        1: levels, 2: levels[:, ::-1], 3: levels[::-1, ::-1], 4: levels[::-1],
        5: levels.swapaxes(0, 1), 6: np.rot90(levels, -1), 7: levels[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(levels),
    }  # fmt: skip
    with Image.open(tmp_path / "photo.png") as lazy:
        for source in (tmp_path / "photo.png", lazy):
            opened = open_picture(source)
            np.testing.assert_array_equal(np.asarray(opened), turned[orientation])
            assert open_picture(opened).size == opened.size


def test_a_picture_that_needs_no_turning_is_no_copy():
    picture = Image.new("RGB", (4, 4))
    assert open_picture(picture) is picture and as_rgb(picture) is picture


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_notes_about_the_camera_leave_the_picture_alone(tmp_path):
    photo = noise((16, 8), "RGB")
    photo.save(tmp_path / "photo.png", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\x01\x12")
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "photo.png")), np.asarray(photo))


# --- refused


def test_a_file_that_was_cut_is_a_sentence_however_it_is_given(tmp_path):
    noise((64, 64), "RGB").save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "cut.png") as lazy:
        for source in (tmp_path / "cut.png", lazy):
            with pytest.raises(PictureError, match="cannot be read as a picture: image file is truncated"):
                open_picture(source)
    closed = Image.open(tmp_path / "whole.png")
    closed.close()
    with pytest.raises(PictureError, match=r"The picture cannot be read as a picture: .*\.$"):
        open_picture(closed)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of what it reads over
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_damaged_files_are_a_sentence_or_a_picture_and_nothing_else(tmp_path, suffix):
    noise((32, 24), "RGB").save(tmp_path / f"whole.{suffix}")
    data = bytearray((tmp_path / f"whole.{suffix}").read_bytes())
    random = np.random.default_rng(7)
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(0, min(len(data), 400), 3):
            damaged[place] = random.integers(256)
        (tmp_path / "damaged").write_bytes(damaged)
        with suppress(PictureError):
            assert as_rgb(open_picture(tmp_path / "damaged")).mode == "RGB"


def test_what_is_no_picture_at_all_is_a_sentence(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "text.png", tmp_path / "none.png", f"{tmp_path}/a\0b.png"):
        with pytest.raises(PictureError, match="cannot be read as a picture"):
            open_picture(source)
    for source in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(PictureError, match="is not a file, expected a picture"):
            open_picture(source)
    with pytest.raises(PictureError, match="The picture is int, expected a PIL image or a file's path"):
        open_picture(3)


def test_a_program_that_draws_is_never_run(tmp_path):
    noise((8, 8), "RGB").save(tmp_path / "drawing.eps")
    with pytest.raises(PictureError, match=r"drawing\.eps is EPS, a program that draws"):
        open_picture(tmp_path / "drawing.eps")


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(PictureError, match=r"has 0 × 5 pixels, expected some"):
        open_picture(Image.new("RGB", (0, 5)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [11000, 60000])
def test_a_small_file_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path, side):
    assert side**2 > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 0))  # no row of it is there to be decoded
    with pytest.raises(PictureError, match=r"pixels, more than the 120 million|exceeds limit of"):
        open_picture(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(9248, 6936), (12000, 9000)])
def test_the_largest_pictures_that_phones_take_are_taken(tmp_path, size):
    Image.new("1", size, 1).save(tmp_path / "phone.png")
    assert open_picture(tmp_path / "phone.png").size == size


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_a_picture_whose_colours_are_not_known_is_refused(mode):
    with pytest.raises(RequestError, match=f"mode {mode}, whose colours are not known. Convert it to RGB"):
        open_picture(Image.new(mode, (4, 4)))


# --- modes


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "I;16", "I;16B"],
)
def test_every_mode_becomes_a_picture_and_a_mask(mode):
    opened = open_picture(Image.new(mode, (4, 3)))
    assert (as_rgb(opened).mode, as_rgb(opened).size) == ("RGB", (4, 3))
    assert (mask_of(opened).mode, mask_of(opened).size) == ("L", (4, 3))


def test_grey_of_16_bits_is_the_same_grey_in_8(tmp_path):
    levels = np.array([[0, 1 << 15, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    for source in (Image.fromarray(levels), tmp_path / "deep.png"):
        np.testing.assert_array_equal(np.asarray(open_picture(source)), [[0, 128, 255]])


# --- transparency


def sticker(hidden):
    picture = Image.new("RGBA", (8, 8), (*hidden, 0))
    picture.paste((200, 40, 40, 255), (2, 2, 6, 6))
    return picture


def in_mode(picture, mode, folder):
    """The same sticker as other programs write it."""
    if mode == "P":  # one of the palette's colours is transparent
        picture = picture.convert("RGB").quantize(2)
        picture.save(folder / "sticker.png", transparency=picture.getpixel((0, 0)))
        return folder / "sticker.png"
    if mode == "RGB":  # one colour is
        picture.convert("RGB").save(folder / "sticker.png", transparency=picture.getpixel((0, 0))[:3])
        return folder / "sticker.png"
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "P", "RGB"])
def test_stickers_that_look_alike_are_alike_whatever_colours_hide_under_them(tmp_path, mode):
    pictures = [
        as_rgb(open_picture(in_mode(sticker(hidden), mode, tmp_path)))
        for hidden in [(255, 0, 255), (0, 255, 0)]
    ]
    np.testing.assert_array_equal(*map(np.asarray, pictures))
    assert pictures[0].getpixel((0, 0)) == GROUND and pictures[0].getpixel((4, 4)) != GROUND


def test_half_transparent_colours_lie_half_over_the_ground():
    picture = as_rgb(open_picture(Image.new("RGBA", (1, 1), (255, 0, 127, 128))))
    np.testing.assert_allclose(picture.getpixel((0, 0)), [127 + 128 * 0.5, 127 / 2, 127], atol=1)


def test_one_level_of_16_bits_that_is_declared_transparent_is(tmp_path):
    rows = b"\0" + struct.pack(">HH", 0xF001, 0xF000)  # alike in 8 bits
    (tmp_path / "deep.png").write_bytes(png(2, 1, 16, 0, rows, (b"tRNS", b"\xf0\x00")))
    picture = as_rgb(open_picture(tmp_path / "deep.png"))
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(240, 240, 240), GROUND]


def test_a_picture_has_no_alpha_where_all_of_it_is_opaque():
    assert alpha_of(Image.new("RGBA", (4, 4), (9, 9, 9, 255))) is None
    assert alpha_of(Image.new("RGB", (4, 4))) is None
    assert np.asarray(alpha_of(sticker((0, 0, 0)))).sum() == 16 * 255


# --- masks


def test_a_mask_on_a_transparent_layer_is_what_is_painted_on_it():
    layer = Image.new("RGBA", (8, 8), (255, 255, 255, 0))  # an editor's "transparent white"
    layer.paste((255, 255, 255, 255), (4, 0, 8, 8))
    expected = np.zeros((8, 8))
    expected[:, 4:] = 255
    for mode in ("RGBA", "LA"):
        np.testing.assert_array_equal(np.asarray(mask_of(open_picture(layer.convert(mode)))), expected)


def test_black_on_an_opaque_layer_stays_dark_and_soft_edges_stay_soft():
    layer = Image.new("RGBA", (3, 1), (255, 255, 255, 255))
    layer.putpixel((0, 0), (0, 0, 0, 255))
    layer.putpixel((1, 0), (255, 255, 255, 100))
    assert np.asarray(mask_of(open_picture(layer))).tolist() == [[0, 100, 255]]


def halves(low, high):
    mask = Image.new("L", (8, 8), low)
    ImageDraw.Draw(mask).rectangle((4, 0, 7, 7), fill=high)
    return mask


@pytest.mark.parametrize(
    "low, high, fault",
    [
        (0, 0, "is dark everywhere"), (90, 90, "is dark everywhere"), (0, 127, "is dark everywhere"),
        (255, 255, "is light everywhere"), (128, 255, "is light everywhere"),
        (0, 1, "holds 0 and 1 where 0 and 255 are expected"), (0, 255, None), (127, 128, None),
    ],
)  # fmt: skip
def test_a_mask_that_tells_no_place_from_another_is_found_out(low, high, fault):
    assert mask_fault(halves(low, high)) == fault
