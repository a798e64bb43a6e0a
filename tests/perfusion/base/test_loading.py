"""Weights as the world stores them: half precision, variants, shards, old names; and what is not there."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from perfusion.base.base_model import BaseModel, load_base
from perfusion.base.loading import first_line, read_json
from perfusion.errors import ModelError
from recipes.pocket.architecture import build_pipeline

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def save(folder: Path, **options: object) -> Path:
    """The tiny model in half precision, written by diffusers itself."""
    build_pipeline("tiny").to(torch.float16).save_pretrained(folder, **options)
    (folder / "perfusion.json").write_text('{"family": "pocket"}')
    return folder


def test_a_models_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"vae": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "model_index.json") == {"vae": 1}


def same_weights(one: BaseModel, other: BaseModel) -> bool:
    return all(
        torch.equal(value, other_part.state_dict()[name])
        for part, other_part in zip(one.parts, other.parts, strict=True)
        for name, value in part.state_dict().items()
    )


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(save(tmp_path_factory.mktemp("half") / "model"))


def test_half_precision_is_opened_as_asked(half, tmp_path):
    assert {part.dtype for part in half.parts} == {torch.float32}
    folder = save(tmp_path / "model")
    assert {part.dtype for part in load_base(folder, torch.bfloat16).parts} == {torch.bfloat16}


def test_files_named_for_a_variant_are_found(half, tmp_path):
    folder = save(tmp_path / "model", variant="fp16")
    assert (folder / "unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert (folder / "text_encoder/model.fp16.safetensors").is_file()
    assert same_weights(load_base(folder), half)


def test_plain_files_are_taken_before_those_of_a_variant(half, tmp_path):
    folder = save(tmp_path / "model")
    for part, stem in PARTS.items():
        (folder / part / f"{stem}.fp16.safetensors").write_bytes(b"damaged, and not looked at")
    assert same_weights(load_base(folder), half)


def test_an_unusual_variant_is_taken_when_it_is_the_only_one(half, tmp_path):
    folder = save(tmp_path / "model", variant="ema")
    assert same_weights(load_base(folder), half)
    other = folder / "unet/diffusion_pytorch_model.nonema.safetensors"
    shutil.copy(folder / "unet/diffusion_pytorch_model.ema.safetensors", other)
    with pytest.raises(
        ModelError, match=r"unet/ has the variants ema, nonema and no plain weights. Keep one"
    ):
        load_base(folder)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_put_together(half, tmp_path, variant):
    folder = save(tmp_path / "model", variant=variant, max_shard_size="100KB")
    shards = list((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert same_weights(load_base(folder), half)
    shards[0].unlink()
    with pytest.raises(
        ModelError, match=r"1 of the files that .*index.* lists are not there, the first diffusion_py"
    ):
        load_base(folder)


def test_a_shard_index_without_a_list_is_refused(tmp_path):
    folder = save(tmp_path / "model", max_shard_size="100KB")
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="lists no weights"):
        load_base(folder)


def test_text_encoders_saved_before_transformers_5_are_read(half, tmp_path):
    """The published files name every tensor with `text_model.` in front, and hold position ids besides."""
    folder = save(tmp_path / "model")
    file = folder / "text_encoder/model.safetensors"
    tensors = {f"text_model.{name}": value for name, value in safetensors.torch.load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    assert same_weights(load_base(folder), half)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_without_weights_is_named(copy, part):
    (copy / part / f"{PARTS[part]}.safetensors").unlink()
    with pytest.raises(
        ModelError, match=rf"no {PARTS[part]}\.safetensors in {part}/; the copy of the model is incom"
    ):
        load_base(copy)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_with_a_pickle_only_is_told_the_way_out(copy, part):
    file = copy / part / f"{PARTS[part]}.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(
        ModelError, match=rf"only {PARTS[part]}\.bin; .*a pickle can run code.*safe_serialization=True"
    ):
        load_base(copy)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_with_a_truncated_file_is_named(copy, part):
    file = copy / part / f"{PARTS[part]}.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=f"its {part} cannot be read"):
        load_base(copy)


def test_weights_under_another_name_are_named(copy):
    file = copy / "unet/diffusion_pytorch_model.safetensors"
    file.rename(copy / "unet/weights.safetensors")
    with pytest.raises(ModelError, match=r"but weights\.safetensors; rename it"):
        load_base(copy)


def test_settings_are_refused_before_the_weights_are_read(copy):
    config = json.loads((copy / "unet/config.json").read_text())
    (copy / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))
    (copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="9 input channels where the VAE has 4"):
        load_base(copy)


def test_a_vae_that_shifts_its_latents_is_refused(copy):
    config = json.loads((copy / "vae/config.json").read_text())
    (copy / "vae/config.json").write_text(json.dumps(config | {"latents_mean": [0.1] * 4}))
    with pytest.raises(ModelError, match=r"shifts the latents \(latents_mean\)"):
        load_base(copy)


def test_a_folder_with_settings_of_another_is_refused(copy):
    with pytest.raises(ModelError, match="a folder has its own settings; --config goes with a single-file"):
        load_base(copy, config=copy)


@pytest.mark.parametrize(
    ("said", "handed_on"),
    [
        ("The file is cut off.", "The file is cut off"),
        ("Weights only load failed. Set weights_only=False to trust it.", "Weights only load failed"),
        (
            "Cannot be built. Please pass `trust_remote_code=True`; at your own risk",
            "Cannot be built. at your own risk",
        ),
        ("Use `low_cpu_mem_usage=False` to go on with random weights", "ValueError"),
    ],
)
def test_a_librarys_unsafe_advice_is_not_handed_on(said, handed_on):
    assert first_line(ValueError(said + "\nmore")) == handed_on


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(copy, part, number):
    (path,) = (copy / part).glob("*.safetensors")
    tensors = safetensors.torch.load_file(path)
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name].view(-1)[0] = number
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"the weight .* of its {part} holds NaN or infinity"):
        load_base(copy)
