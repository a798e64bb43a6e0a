"""Masks as pictures, to be looked at before a training and to be given to it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.base.base_model import load_base
from perfusion.commands import train as command
from perfusion.picture_input import open_picture
from perfusion.training.config import TrainingConfig
from perfusion.training.mask_files import find_masks, write_masks
from perfusion.training.placement import Placement
from perfusion.training.samples import as_masks, encode_windows, object_maps
from perfusion.training.templates import check_superclass
from perfusion.training.training_pictures import load_picture

PHOTOS = sorted((Path(__file__).parents[3] / "examples" / "subjects" / "tuxedo-cat").glob("*.png"))[:2]
CONFIG = TrainingConfig(superclass="cat", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def base():
    return load_base(None)


@pytest.fixture(scope="module")
def masks(base):
    return find_masks(PHOTOS, CONFIG, model=base)


def test_the_mask_of_a_square_picture_is_what_the_model_s_attention_says_of_all_of_it(base, masks):
    subject, placement = check_superclass(base, "cat"), Placement.pick("cpu", "fp32")
    side = base.resolution
    pictures = [open_picture(path).resize((side, side), Image.Resampling.LANCZOS) for path in PHOTOS]
    pixels = torch.from_numpy(np.stack(pictures).astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1)
    with torch.no_grad():
        latents = encode_windows(base, pixels, CONFIG, placement)
        maps = object_maps(base, latents, pixels, subject, CONFIG, placement)
        expected = as_masks(maps, CONFIG)[:, 0].numpy()
    for path, mask, values in zip(PHOTOS, masks, expected, strict=True):
        assert mask.size == open_picture(path).size
        small = np.asarray(mask.resize(values.shape[::-1], Image.Resampling.BOX), np.float32) / 255
        assert np.abs((small > 0.5) != (values > 0.5)).mean() < 0.04


def test_a_long_picture_has_a_mask_of_its_own_size_and_where_its_object_is(base, masks, tmp_path):
    square = open_picture(PHOTOS[0])
    side = square.width
    long = Image.new("RGB", (2 * side, side), (127, 127, 127))
    long.paste(square, (side, 0))
    long.save(tmp_path / "long.png")
    (mask,) = find_masks([tmp_path / "long.png"], CONFIG, model=base)
    light = np.asarray(mask) > 127
    assert mask.size == long.size
    assert light[:, side:].sum() > 4 * light[:, :side].sum()


def test_written_masks_are_those_that_a_training_reads(base, masks, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in PHOTOS:
        (folder / path.name).write_bytes(path.read_bytes())
    covers = write_masks(folder, tmp_path / "masks", CONFIG, model=base)
    for path, mask in zip(PHOTOS, masks, strict=True):
        picture = load_picture(folder / path.name, tmp_path / "masks")
        assert picture.mask is not None and picture.mask.tobytes() == mask.tobytes()
        assert covers[path.name] == pytest.approx((np.asarray(mask) > 127).mean())


def test_what_a_picture_is_cut_out_by_is_its_mask_and_what_is_not_found_counts_whole(base, tmp_path):
    cut = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    cut.paste((200, 30, 30, 255), (16, 16, 48, 48))
    cut.save(tmp_path / "cut.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "grey.png")
    by_alpha, of_grey = find_masks([tmp_path / "cut.png", tmp_path / "grey.png"], CONFIG, model=base)
    assert by_alpha.tobytes() == cut.getchannel("A").tobytes()
    levels = np.asarray(of_grey)
    assert (levels == 255).all() or 0.02 <= (levels > 127).mean() <= 0.95


def test_the_command_writes_them_and_trains_nothing(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(PHOTOS[0].read_bytes())
    arguments = [f"--images={folder}", "--superclass=cat", f"--write-masks={tmp_path / 'masks'}", "--json"]
    assert command.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.png"]
    assert 0.02 < told["covers"]["a.png"] < 0.95
    assert command.main([*arguments, "--resume"]) == 2
