"""Training pictures: what is found, what is refused, how they are prepared."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion.errors import TrainingError
from perfusion.training.crops import prepare
from perfusion.training.picture_folder import find_pictures
from perfusion.training.training_pictures import load_picture


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
    with pytest.raises(TrainingError, match="is not there"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="has no pictures to learn from: expected files ending in"):
        find_pictures(tmp_path)


def test_broken_picture_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "half.png", (300, 300))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"half\.png cannot be read as a picture"):
        load_picture(path, "none")


def test_huge_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    path = save(tmp_path / "huge.png", (12000, 11000), "1", 0)
    with pytest.raises(TrainingError, match=r"huge\.png has 12000 × 11000 pixels, more than the 120 million"):
        load_picture(path, "none")


def test_tiny_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected at least 16"):
        load_picture(save(tmp_path / "dot.png", (4, 40)), "none")


def test_grey_of_sixteen_bits_is_read_and_not_cut_to_white(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 1024, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    grey = np.asarray(load_picture(tmp_path / "deep.png", "none").image)[..., 0]
    assert np.abs(grey.astype(float) - deep / 257).max() <= 1


def test_hidden_files_are_passed_over_in_silence(tmp_path, caplog) -> None:
    save(tmp_path / "1.png")
    (tmp_path / "._1.png").write_bytes(b"\0\5\x16\7")  # what macOS leaves on foreign disks
    save(tmp_path / "2.jfif.jpg").rename(tmp_path / "2.jfif")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [path.name for path in find_pictures(tmp_path)] == ["1.png", "2.jfif"]
    assert not caplog.records


def test_one_erased_pixel_cuts_out_no_object(tmp_path: Path) -> None:
    image = Image.new("RGBA", (32, 24), (200, 40, 10, 255))
    image.putpixel((0, 0), (0, 255, 0, 0))
    image.save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", "auto")
    assert picture.mask is None
    assert picture.image.getpixel((0, 0)) == (127, 127, 127)  # and what hides below it is not learned
    with pytest.raises(TrainingError, match="no transparent part"):
        load_picture(tmp_path / "a.png", "alpha")


def test_a_mask_on_a_transparent_layer_is_its_strokes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    layer = Image.new("RGBA", (32, 24), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (4, 4, 12, 12))
    (tmp_path / "masks").mkdir()
    layer.save(tmp_path / "masks" / "a.png")
    mask = load_picture(path, tmp_path / "masks").mask
    assert mask is not None
    assert np.asarray(mask).sum() == 64 * 255


def test_what_is_transparent_is_no_part_of_the_object_whatever_the_mask_says(tmp_path: Path) -> None:
    image = Image.new("RGBA", (32, 24), (200, 40, 10, 255))
    image.paste((0, 255, 0, 0), (0, 0, 16, 24))
    image.save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    mask = np.zeros((24, 32), np.uint8)
    mask[4:20] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    loaded = load_picture(tmp_path / "a.png", tmp_path / "masks").mask
    assert loaded is not None
    assert np.asarray(loaded)[:, :16].max() == 0
    assert np.asarray(loaded)[4:20, 16:].min() == 255


@pytest.mark.parametrize(("level", "share"), [(0, "0%"), (255, "100%")])
def test_masks_of_a_folder_that_cover_nothing_or_all_are_not_believed(tmp_path, caplog, level, share) -> None:
    (tmp_path / "masks").mkdir()
    save(tmp_path / "masks" / "a.png", mode="L", colour=level)
    assert load_picture(save(tmp_path / "a.png"), tmp_path / "masks").mask is None
    assert f"the mask covers {share} of the picture, expected 2% to 95%" in caplog.text


def test_masks_of_zeros_and_ones_are_refused_and_inverted_ones_are_told(tmp_path, caplog) -> None:
    path, folder = save(tmp_path / "a.png"), tmp_path / "masks"
    folder.mkdir()
    shape = np.zeros((24, 32), np.uint8)
    shape[6:18, 8:24] = 1
    Image.fromarray(shape).save(folder / "a.png")
    with pytest.raises(TrainingError, match=r"a\.png holds 0 and 1 where 0 and 255 are expected"):
        load_picture(path, folder)
    Image.fromarray(shape * 255).save(folder / "a.png")
    assert load_picture(path, folder).mask is not None
    assert not caplog.records
    Image.fromarray(255 - shape * 255).save(folder / "a.png")
    assert load_picture(path, folder).mask is not None
    assert "light all around and covers 75%" in caplog.text


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
    with pytest.raises(TrainingError, match="is not there"):
        load_picture(path, folder)
    folder.mkdir()
    with pytest.raises(TrainingError, match=r"has no mask for a\.jpg"):
        load_picture(path, folder)
    save(folder / "a.png", (32, 23), "L", 255)
    with pytest.raises(TrainingError, match="32 × 23 pixels and its picture 32 × 24"):
        load_picture(path, folder)
    half = np.repeat(np.uint8([0, 255]), 16)[None].repeat(24, 0)
    Image.fromarray(half).save(folder / "a.png")
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
