"""Windows of pictures that are not square: the object stays in view, by its mask or by where it is found."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.base.base_model import load_base
from perfusion.training import TrainingConfig, object_boxes
from perfusion.training.crops import prepare
from perfusion.training.object_boxes import locate_objects
from perfusion.training.placement import Placement
from perfusion.training.templates import check_superclass
from perfusion.training.training_pictures import Picture, load_picture

SUBJECTS = Path(__file__).parents[3] / "examples" / "subjects"
CPU = Placement.pick("cpu")


def picture(size: tuple[int, int], box: tuple[int, int, int, int]) -> Picture:
    """Black, with a mask that is light in the box, as the picture is."""
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return Picture(path=Path("a.png"), image=mask.convert("RGB"), mask=mask)


@pytest.mark.parametrize("size", [(400, 100), (100, 400)])
@pytest.mark.parametrize("start", [0, 60, 330])
def test_every_window_shows_all_of_the_object_wherever_it_stands(size, start) -> None:
    along, across = (start, start + 70), (10, 80)
    ends = (along, across) if size[0] > size[1] else (across, along)
    box = (ends[0][0], ends[1][0], ends[0][1], ends[1][1])
    _, masks = prepare([picture(size, box)], 100, 8, True, seed=1)
    areas = masks.sum((1, 2, 3))
    assert areas[0] == pytest.approx(70 * 70, rel=0.02)
    assert (areas > 0.98 * areas[0]).all()  # smaller windows show it larger, and none cuts it


def test_an_object_longer_than_the_picture_is_high_is_shown_whole_on_grey() -> None:
    images, masks = prepare([picture((300, 100), (20, 20, 220, 80))], 100, 1, False, seed=0)
    assert masks.sum() == pytest.approx(100 * 100 * (200 * 60) / (200 * 200), rel=0.03)
    np.testing.assert_allclose(
        (images[0, :, 0] + 1) / 2, 127 / 255, atol=1e-3
    )  # above it, where no picture is
    assert masks[0, 0, 0].max() == 0


def test_without_a_mask_the_middle_is_shown_and_a_box_moves_the_window() -> None:
    ramp = np.tile(np.linspace(0, 255, 300, dtype=np.uint8), (100, 1))
    plain = Picture(path=Path("a.png"), image=Image.fromarray(ramp).convert("RGB"), mask=None)
    boxed = Picture(path=plain.path, image=plain.image, mask=None, box=(240, 10, 290, 90))
    middle, moved = (
        float((prepare([source], 50, 1, False, 0)[0].mean() + 1) / 2) for source in (plain, boxed)
    )
    assert middle == pytest.approx(0.5, abs=0.01)
    assert moved == pytest.approx(245 / 300, abs=0.01)


def test_the_embedded_model_finds_what_stands_at_the_edge_of_a_wide_picture(tmp_path: Path) -> None:
    base, lines = load_base(None), list[str]()
    wide, truth = [], []
    for number, left in ((1, True), (2, False)):
        source = load_picture(SUBJECTS / "school-bus" / f"{number}.png", SUBJECTS / "school-bus" / "masks")
        width, height = source.image.size
        canvas = Image.new("RGB", (2 * width, height), source.image.getpixel((0, 0)))
        canvas.paste(source.image, (0 if left else width, 0))
        wide.append(Picture(path=source.path, image=canvas, mask=None))
        assert source.mask is not None
        mask = Image.new("L", canvas.size, 0)
        mask.paste(source.mask, (0 if left else width, 0))
        truth.append(mask)
    options, subject = TrainingConfig(superclass="bus"), check_superclass(base, "bus")
    located = locate_objects(base, wide, subject, options, CPU, lines.append)
    shown = [
        prepare([Picture(path=found.path, image=mask.convert("RGB"), mask=None, box=box)], 64, 1, False, 0)[0]
        for found, mask in zip(located, truth, strict=True)
        for box in (found.box, None)
    ]
    light = [float((image + 1).sum()) for image in shown]
    assert light[0] > 1.4 * light[1]  # the middle shows half of the bus
    assert light[2] > 1.4 * light[3]
    assert lines == []
    unmasked = TrainingConfig(superclass="bus", masks="none")
    assert locate_objects(base, wide, subject, unmasked, CPU, lines.append) == wide


def test_what_stands_at_the_edge_of_a_desert_is_found_although_all_of_it_is_lighter_than_grey() -> None:
    base, path = load_base(None), sorted((SUBJECTS / "pink-cake").glob("*.png"))[4]
    cake, side = Image.open(path).convert("RGB"), 768
    cake = cake.resize((side, side), Image.Resampling.LANCZOS)
    wide = cake.crop((0, 0, 24, side)).resize((1600, side))
    wide.paste(cake, (100, 0))
    options, subject = TrainingConfig(superclass="cake"), check_superclass(base, "cake")
    (located,) = locate_objects(
        base, [Picture(path=path, image=wide, mask=None)], subject, options, CPU, print
    )
    assert located.box is not None
    middle = (located.box[0] + located.box[2]) / 2
    assert abs(middle - (100 + side / 2)) < 0.2 * side


def test_where_nothing_is_found_the_middle_is_taken_and_said(tiny_base, monkeypatch) -> None:
    grey = Picture(path=Path("empty.png"), image=Image.new("RGB", (90, 30), (127, 127, 127)), mask=None)
    lines: list[str] = []
    subject = check_superclass(tiny_base, "cat")
    monkeypatch.setattr(object_boxes, "object_maps", lambda *_: torch.ones(1, 1, 8, 8))
    located = locate_objects(tiny_base, [grey], subject, TrainingConfig(superclass="cat"), CPU, lines.append)
    assert located[0].box is None
    assert lines == ["no cat was found in empty.png; the middle is learned from"]
