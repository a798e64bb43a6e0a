"""Checkpoints in Stable Diffusion's original layout: written here by the reverse of the published key tables."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from perfusion.base import load_base
from perfusion.commands import train as command
from perfusion.errors import ModelError
from perfusion.pocket.architecture import build_pipeline
from perfusion.single_file import check_single_file, find_config

Tensors = dict[str, torch.Tensor]

UNET_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def original_unet_name(name: str, layers: int, attention: set[int]) -> str:
    """Where the original keeps a UNet's tensor. `attention`: the blocks of the way up that have any."""
    for ours, theirs in UNET_NAMES.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        place = f"middle_block.{2 * int(match[2]) if match[1] == 'resnets' else 1}"
    elif match := re.match(r"down_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name):
        block, part, layer = int(match[1]), match[2], int(match[3])
        number = 1 + block * (layers + 1) + (layers if part == "downsamplers" else layer)
        place = f"input_blocks.{number}.{1 if part == 'attentions' else 0}"
    elif match := re.match(r"up_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name):
        block, part, layer = int(match[1]), match[2], int(match[3])
        number = block * (layers + 1) + (layers if part == "upsamplers" else layer)
        place = (
            f"output_blocks.{number}."
            + {
                "resnets": "0",
                "attentions": "1",
                "upsamplers": "2" if block in attention else "1",
            }[part]
        )
    assert match is not None, name
    inside = match[match.lastindex or 0]
    if "downsamplers" in name:
        inside = inside.replace("conv", "op")
    head, _, tail = inside.partition(".")
    return f"{place}.{UNET_RESNET.get(head, head) if 'resnets' in name else head}.{tail}"


def original_vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    return name.replace(".resnets", ".block").replace("upsamplers.0", "upsample")


def to_original(pipeline: Any) -> Tensors:
    """A pipeline of Stable Diffusion 1.x as one checkpoint."""
    layers, attention = pipeline.unet.config.layers_per_block, {0, 1}
    levels = len(pipeline.vae.config.block_out_channels)
    tensors = {
        f"model.diffusion_model.{original_unet_name(name, layers, attention)}": value
        for name, value in pipeline.unet.state_dict().items()
    }
    tensors |= {
        f"first_stage_model.{original_vae_name(name, levels)}": value
        for name, value in pipeline.vae.state_dict().items()
    }
    tensors |= {
        f"cond_stage_model.transformer.text_model.{name}": value
        for name, value in pipeline.text_encoder.state_dict().items()
    }
    return {name: value.half().contiguous() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    safetensors.torch.save_file(to_original(build_pipeline("tiny")), path)
    return path


@pytest.fixture(scope="module")
def settings(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same model without its weights."""
    folder = tmp_path_factory.mktemp("settings") / "model"
    leave = shutil.ignore_patterns("*.safetensors", "captions.txt")
    return Path(shutil.copytree(tiny_model, folder, ignore=leave))


def test_a_checkpoint_is_the_folder_it_was_made_from(checkpoint, settings, tiny_base):
    base = load_base(checkpoint, config=settings)
    for part, expected in zip(base.parts, tiny_base.parts, strict=True):
        own, state = part.state_dict(), expected.state_dict()
        assert own.keys() == state.keys()
        for name, value in own.items():
            assert torch.equal(value, state[name].half().float()), name
        assert part.dtype == torch.float32
        assert not part.training
        assert not any(weight.requires_grad for weight in part.parameters())
    assert base.fingerprint == tiny_base.fingerprint
    assert (base.family, base.folder) == ("pocket", checkpoint)
    assert dict(base.scheduler) == dict(tiny_base.scheduler)


def test_opening_a_checkpoint_says_nothing(checkpoint, settings, capfd, caplog):
    load_base(checkpoint, config=settings)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_train_command_takes_a_checkpoint_and_its_settings(
    checkpoint, settings, tiny_model, tmp_path, monkeypatch
):
    from PIL import Image

    from perfusion.concept import Concept

    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pictures/1.png")
    output = tmp_path / "cat.safetensors"
    arguments = {
        "--images": tmp_path / "pictures", "--superclass": "cat", "--model": checkpoint, "--config": settings,
        "--captions": tiny_model / "captions.txt", "--steps": 1, "--batch-size": 1, "--output": output,
    }  # fmt: skip
    words = [str(word) for pair in arguments.items() for word in pair]
    assert command.main([*words, "--quiet"]) == 0
    assert Concept.load(output).base == "pocket"


def change(checkpoint: Path, path: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy with tensors replaced, or left out where None; dots are written as two underscores."""
    content = safetensors.torch.load_file(checkpoint)
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del content[name]
        else:
            content[name] = tensor
    safetensors.torch.save_file(content, path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "model__diffusion_model__out__2__bias",
        "first_stage_model__decoder__conv_out__bias",
        "cond_stage_model__transformer__text_model__final_layer_norm__bias",
    ],
)
def test_a_checkpoint_that_misses_a_tensor_is_refused(checkpoint, settings, tmp_path, name):
    path = change(checkpoint, tmp_path / "model.safetensors", **{name: None})
    with pytest.raises(ModelError, match=r"miss(es)? (tensors that the settings|1 tensors)"):
        load_base(path, config=settings)


def test_settings_of_another_architecture_are_refused(checkpoint, settings, tiny_xl_model, tmp_path):
    with pytest.raises(
        ModelError, match=r"a sd15 checkpoint, and .* is StableDiffusionXLPipeline; expected the folder"
    ):
        load_base(checkpoint, config=tiny_xl_model)
    path = change(
        checkpoint, tmp_path / "m.safetensors", model__diffusion_model__time_embed__0__bias=torch.ones(3)
    )
    with pytest.raises(ModelError, match=r"cannot be read with the settings of .*same architecture"):
        load_base(path, config=settings)
    with pytest.raises(ModelError, match="no such folder"):
        load_base(checkpoint, config=tmp_path / "nothing")


def test_a_truncated_checkpoint_is_refused(checkpoint, settings, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"cannot be read: .*; the copy may be incomplete"):
        load_base(path, config=settings)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_unopened_with_how_to_convert_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ModelError, match=r"is a pickle, which can run code: convert it.*save_pretrained"):
        load_base(tmp_path / name, config=tmp_path)


OTHERS = {
    "a LoRA": (["lora_unet_down_blocks_0.lora_down.weight"], "no UNet in the original layout .* a LoRA's"),
    "Flux": (["double_blocks.0.img_attn.norm.key_norm.scale"], "a transformer's weights"),
    "SD3": (
        ["model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias"],
        "a transformer in place of a UNet",
    ),
    "the refiner": (
        ["model.diffusion_model.input_blocks.0.0.bias", "conditioner.embedders.0.model.ln_final.bias"],
        "SDXL's refiner",
    ),
    "a UNet alone": (["model.diffusion_model.input_blocks.0.0.bias"], "a UNet and no text encoder"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_are_refused_by_what_they_hold(tmp_path, case):
    names, message = OTHERS[case]
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({name: torch.zeros(1) for name in names}, path)
    with pytest.raises(ModelError, match=message):
        load_base(path, config=tmp_path)


def test_an_inpainting_checkpoint_is_refused(checkpoint, tmp_path):
    name = "model__diffusion_model__input_blocks__0__0__weight"
    path = change(checkpoint, tmp_path / "m.safetensors", **{name: torch.zeros(16, 9, 3, 3)})
    with pytest.raises(ModelError, match="its UNet has 9 input channels, expected 4; inpainting"):
        check_single_file(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cond_stage_model.transformer.text_model.x", "sd15"),
        ("cond_stage_model.model.ln_final.bias", "sd21"),
        ("conditioner.embedders.1.model.ln_final.bias", "sdxl"),
    ],
)
def test_the_kind_is_told_by_where_the_text_encoders_are(tmp_path, name, kind):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(
        {"model.diffusion_model.out.2.bias": torch.zeros(1), name: torch.zeros(1)}, path
    )
    assert check_single_file(path) == kind


def test_without_settings_the_usual_ones_are_looked_for_on_this_machine_only(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"stable-diffusion-v1-5 are not on this machine; give the folder.*--config"
    ):
        find_config(Path("model.safetensors"), "sd15")
    with pytest.raises(
        ModelError, match=r"does not tell what its UNet predicts; give the folder .* with --config"
    ):
        find_config(Path("model.safetensors"), "sd21")


def test_settings_that_were_fetched_one_day_are_found(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    (snapshot / "snapshots/abc/unet").mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "refs/main").write_text("abc")
    (snapshot / "snapshots/abc/model_index.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_config(Path("model.safetensors"), "sd15") == snapshot / "snapshots/abc"
