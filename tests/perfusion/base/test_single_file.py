"""Checkpoints in Stable Diffusion's original layout: written here by the reverse of the published key tables."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from perfusion.base.base_model import load_base
from perfusion.base.checkpoint_facts import checkpoint_facts
from perfusion.base.model_options import ModelOptions
from perfusion.commands import train as command
from perfusion.errors import ModelError
from recipes.pocket.architecture import build_pipeline

Tensors = dict[str, torch.Tensor]

UNET_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",  # SDXL's
    "add_embedding.linear_2": "label_emb.0.2",
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


VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
OPENCLIP |= {"self_attn.out_proj": "attn.out_proj"}
OPENCLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def original_vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name.replace(".resnets", ".block").replace("upsamplers.0", "upsample")


def vae_to_original(vae: Any) -> Tensors:
    """Attention was a convolution of one pixel there."""
    levels = len(vae.config.block_out_channels)
    return {
        f"first_stage_model.{original_vae_name(name, levels)}": (
            value[:, :, None, None] if ".attentions." in name and value.ndim == 2 else value
        )
        for name, value in vae.state_dict().items()
    }


def openclip(encoder: Any) -> Tensors:
    """A text encoder as OpenCLIP has it: query, key and value in one matrix, the projection transposed."""
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    found = {theirs: state.pop(ours) for ours, theirs in OPENCLIP_ENDS.items()}
    if "text_projection.weight" in state:
        found["text_projection"] = state.pop("text_projection.weight").T
    for kind in ("weight", "bias"):
        for layer in range(encoder.config.num_hidden_layers):
            rows = [state.pop(f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(rows)
    for name, value in state.items():
        _, _, layer, rest = name.split(".", 3)
        part, _, kind = rest.rpartition(".")
        found[f"transformer.resblocks.{layer}.{OPENCLIP[part]}.{kind}"] = value
    return found


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def to_original(pipeline: Any, kind: str = "sd15") -> Tensors:
    """A pipeline of Stable Diffusion 1.x, 2.x or XL as one checkpoint."""
    unet, encoder = pipeline.unet, pipeline.text_encoder
    attention = {at for at, block in enumerate(unet.config.up_block_types) if block.startswith("CrossAttn")}
    tensors = {
        f"model.diffusion_model.{original_unet_name(name, unet.config.layers_per_block, attention)}": value
        for name, value in unet.state_dict().items()
    }
    tensors |= vae_to_original(pipeline.vae)
    if kind == "sd21":  # its last layer is left out by diffusers, which reads the one before
        tensors |= prefixed("cond_stage_model.model.", openclip(encoder))
        tensors["cond_stage_model.model.transformer.resblocks.23.ln_1.bias"] = torch.ones(1)
        tensors["cond_stage_model.model.text_projection"] = torch.eye(encoder.config.hidden_size)
    elif kind == "sdxl":
        first = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
        tensors |= prefixed("conditioner.embedders.0.transformer.text_model.", first)
        tensors |= prefixed("conditioner.embedders.1.model.", openclip(pipeline.text_encoder_2))
    else:
        tensors |= prefixed("cond_stage_model.transformer.text_model.", encoder.state_dict())
    return {name: value.half().contiguous() for name, value in tensors.items()}


def build_tiny_sd2() -> Any:
    """Of 2.x's form: OpenCLIP's text encoder, linear layers around the attention, a velocity predicted."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    pipeline = build_pipeline("tiny", seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        settings = dict(pipeline.unet.config) | {"use_linear_projection": True}
        pipeline.unet = UNet2DConditionModel.from_config(settings).eval()
        settings = dict(pipeline.vae.config) | {"mid_block_add_attention": True}
        pipeline.vae = AutoencoderKL.from_config(settings).eval()
        text = pipeline.text_encoder.config
        text.hidden_act = "gelu"
        pipeline.text_encoder = CLIPTextModel(text).eval()
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    return pipeline


@pytest.fixture(scope="module")
def others(
    tiny_xl_pipeline: Any, tiny_xl_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path, Path]]:
    """Checkpoint, settings and the folder with the same weights, of 2.x and of XL."""
    root, found = tmp_path_factory.mktemp("others"), {}
    sd2 = root / "sd2"
    pipeline = build_tiny_sd2()
    pipeline.save_pretrained(sd2)
    (sd2 / "perfusion.json").write_text('{"family": "tiny2"}')
    for kind, made, folder in (("sd21", pipeline, sd2), ("sdxl", tiny_xl_pipeline, tiny_xl_model)):
        checkpoint, settings = root / f"{kind}.safetensors", root / f"{kind}-settings"
        safetensors.torch.save_file(to_original(made, kind), checkpoint)
        shutil.copytree(folder, settings, ignore=shutil.ignore_patterns("*.safetensors", "captions.txt"))
        found[kind] = (checkpoint, settings, folder)
    return found


