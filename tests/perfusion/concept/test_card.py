"""The picture card: a PNG that everybody can open, with a concept inside."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion.concept.card import CHUNK, MAX_CARD_BYTES, embed, extract
from perfusion.concept.concept_file import Concept
from perfusion.errors import ConceptError, PictureError


@pytest.fixture
def drawing():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture
def card(make_concept, drawing, tmp_path):
    path = tmp_path / "cat.png"
    make_concept().save(path, picture=drawing)
    return path


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def chunks(data):
    """Type and data of every chunk, by the PNG specification and not by the code under test."""
    at, found = 8, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


# --- what is written


def test_a_card_is_a_picture_with_unchanged_pixels(card, drawing):
    with Image.open(card) as opened:
        opened.load()
        assert opened.format == "PNG"
        assert opened.tobytes() == drawing.tobytes()
        private = getattr(opened, "private_chunks")  # noqa: B009 (of PNGs alone, which the type does not say)
        assert [(kind, body) for kind, body, *_ in private] == [(CHUNK, extract(card.read_bytes()))]


def test_a_card_holds_the_concept_file_byte_for_byte(make_concept, card, tmp_path):
    concept = make_concept()
    assert extract(card.read_bytes()) == concept.to_bytes()
    concept.save(tmp_path / "small.PNG", "int8", keys=False, picture=card)
    assert extract((tmp_path / "small.PNG").read_bytes()) == concept.to_bytes("int8", keys=False)


def test_loading_a_card_is_loading_its_concept(make_concept, card):
    assert Concept.load(card).to_bytes() == make_concept().to_bytes()
    assert Concept.from_bytes(card.read_bytes()).token == "<cat>"
    assert Concept.load(str(card)).superclass == "cat"


def test_the_chunk_is_ancillary_private_safe_to_copy_and_just_before_the_end(card):
    kinds = [kind for kind, _ in chunks(card.read_bytes())]
    assert kinds[-2:] == [b"pfCo", b"IEND"]
    assert [bool(letter & 32) for letter in CHUNK] == [True, True, False, True]


def test_a_png_file_keeps_its_bytes_but_for_the_chunk(card, drawing, tmp_path, make_concept):
    path = tmp_path / "drawing.png"
    drawing.save(path, compress_level=1, dpi=(72, 72))
    make_concept(token="<dog>").save(card, picture=path)
    others = [one for one in chunks(card.read_bytes()) if one[0] != CHUNK]
    assert others == chunks(path.read_bytes())
    make_concept(token="<bird>").save(card, picture=card)  # a card as the picture of another
    assert [kind for kind, _ in chunks(card.read_bytes())].count(CHUNK) == 1
    assert Concept.load(card).token == "<bird>"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_any_mode_of_picture_can_be_a_card(make_concept, drawing, tmp_path, mode):
    picture = Image.new("I;16", (4, 4)) if mode == "I;16" else drawing.convert(mode)
    make_concept().save(tmp_path / "a.png", picture=picture)
    assert Concept.load(tmp_path / "a.png").token == "<cat>"
    with Image.open(tmp_path / "a.png") as opened:
        opened.load()


def test_a_card_of_a_photo_is_upright_as_the_camera_was_held(make_concept, drawing, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    drawing.save(tmp_path / "photo.jpg", exif=exif)
    drawing.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.jpg") as opened:
        make_concept().save(tmp_path / "opened.png", picture=opened)
        expected = np.rot90(np.asarray(opened), -1)
    make_concept().save(tmp_path / "jpeg.png", picture=tmp_path / "photo.jpg")
    for name in ("opened.png", "jpeg.png"):
        with Image.open(tmp_path / name) as card:
            np.testing.assert_array_equal(np.asarray(card), expected)
            assert card.getexif().get(0x0112, 1) == 1
    make_concept().save(tmp_path / "card.png", picture=tmp_path / "photo.png")
    with Image.open(tmp_path / "card.png") as card:  # a PNG keeps its bytes, and with them what turns it
        assert card.size == drawing.size and card.getexif()[0x0112] == 6


def test_a_jpeg_becomes_a_png(make_concept, drawing, tmp_path):
    drawing.save(tmp_path / "a.jpg")
    make_concept().save(tmp_path / "a.png", picture=str(tmp_path / "a.jpg"))
    with Image.open(tmp_path / "a.png") as card, Image.open(tmp_path / "a.jpg") as jpeg:
        assert card.tobytes() == jpeg.convert("RGB").tobytes()


@pytest.mark.parametrize("token", ["<cat>", "<" + "w" * 62 + ">", "<猫>"])
def test_without_a_picture_the_card_says_what_the_concept_is(make_concept, tmp_path, token):
    make_concept(token=token).save(tmp_path / "a.png")
    make_concept(token=token).save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Concept.load(tmp_path / "a.png").token == token
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.size == (256, 256)
        colours = opened.getcolors()
        assert colours is not None
        assert len(colours) > 10  # letters, smoothed


def test_the_runtime_takes_a_card_for_a_concept(make_concept, tmp_path):
    from perfusion.runtime import Runtime, read_bundle

    toy = read_bundle(Path(__file__).parents[2] / "data" / "toy_bundle")
    text_dim, width = toy.text_dim, toy.unet.value_width
    fitting = {"base": toy.base, "base_fingerprint": toy.base_fingerprint, "target_keys": None}
    make_concept(text_dim=text_dim, width=width, **fitting).save(tmp_path / "cat.png")
    assert Runtime(toy.folder, provider="cpu").load_concept(tmp_path / "cat.png").token == "<cat>"


# --- what is refused


def test_a_picture_in_a_file_that_is_no_png_is_refused(make_concept, drawing, tmp_path):
    with pytest.raises(ConceptError, match=r"a\.safetensors was to carry a picture, and only a PNG can"):
        make_concept().save(tmp_path / "a.safetensors", picture=drawing)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("name", ["cat.jpg", "cat.WEBP", "cat.gif"])
def test_a_picture_of_another_kind_is_never_the_name_of_a_concept(make_concept, tmp_path, name):
    with pytest.raises(ConceptError, match="carries no concept: only a PNG can"):
        make_concept().save(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("kind", ["JPEG", "WebP", "GIF", "TIFF"])
def test_a_picture_of_another_kind_is_told_that_it_carries_no_concept(drawing, tmp_path, kind):
    drawing.save(tmp_path / "cat", kind)
    with pytest.raises(
        ConceptError, match=f"cat: This is a {kind} picture, which carries no concept: only a PNG can"
    ):
        Concept.load(tmp_path / "cat")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", None])
def test_a_picture_that_cannot_be_read_is_refused(make_concept, tmp_path, content):
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(PictureError, match=r"x\.png cannot be read as a picture"):
        make_concept().save(tmp_path / "a.png", picture=tmp_path / "x.png")
    with pytest.raises(PictureError, match="The picture is int, expected a PIL image or a file"):
        make_concept().save(tmp_path / "a.png", picture=7)
    assert not (tmp_path / "a.png").exists()


def test_a_picture_that_was_saved_again_has_lost_its_concept(card):
    with Image.open(card) as opened:
        opened.load()
    opened.save(card)
    with pytest.raises(
        ConceptError, match=r"cat\.png: This picture carries no concept: .* saved again by a program"
    ):
        Concept.load(card)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda data: data[:-12] + data[-12 - 12 - 700 :], "expected one|cut off"),
        (lambda data: data[:-1], "cut off after|cut off: a chunk"),
        (lambda data: data[:-12], "cut off after .* in front of its end"),
        (lambda data: data[:40], "cut off"),
        (lambda data: data[:8], "cut off after 8 bytes"),
        (
            lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
            "damaged: its checksum does not match",
        ),
        (lambda data: data[:-12] + chunk(CHUNK, b"") + data[-12:], "carries 2 concepts, expected one"),
        (
            lambda data: data[:8] + struct.pack(">I", 1 << 31) + data[12:],
            "a chunk of it ends at byte 2147483668",
        ),
        (lambda data: embed_raw(b""), "0 bytes, expected at least 8"),
        (lambda data: embed_raw(b"PK\x03\x04" * 9), "This is a pickle"),
        (lambda data: embed_raw(data), "begins with|claims"),  # a card in a card
        (lambda data: data + bytes(MAX_CARD_BYTES), f"more than {MAX_CARD_BYTES} bytes"),
    ],
)
def test_a_card_that_is_damaged_is_refused_with_a_sentence(card, make, message):
    card.write_bytes(make(card.read_bytes()))
    with pytest.raises(ConceptError, match=message) as caught:
        Concept.load(card)
    assert str(caught.value).endswith(".")


def embed_raw(body):
    return embed(Image.new("RGB", (2, 2)), body)


def test_a_concept_too_large_for_a_file_is_too_large_for_a_card(drawing):
    with pytest.raises(ConceptError, match="more than 8388608 bytes"):
        Concept.from_bytes(embed(drawing, bytes(9 * 1024 * 1024)))


def test_every_truncation_of_a_card_is_refused(card):
    data = card.read_bytes()
    for length in range(len(data)):
        with pytest.raises(ConceptError):
            Concept.from_bytes(data[:length])


def test_bytes_behind_the_end_of_a_picture_are_no_part_of_it(card):
    data = card.read_bytes()
    assert Concept.from_bytes(data + chunk(CHUNK, b"x")).token == "<cat>"
