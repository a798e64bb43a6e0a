"""Masks on the way into training: alpha where there is one, else found, and not believed where that cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.base.base_model import load_base
from perfusion.training import TrainingConfig, samples
from perfusion.training.picture_folder import find_pictures
from perfusion.training.placement import Placement
from perfusion.training.samples import encode_pictures, find_objects
from perfusion.training.templates import check_superclass
from perfusion.training.training_pictures import load_picture

EXAMPLES = Path(__file__).parents[3] / "examples" / "subjects"
CPU = Placement.pick("cpu")


def test_the_embedded_models_own_attention_finds_the_objects_of_the_examples() -> None:
    base = load_base(None)
    lines: list[str] = []
    folder = EXAMPLES / "pink-cake"
    options = TrainingConfig(superclass="cake", crops=2)
    paths = find_pictures(folder)[:3]
    truth = encode_pictures(
        base, [load_picture(path, folder / "masks") for path in paths], options, CPU
    ).masks
    pictures = [load_picture(path, "auto") for path in paths]
    encoded = encode_pictures(base, pictures, options, CPU)
    assert bool((encoded.masks == 1).all())
    found = find_objects(base, pictures, encoded, check_superclass(base, "cake"), options, CPU, lines.append)
    a, b = found.masks > 0.5, truth > 0.5
    overlap = (a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1)
    assert float(overlap.mean()) > 0.75
    assert torch.equal(found.latents, encoded.latents)
    assert lines[0].startswith("masks from the base model's attention to 'cake': 1.png ")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """One with an alpha channel, one without."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 4), np.uint8)
    noise[..., 3] = 255
    Image.fromarray(noise[..., :3]).save(folder / "plain.png")
    noise[:, :20, 3] = 0
    Image.fromarray(noise).save(folder / "alpha.png")
    return folder


def test_only_pictures_without_a_mask_are_asked_about(tiny_base, pictures, monkeypatch) -> None:
    asked = []

    def maps(unet, latents, *_, **options):
        asked.append((len(latents), list(options["subject"]), list(options["words"])))
        return torch.zeros(len(latents), 1, *latents.shape[-2:]).index_fill_(3, torch.tensor([0]), 1.0)

    monkeypatch.setattr(samples, "attention_maps", maps)
    options = TrainingConfig(superclass="teddy bear", crops=3)
    lines: list[str] = []
    loaded = [load_picture(path, "auto") for path in find_pictures(pictures)]
    encoded = encode_pictures(tiny_base, loaded, options, CPU)
    subject = check_superclass(tiny_base, "teddy bear")
    found = find_objects(tiny_base, loaded, encoded, subject, options, CPU, lines.append)
    assert asked == [(3, [5, 6], [1, 2, 3, 4, 5, 6, 7])]  # a photo of a teddy bear, then the end
    assert torch.equal(found.masks[:3], encoded.masks[:3])
    assert bool((found.masks[3:, :, :, 0] == 1).all())
    assert float(found.masks[3:, :, :, 1:].sum()) == 0
    assert lines == [
        "masks from transparency: alpha.png 50%",
        "masks from the base model's attention to 'teddy bear': plain.png 12%",
    ]


def test_what_masks_of_a_folder_cover_is_said_also_of_strokes_on_a_layer(
    tiny_base, pictures, tmp_path
) -> None:
    """Nobody sees else that a mask was read otherwise than it was meant."""
    folder = tmp_path / "masks"
    folder.mkdir()
    strokes = np.zeros((40, 40, 4), np.uint8)
    strokes[:10] = 255
    Image.fromarray(strokes).save(folder / "plain.png")
    lines: list[str] = []
    options = TrainingConfig(superclass="cat", masks=folder, crops=1)
    loaded = [load_picture(pictures / "plain.png", folder)]
    encoded = encode_pictures(tiny_base, loaded, options, CPU)
    assert find_objects(tiny_base, loaded, encoded, [[1]], options, CPU, lines.append) is encoded
    assert lines == [f"masks from {folder}: plain.png 25%"]


def test_maps_that_show_nothing_count_everywhere_and_are_told(
    tiny_base, pictures, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(
        samples, "attention_maps", lambda unet, latents, *_, **__: torch.zeros(len(latents), 1, 8, 8)
    )
    options = TrainingConfig(superclass="cat", crops=2)
    loaded = [load_picture(path, "auto") for path in find_pictures(pictures)]
    encoded = encode_pictures(tiny_base, loaded, options, CPU)
    found = find_objects(
        tiny_base, loaded, encoded, check_superclass(tiny_base, "cat"), options, CPU, lambda _: None
    )
    assert bool((found.masks[2:] == 1).all())
    assert "plain.png: the mask found for it covers 100% of the picture" in caplog.text
    assert "alpha.png" not in caplog.text


@pytest.mark.parametrize("masks", ["none", "alpha"])
def test_nothing_is_looked_for_where_the_options_do_not_ask(tiny_base, pictures, masks) -> None:
    options = TrainingConfig(superclass="cat", masks=masks, crops=1)
    loaded = [load_picture(path, masks) for path in find_pictures(pictures)[:1]]
    encoded = encode_pictures(tiny_base, loaded, options, CPU)
    assert find_objects(tiny_base, loaded, encoded, [[1]], options, CPU, lambda _: None) is encoded


def test_the_segmenter_is_given_the_pictures_the_word_and_the_size(tiny_base, pictures, monkeypatch) -> None:
    seen = []

    def segment(folder, images, superclass, size, device):
        seen.append((folder, tuple(images.shape), superclass, size))
        return torch.full((len(images), 1, *size), 0.2).index_fill_(2, torch.tensor([0]), 0.9)

    monkeypatch.setattr(samples, "segment", segment)
    options = TrainingConfig(superclass="cat", masks="clipseg", segmenter=Path("seg"), crops=2)
    loaded = [load_picture(path, "auto") for path in find_pictures(pictures)]
    encoded = encode_pictures(tiny_base, loaded, options, CPU)
    found = find_objects(
        tiny_base, loaded, encoded, check_superclass(tiny_base, "cat"), options, CPU, lambda _: None
    )
    side = tiny_base.resolution
    assert seen == [(Path("seg"), (2, 3, side, side), "cat", (8, 8))]
    assert float(found.masks[2:, :, 0].min()) == pytest.approx(0.9)