@pytest.mark.parametrize("kind", ["sd21", "sdxl"])
def test_checkpoints_of_2_and_xl_are_the_folders_they_were_made_from(others, kind):
    checkpoint, settings, folder = others[kind]
    assert checkpoint_facts(checkpoint).kind == kind
    base, expected = load_base(checkpoint, config=settings), load_base(folder)
    assert base.fingerprint == expected.fingerprint
    assert base.family == expected.family
    assert dict(base.scheduler) == dict(expected.scheduler)
    for part, other in zip(base.parts, expected.parts, strict=True):
        state = other.state_dict()
        assert part.state_dict().keys() == state.keys()
        for name, value in part.state_dict().items():
            assert torch.equal(value, state[name].half().float()), name
    if kind == "sd21":
        assert base.scheduler["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("sd21", "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"),
        ("sdxl", "conditioner.embedders.1.model.text_projection"),
        ("sdxl", "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"),
        ("sdxl", "model.diffusion_model.label_emb.0.2.bias"),
    ],
)
def test_a_part_that_2_or_xl_miss_is_named(others, tmp_path, kind, name):
    checkpoint, settings, _ = others[kind]
    path = change(checkpoint, tmp_path / "model.safetensors", **{name.replace(".", "__"): None})
    with pytest.raises(ModelError, match=r"miss(es)? (tensors that the settings|\d tensors)"):
        load_base(path, config=settings)


def test_the_unet_of_a_checkpoint_can_be_held_in_16_bits(checkpoint, settings, tiny_base):
    base = load_base(checkpoint, config=settings, unet_dtype=torch.float16)
    assert [part.dtype for part in base.parts] == [torch.float16, torch.float32, torch.float32]
    assert base.fingerprint == tiny_base.fingerprint


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


def test_the_train_command_takes_a_checkpoint_and_its_settings(checkpoint, settings, tiny_model, tmp_path):
    from PIL import Image

    from perfusion.concept.concept_file import Concept

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
    with pytest.raises(ModelError, match=r"cannot be read: .* The copy may be incomplete"):
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
        checkpoint_facts(path)


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
        {part: torch.zeros(1) for part in ("model.diffusion_model.out.2.bias", "first_stage_model.x", name)},
        path,
    )
    assert checkpoint_facts(path).kind == kind


def test_without_settings_those_of_the_family_are_used(checkpoint):
    """They are of the true size, so this small file does not fit them; that it was held against them is the point."""
    with pytest.raises(ModelError, match="unet cannot be read with the usual settings of sd15") as refusal:
        load_base(checkpoint)
    assert "the folder of a model of the same architecture with --config" in str(refusal.value)
    assert "github" not in str(refusal.value)  # nobody finds his remedy in diffusers' issues


def test_a_file_of_2_must_say_what_it_predicts(others, caplog):
    checkpoint, _, _ = others["sd21"]
    with pytest.raises(ModelError, match=r"does not tell what its UNet predicts. Say so with --prediction"):
        load_base(checkpoint)
    for prediction, folder in (("v_prediction", "sd21"), ("epsilon", "sd21_base")):
        with pytest.raises(ModelError, match=f"settings of .*{folder}:"):
            load_base(checkpoint, options=ModelOptions(prediction=prediction))


MARKS: Tensors = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}


@pytest.mark.parametrize(
    "metadata", [None, {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}]
)
def test_what_a_file_says_it_predicts_counts_for_more_than_borrowed_settings(
    others, tmp_path, metadata, caplog
):
    checkpoint, settings, _ = others["sdxl"]
    assert load_base(checkpoint, config=settings).scheduler["prediction_type"] == "epsilon"
    assert not caplog.records
    tensors = safetensors.torch.load_file(checkpoint) | ({} if metadata else MARKS)
    safetensors.torch.save_file(tensors, tmp_path / "v.safetensors", metadata)
    base = load_base(tmp_path / "v.safetensors", config=settings)
    assert base.scheduler["prediction_type"] == "v_prediction"
    assert base.scheduler["rescale_betas_zero_snr"] is True
    assert "says of itself that prediction_type is v_prediction" in caplog.text


