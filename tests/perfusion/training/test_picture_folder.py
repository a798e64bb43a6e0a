"""A folder of pictures: what is learned from, and that nothing else is passed over in silence."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from perfusion import picture_input
from perfusion.errors import PictureError, TrainingError
from perfusion.picture_input import open_picture
from perfusion.training.picture_folder import find_pictures

ORANGE = (230, 120, 20)


def save(path: Path, kind: str | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 24), ORANGE).save(path, kind)
    return path


@pytest.fixture
def heif_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without pillow-heif."""
    monkeypatch.setattr(picture_input, "knows_heif", lambda: False)
    monkeypatch.setattr("perfusion.training.picture_folder.knows_heif", lambda: False)


@pytest.mark.usefixtures("heif_unknown")
def test_every_picture_that_is_not_used_is_named_with_what_to_do(tmp_path: Path, caplog) -> None:
    save(tmp_path / "1.png")
    for name in ("2.heic", "3.HEIF", "4.gif", "5.cr2"):
        (tmp_path / name).write_bytes(b"?")
    save(tmp_path / "IMG_6", "JPEG")
    save(tmp_path / "more" / "7.jpg")
    save(tmp_path / "masks" / "1.png")
    (tmp_path / "README").write_text("no picture")
    assert [path.name for path in find_pictures(tmp_path)] == ["1.png"]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        '2.heic, 3.HEIF are not used: pip install "perfusion-edge[heif]" to read HEIC, or convert',
        "4.gif, 5.cr2 are not used: convert to PNG or JPEG",
        "IMG_6 is not used: without a suffix; rename to .jpg or .png",
        "more/ is not used: put the pictures of folders beside the others",
    ]


@pytest.mark.usefixtures("heif_unknown")
def test_a_folder_of_phone_pictures_alone_is_refused_with_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "1.heic").write_bytes(b"?")
    with pytest.raises(TrainingError, match=r"no pictures to learn from: 1\.heic is not used: pip install"):
        find_pictures(tmp_path)


def test_many_are_counted_and_not_listed(tmp_path: Path, caplog) -> None:
    save(tmp_path / "1.png")
    for number in range(9):
        (tmp_path / f"{number}.gif").write_bytes(b"?")
    find_pictures(tmp_path)
    assert "5.gif and 3 more are not used" in caplog.text


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path, caplog) -> None:
    pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    assert picture_input.knows_heif()
    path = save(tmp_path / "1.heic", "HEIF")
    assert find_pictures(tmp_path) == [path]
    assert not caplog.records
    colour = np.asarray(open_picture(path).convert("RGB"), int)
    assert np.abs(colour - ORANGE).max() <= 12  # HEIC is lossy


@pytest.mark.usefixtures("heif_unknown")
def test_one_heic_anywhere_else_says_what_reads_it(tmp_path: Path) -> None:
    (tmp_path / "1.heic").write_bytes(b"?")
    with pytest.raises(PictureError, match=r'pip install "perfusion-edge\[heif\]", or convert it to JPEG'):
        open_picture(tmp_path / "1.heic")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_reads_it(tmp_path: Path) -> None:
    path = save(tmp_path / "1.avif", "AVIF")
    assert find_pictures(tmp_path) == [path]


def test_avif_is_named_where_pillow_reads_none(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    save(tmp_path / "1.png")
    (tmp_path / "2.avif").write_bytes(b"?")
    assert len(find_pictures(tmp_path)) == 1
    assert "2.avif is not used: convert to PNG or JPEG" in caplog.text
