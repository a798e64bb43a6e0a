"""Training pictures: what is found, what is refused, how they are prepared."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion.errors import TrainingError
from perfusion.training.training_pictures import find_pictures, load_picture, prepare


def save(
    path: Path, size: tuple[int, int] = (32, 24), mode: str = "RGB", colour: object = (200, 40, 10)
) -> Path:
    Image.new(mode, size, colour).save(path)
    return path


def test_pictures_are_found_by_name_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert [path.name for path in find_pictures(tmp_path)] == ["a.JPG", "b.png", "c.webp"]


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such folder"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="no pictures in it; expected files ending in"):
        find_pictures(tmp_path)


def test_broken_picture_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "half.png", (300, 300))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"half\.png: not a readable picture"):
        load_picture(path, "none")


def test_huge_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    path = save(tmp_path / "huge.png", (9000, 8000), "1", 0)
    with pytest.raises(TrainingError, match=r"huge\.png: 9000 × 8000 pixels, more than the 64 million"):
        load_picture(path, "none")


def test_tiny_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected at least 16"):
        load_picture(save(tmp_path / "dot.png", (4, 40)), "none")


def test_grey_of_sixteen_bits_is_refused_and_not_cut_to_white(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 1024, dtype=np.uint16).reshape(32, 32)).save(tmp_path / "deep.png")
    with pytest.raises(TrainingError, match=r"deep\.png: grey in more than 8 bits .*; convert it to 8 bits"):
        load_picture(tmp_path / "deep.png", "none")


def test_alpha_is_the_mask_and_the_picture_is_drawn_on_grey(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (5, 5, 15, 15))
    image.save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", "auto")
    assert picture.mask is not None
    assert np.asarray(picture.mask).sum() == 100 * 255
    assert picture.image.getpixel((0, 0)) == (127, 127, 127)
    assert picture.image.getpixel((10, 10)) == (0, 0, 255)


def test_alpha_is_asked_for_and_missing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no transparent part"):
        load_picture(save(tmp_path / "a.png"), "alpha")
    assert load_picture(tmp_path / "a.png", "auto").mask is None


def test_masks_come_from_a_folder_by_name_and_must_fit(tmp_path: Path) -> None:
    path, folder = save(tmp_path / "a.jpg"), tmp_path / "masks"
    with pytest.raises(TrainingError, match="no such folder"):
        load_picture(path, folder)
    folder.mkdir()
    with pytest.raises(TrainingError, match=r"no mask for a\.jpg"):
        load_picture(path, folder)
    save(folder / "a.png", (32, 23), "L", 255)
    with pytest.raises(TrainingError, match="32 × 23 pixels, its picture has 32 × 24"):
        load_picture(path, folder)
    save(folder / "a.png", (32, 24), "L", 255)
    assert load_picture(path, folder).mask is not None


def test_first_variant_is_the_whole_square_and_masks_move_with_pictures(tmp_path: Path) -> None:
    """The mask is the picture's own red channel: whatever the crop, the two must stay equal."""
    gradient = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    Image.fromarray(np.stack([gradient, 0 * gradient, 0 * gradient], -1)).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(gradient).save(tmp_path / "masks" / "a.png")
    images, masks = prepare([load_picture(tmp_path / "a.png", tmp_path / "masks")], 32, 6, True, seed=3)
    assert images.shape == (6, 3, 32, 32)
    assert masks.shape == (6, 1, 32, 32)
    np.testing.assert_allclose((images[:, :1] + 1) / 2, masks, atol=1e-6)
    rising = [bool(mask[0, 0, -1] > mask[0, 0, 0]) for mask in masks]
    assert rising == [True, False, True, False, True, False]
    unmirrored = prepare([load_picture(tmp_path / "a.png", tmp_path / "masks")], 32, 6, False, seed=3)[1]
    assert all(mask[0, 0, -1] > mask[0, 0, 0] for mask in unmirrored)


def test_wholly_transparent_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="transparent everywhere"):
        load_picture(save(tmp_path / "a.png", mode="RGBA", colour=(9, 9, 9, 0)), "auto")