UNET_WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"
WHOLE = (UNET_WEIGHT, "first_stage_model.x", "cond_stage_model.transformer.text_model.x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({UNET_WEIGHT.removesuffix("weight") + "scale_weight": torch.ones(1)}, "scaled weights of 8 bits"),
        ({"scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)}, "scaled weights of 8 bits"),
        ({UNET_WEIGHT: torch.zeros(8, 4, dtype=torch.int8)}, "weights as integers .* is I8"),
        ({"edm_mean": torch.zeros(4)}, "the EDM kind"),
        ({"first_stage_model.x": None}, "has no VAE .*, which turns latents into pictures. Give .* --vae"),
        ({UNET_WEIGHT: None, "model_ema.x": torch.zeros(1)}, "averaged weights alone"),
        ({UNET_WEIGHT: None, "unet.down_blocks.0.x": torch.zeros(1)}, "a UNet in diffusers' layout"),
    ],
)
def test_a_file_is_refused_by_the_thing_that_is_wrong_with_it(tmp_path, changes, message):
    tensors = {name: torch.zeros(1, 4) for name in WHOLE} | changes
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({name: value for name, value in tensors.items() if value is not None}, path)
    with pytest.raises(ModelError, match=message):
        load_base(path, config=tmp_path)


def test_a_pointer_in_place_of_a_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265380512\n")
    with pytest.raises(ModelError, match="is a Git LFS pointer"):
        load_base(path, config=tmp_path)


def test_positions_in_16_bits_and_averaged_weights_beside_plain_ones_change_nothing(
    checkpoint, settings, tmp_path
):
    extra = {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None].half(),
        "model_ema.diffusion_modeloutweight": torch.ones(3),
    }
    tensors = safetensors.torch.load_file(checkpoint) | extra
    safetensors.torch.save_file(tensors, tmp_path / "more.safetensors")
    base = load_base(tmp_path / "more.safetensors", config=settings)
    expected = load_base(checkpoint, config=settings)
    for part, other in zip(base.parts, expected.parts, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in part.state_dict().items())


def same_weights(base, expected):
    for part, other in zip(base.parts, expected.parts, strict=True):
        state = other.state_dict()
        assert part.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_text_encoder_under_names_without_text_model_is_the_same(
    checkpoint, settings, others, tmp_path, kind
):
    if kind == "sdxl":
        checkpoint, settings, _ = others["sdxl"]
    tensors = safetensors.torch.load_file(checkpoint)
    flat = {name.replace("transformer.text_model.", "transformer."): value for name, value in tensors.items()}
    assert flat.keys() != tensors.keys()
    safetensors.torch.save_file(flat, tmp_path / "flat.safetensors")
    same_weights(
        load_base(tmp_path / "flat.safetensors", config=settings), load_base(checkpoint, config=settings)
    )


NARROW = {
    "bf16": lambda name: torch.bfloat16,
    "fp8": lambda name: torch.float8_e4m3fn,
    "fp8 e5m2": lambda name: torch.float8_e5m2,
    "mixed": lambda name: (
        torch.float8_e4m3fn
        if name.startswith("model.")
        else torch.float32
        if name.startswith("first")
        else torch.bfloat16
    ),
}


@pytest.mark.parametrize("case", NARROW)
def test_weights_of_other_types_are_read_as_the_numbers_they_are(checkpoint, settings, tmp_path, case):
    """The oracle is the same checkpoint with the rounded numbers in float32."""
    dtype_of, tensors = NARROW[case], safetensors.torch.load_file(checkpoint)
    narrow = {name: value.to(dtype_of(name)) for name, value in tensors.items()}
    safetensors.torch.save_file(narrow, tmp_path / "narrow.safetensors")
    wide = {name: value.float() for name, value in narrow.items()}
    safetensors.torch.save_file(wide, tmp_path / "wide.safetensors")
    base = load_base(tmp_path / "narrow.safetensors", config=settings)
    assert {part.dtype for part in base.parts} == {torch.float32}
    same_weights(base, load_base(tmp_path / "wide.safetensors", config=settings))


