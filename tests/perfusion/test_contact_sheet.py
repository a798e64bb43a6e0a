"""Contact sheets: every picture, and captions whose words are apart."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from perfusion.contact_sheet import GAP, contact_sheet, text_width, wrapped

TEAL = (0, 128, 128)
LONG = "a photo of a <pink-cake> on a beach in front of mountains"


def sheet_of(*captions: str, **options: object) -> Image.Image:
    pictures = [Image.new("RGB", (64, 48), TEAL) for _ in captions]
    return contact_sheet(pictures, captions, columns=2, **options)


def test_pictures_stand_in_rows_and_are_not_touched_by_captions() -> None:
    pixels = np.asarray(sheet_of("one", "two", "three"))
    assert (pixels == TEAL).all(-1).sum() == 3 * 64 * 48


def test_words_of_a_caption_are_apart() -> None:
    """Between the letters of "of" and "a" there is more white than between two letters of a word."""
    ink = np.asarray(sheet_of("of a", "").convert("L"))[GAP + 49 :, GAP : GAP + 64] < 200
    columns = np.flatnonzero(ink.any(0))
    gaps = np.diff(columns) - 1
    assert sorted(gaps)[-1] >= 3
    assert sorted(gaps)[-2] <= 1


def test_a_caption_loses_no_word_unless_it_is_told_to() -> None:
    font = ImageFont.load_default(11)
    lines = wrapped(LONG, 90, font)
    assert " ".join(lines) == LONG
    assert all(text_width(line, font) <= 90 for line in lines)
    assert sheet_of(LONG, "").height > sheet_of(LONG, "", lines=1).height == sheet_of("a", "b").height


@pytest.mark.parametrize("heading", ["", "Learned: most pictures show it."])
def test_a_heading_stands_above_all(heading: str) -> None:
    pixels = np.asarray(sheet_of("one", "two", heading=heading))
    first = int(np.flatnonzero((pixels == TEAL).all(-1).any(1))[0])
    assert (first > GAP) == bool(heading)
    assert bool((pixels[:first] < 100).any()) == bool(heading)
