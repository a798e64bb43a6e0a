"""CLIPSeg from a local folder, on a tiny one with random weights, against transformers' own processor and model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from perfusion.errors import ModelError
from perfusion.training.segment import segment


@pytest.fixture(scope="module")
def folder(
    tiny_clip: tuple[Any, dict[str, Any], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    tokenizer, text, vision = tiny_clip
    vision = vision | {"num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPSegForImageSegmentation(
            CLIPSegConfig(
                text_config=text, vision_config=vision, projection_dim=8, extract_layers=[0, 1], reduce_dim=8,
                decoder_num_attention_heads=2, decoder_intermediate_size=8,
            )
        )  # fmt: skip
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("clipseg") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    ).save_pretrained(path)
    return path


def pictures(count: int = 3, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, size, size, 3), np.uint8)


def as_tensor(arrays: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(arrays.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def test_masks_equal_those_of_transformers_own_processor_and_model(folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPSegForImageSegmentation
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    arrays = pictures()
    pixels = ViTImageProcessorPil.from_pretrained(folder)(
        [Image.fromarray(array) for array in arrays], return_tensors="pt"
    ).pixel_values
    words = AutoTokenizer.from_pretrained(folder)(["cat"] * 3, return_tensors="pt")
    with torch.no_grad():
        model = CLIPSegForImageSegmentation.from_pretrained(folder).eval()
        expected = torch.sigmoid(model(**words, pixel_values=pixels).logits)[:, None]
    found = segment(folder, as_tensor(arrays), "cat", (16, 16))
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # 8-bit pixels against float ones


def test_masks_depend_on_the_word_and_have_the_size_asked_for(folder: Path) -> None:
    images = as_tensor(pictures(2, 24))
    cat, dog = (segment(folder, images, word, (6, 8)) for word in ("cat", "dog"))
    assert cat.shape == (2, 1, 6, 8)
    assert not torch.allclose(cat, dog)
    assert float(cat.min()) >= 0 and float(cat.max()) <= 1


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("*", "no such folder; expected a folder .* CIDAS/clipseg-rd64-refined"),
        ("config.json", "no config.json; expected"),
        ("model.safetensors", r"no \*.safetensors .* is not read\); expected"),
        ("tokenizer.json", "no vocabulary, tokenizer.json or vocab.json"),
    ],
)
def test_folder_without_a_part_is_refused(folder: Path, tmp_path: Path, missing: str, message: str) -> None:
    broken = tmp_path / "broken"
    if missing != "*":
        copy(folder, broken)
        (broken / missing).unlink()
    with pytest.raises(ModelError, match=message):
        segment(broken, as_tensor(pictures(1)), "cat", (4, 4))


def test_other_models_and_incomplete_or_damaged_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    broken = copy(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights.pop("decoder.film_add.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"miss 1 tensors, the first decoder\.film_add\.weight"):
        segment(broken, as_tensor(pictures(1)), "cat", (4, 4))
    (broken / "model.safetensors").write_bytes(b"12345")
    with pytest.raises(ModelError, match="cannot be read as CLIPSegForImageSegmentation"):
        segment(broken, as_tensor(pictures(1)), "cat", (4, 4))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(ModelError, match="a model of the type 'clip', expected 'clipseg'"):
        segment(broken, as_tensor(pictures(1)), "cat", (4, 4))