@pytest.fixture(scope="module")
def without_vae(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("no-vae") / "model.safetensors"
    tensors = safetensors.torch.load_file(checkpoint)
    kept = {name: value for name, value in tensors.items() if not name.startswith("first_stage_model.")}
    safetensors.torch.save_file(kept, path)
    return path


@pytest.mark.parametrize("layout", ["original", "checkpoint", "diffusers file", "folder", "model"])
def test_a_vae_of_its_own_is_read_in_every_layout(
    checkpoint, without_vae, settings, tiny_model, tmp_path, layout
):
    tensors = safetensors.torch.load_file(checkpoint)
    bare = {
        name.removeprefix("first_stage_model."): value
        for name, value in tensors.items()
        if "first_stage" in name
    }
    safetensors.torch.save_file(bare, tmp_path / "vae.safetensors")
    vae = {
        "original": tmp_path / "vae.safetensors",
        "checkpoint": checkpoint,
        "diffusers file": tiny_model / "vae" / "diffusion_pytorch_model.safetensors",
        "folder": tiny_model / "vae",
        "model": tiny_model,
    }[layout]
    base = load_base(without_vae, config=settings, options=ModelOptions(vae=vae))
    expected = load_base(tiny_model).vae.state_dict()
    halved = layout in ("original", "checkpoint")  # the checkpoint is in 16 bits
    for name, value in base.vae.state_dict().items():
        assert torch.equal(value, expected[name].half().float() if halved else expected[name]), name


def test_what_is_no_vae_is_refused(without_vae, settings, tmp_path):
    with pytest.raises(ModelError, match=r"holds no VAE, expected a file with decoder\.conv_in\.weight"):
        load_base(without_vae, config=settings, options=ModelOptions(vae=without_vae))
    with pytest.raises(ModelError, match=r"no VAE of diffusers, it has no config\.json"):
        load_base(without_vae, config=settings, options=ModelOptions(vae=tmp_path))


def test_the_callers_words_on_the_noise_count_for_more_than_the_files(tiny_model):
    options = ModelOptions(prediction="v_prediction", zero_terminal_snr=True)
    base = load_base(tiny_model, options=options)
    assert base.scheduler["prediction_type"] == "v_prediction"
    assert base.scheduler["rescale_betas_zero_snr"] is True
    assert base.scheduler["timestep_spacing"] == "trailing"
    with pytest.raises(ModelError, match="The prediction 'v' is not known, expected epsilon or v_prediction"):
        ModelOptions(prediction="v")


@pytest.fixture(scope="module")
def deep_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with three layers in its text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("deep") / "model"))
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder", num_hidden_layers=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_reads_the_layer_that_a1111_and_diffusers_read(deep_model, clip_skip):
    """The oracle is transformers' own list of states, with the norm that both put behind it."""
    base = load_base(deep_model, options=ModelOptions(clip_skip=clip_skip))
    ids = torch.tensor([[base.tokenizer.bos_token_id, 5, 9, 17, base.tokenizer.eos_token_id]])
    plain = load_base(deep_model)
    whole = plain.text_encoder
    states = whole(ids, output_hidden_states=True).hidden_states
    expected = getattr(whole, "text_model", whole).final_layer_norm(states[-clip_skip])
    assert torch.allclose(base.encode([ids]).hidden, expected, atol=1e-5)
    assert base.skipped_layers == clip_skip - 1
    assert (base.fingerprint == plain.fingerprint) == (clip_skip == 1)


def test_a_clip_skip_that_the_model_does_not_have_is_refused(tiny_model, tiny_xl_model):
    with pytest.raises(ModelError, match=r"clip skip 9, and its text encoder has \d layers; expected 1 to"):
        load_base(tiny_model, options=ModelOptions(clip_skip=9))
    with pytest.raises(ModelError, match="clip skip 1 for a model with two text encoders"):
        load_base(tiny_xl_model, options=ModelOptions(clip_skip=1))
    with pytest.raises(ModelError, match="The clip skip is 0"):
        ModelOptions(clip_skip=0)
    load_base(tiny_xl_model, options=ModelOptions(clip_skip=2))


def test_weights_that_are_no_numbers_are_named_when_the_model_is_opened(checkpoint, settings, tmp_path):
    broken = safetensors.torch.load_file(checkpoint)[UNET_WEIGHT].clone()
    broken.view(-1)[3] = float("nan")
    path = change(checkpoint, tmp_path / "m.safetensors", **{UNET_WEIGHT.replace(".", "__"): broken})
    with pytest.raises(ModelError, match=r"the weight conv_in\.weight of its unet holds NaN or infinity"):
        load_base(path, config=settings)
