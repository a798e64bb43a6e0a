"""LoRAs in the layouts of other programs: the oracle is W + scale · alpha / rank · B A, and diffusers with peft."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from perfusion.base.base_model import BaseModel, load_base
from perfusion.base.distillation import DISTILLATIONS, find_distillation
from perfusion.base.lora import LoRAFile
from perfusion.base.model_arguments import model_options
from perfusion.base.model_options import ModelOptions
from perfusion.commands.export import _arguments
from perfusion.errors import ModelError
from perfusion.export.manifest import make_manifest
from perfusion.runtime import Runtime
from tests.perfusion.base.test_single_file import original_unet_name

Factors = dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]
"""By part and layer: down (rank, in, …) and up (out, rank, …)."""

RANK = 2
UNET_LAYERS = (
    "attn1.to_q",
    "attn2.to_k",
    "attn2.to_out.0",
    "ff.net.0.proj",
    "proj_in",
    "conv1",
    "time_emb_proj",
)
TEXT_LAYERS = ("q_proj", "fc1")


def layers_of(module: Any, endings: tuple[str, ...]) -> list[str]:
    return [name for name, _ in module.named_modules() if name.endswith(endings)]


def random_factors(base: BaseModel) -> Factors:
    generator, factors = torch.Generator().manual_seed(0), {}
    parts = {"unet": base.unet} | dict(
        zip(("text_encoder", "text_encoder_2"), base.text_encoders, strict=False)
    )
    for part, module in parts.items():
        for name in layers_of(module, UNET_LAYERS if part == "unet" else TEXT_LAYERS):
            weight = module.get_submodule(name).weight
            down = torch.randn(RANK, *weight.shape[1:], generator=generator)
            up = torch.randn(len(weight), RANK, *([1] * (weight.ndim - 2)), generator=generator)
            factors[part, name] = (0.1 * down, 0.1 * up)
    return factors


def text_name(name: str) -> str:
    return "text_model." + name.removeprefix("text_model.")


def peft(factors: Factors, base: BaseModel) -> dict[str, torch.Tensor]:
    """As diffusers saves them today."""
    tensors: dict[str, Any] = {}
    for (part, name), (down, up) in factors.items():
        place = f"{part}.{name if part == 'unet' else text_name(name)}"
        tensors |= {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up}
    return tensors


def early_diffusers(factors: Factors, base: BaseModel) -> dict[str, torch.Tensor]:
    """With processors of attention that hold the layers."""
    tensors: dict[str, Any] = {}
    for (part, name), (down, up) in factors.items():
        place = f"{part}.{name if part == 'unet' else text_name(name)}"
        between = ".lora" if part == "unet" else ".lora_linear_layer"
        if match := re.fullmatch(r"(.+\.attn\d)\.(to_\w+)(\.0)?", place):
            place, between = f"{match[1]}.processor.{match[2]}", "_lora"
        tensors |= {f"{place}{between}.down.weight": down, f"{place}{between}.up.weight": up}
    return tensors


def kohya(factors: Factors, base: BaseModel) -> dict[str, torch.Tensor]:
    """With an alpha of half the rank."""
    double = len(base.text_encoders) == 2
    tensors: dict[str, Any] = {}
    for (part, name), (down, up) in factors.items():
        prefix = {"unet": "unet", "text_encoder": "te1" if double else "te", "text_encoder_2": "te2"}[part]
        inner = name if part == "unet" else text_name(name)
        place = f"lora_{prefix}_{inner.replace('.', '_')}"
        tensors |= {f"{place}.lora_down.weight": down, f"{place}.lora_up.weight": up}
        tensors[f"{place}.alpha"] = torch.tensor(RANK / 2)
    return tensors


def a1111(factors: Factors, base: BaseModel) -> dict[str, torch.Tensor]:
    """kohya's with the original names of the UNet's blocks, as SDXL's are mostly published."""
    config = base.unet.config
    attention = {at for at, kind in enumerate(config.up_block_types) if kind.startswith("CrossAttn")}
    renamed = {}
    for (part, name), pair in factors.items():
        if part == "unet":
            name = original_unet_name(f"{name}.weight", config.layers_per_block, attention)
            name = name.removesuffix(".weight")
        renamed[part, name] = pair
    return kohya(renamed, base)


LAYOUTS = {"peft": peft, "early diffusers": early_diffusers, "kohya": kohya, "a1111": a1111}


@pytest.fixture(scope="module", params=["one text encoder", "two"])
def plain(request: pytest.FixtureRequest, tiny_base: BaseModel, tiny_xl_base: BaseModel) -> BaseModel:
    return tiny_base if request.param == "one text encoder" else tiny_xl_base


def part_of(base: BaseModel, part: str) -> Any:
    return {
        "unet": base.unet,
        "text_encoder": base.text_encoders[0],
        "text_encoder_2": base.text_encoders[-1],
    }[part]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_is_added_to_the_weights_whatever_its_layout(plain, tmp_path, layout):
    factors = random_factors(plain)
    path = tmp_path / "style.safetensors"
    safetensors.torch.save_file(LAYOUTS[layout](factors, plain), path)
    fused = load_base(plain.folder, options=ModelOptions(loras=(LoRAFile(path=path, scale=0.5),)))
    alpha = 0.5 if layout in ("kohya", "a1111") else 1.0
    for (part, name), (down, up) in factors.items():
        before = part_of(plain, part).get_submodule(name).weight
        change = torch.einsum("or...,ri->oi", up.flatten(1), down.flatten(1)).view(before.shape)
        after = part_of(fused, part).get_submodule(name).weight
        assert torch.allclose(after, before + 0.5 * alpha * change, atol=1e-6), name
    untouched = [name for name, _ in plain.unet.named_parameters() if "attn1.to_v" in name]
    assert untouched
    assert all(
        torch.equal(plain.unet.get_parameter(name), fused.unet.get_parameter(name)) for name in untouched
    )
    assert fused.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("plain", "layout"),
    [
        ("one text encoder", "kohya"),
        ("one text encoder", "early diffusers"),
        ("two", "peft"),
        ("two", "a1111"),
    ],
    indirect=["plain"],
)
def test_diffusers_with_peft_fuses_to_the_same_unet(plain, tmp_path, layout):
    """UNets alone: its reading of kohya's text encoders loses the attention with newer transformers. It knows the
    original names of blocks in LoRAs of SDXL alone."""
    pytest.importorskip("peft")
    from diffusers import DiffusionPipeline

    factors = {key: pair for key, pair in random_factors(plain).items() if key[0] == "unet"}
    path = tmp_path / "style.safetensors"
    safetensors.torch.save_file(LAYOUTS[layout](factors, plain), path)
    pipeline = DiffusionPipeline.from_pretrained(plain.folder)
    pipeline.load_lora_weights(safetensors.torch.load_file(path))
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    fused = load_base(plain.folder, options=ModelOptions(loras=(LoRAFile(path=path, scale=0.7),)))
    for name, weight in fused.unet.state_dict().items():
        assert torch.allclose(weight, pipeline.unet.state_dict()[name], atol=1e-6), name


def test_the_alpha_that_diffusers_writes_into_metadata_counts(tiny_base, tmp_path):
    name = layers_of(tiny_base.unet, ("attn1.to_q",))[0]
    factors = {("unet", name): random_factors(tiny_base)["unet", name]}
    config = {"unet.r": RANK, "unet.lora_alpha": 6}
    path = tmp_path / "style.safetensors"
    safetensors.torch.save_file(peft(factors, tiny_base), path, {"lora_adapter_metadata": json.dumps(config)})
    fused = load_base(tiny_base.folder, options=ModelOptions(loras=(LoRAFile(path=path),)))
    down, up = factors["unet", name]
    change = fused.unet.get_submodule(name).weight - tiny_base.unet.get_submodule(name).weight
    assert torch.allclose(change, 3 * up @ down, atol=1e-6)


ONE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {f"{ONE}.hada_w1_a": torch.ones(1)},
            r"is a LoHa, of which .*hada_w1_a is a tensor\. Only plain LoRAs",
        ),
        ({f"{ONE}.dora_scale": torch.ones(1)}, "is a DoRA"),
        ({f"{ONE}.diff": torch.ones(1)}, "is a difference of whole weights"),
        ({"something.weight": torch.ones(1)}, "holds something.weight, no tensor of a LoRA"),
        ({"lora_unet_nowhere.lora_down.weight": torch.ones(1, 1)}, "a layer that this model does not have"),
        ({f"{ONE}.lora_down.weight": torch.ones(1, 16)}, r"only half of the change of unet\.mid_block"),
        (
            {f"{ONE}.lora_down.weight": torch.ones(1, 3), f"{ONE}.lora_up.weight": torch.ones(3, 1)},
            r"by factors of \(3, 1\) and \(1, 3\), and its weight is",
        ),
        ({}, "holds no tensors"),
    ],
)
def test_what_cannot_be_added_is_refused_by_its_name(tiny_model, tmp_path, tensors, message):
    path = tmp_path / "style.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ModelError, match=message):
        load_base(tiny_model, options=ModelOptions(loras=(LoRAFile(path=path),)))


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt"])
def test_a_pickled_lora_is_refused_unopened(tiny_model, tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(
        ModelError, match=r"is a pickle, which can run code\. Use the LoRA as a \.safetensors"
    ):
        load_base(tiny_model, options=ModelOptions(loras=(LoRAFile(path=tmp_path / name),)))


PUBLISHED = {
    "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors": ("lcm", 4, 1.0),
    "models--latent-consistency--lcm-lora-sdxl/snapshots/abc/pytorch_lora_weights.safetensors": (
        "lcm",
        4,
        1.0,
    ),
    "LCM_LoRA_Weights_SD15.safetensors": ("lcm", 4, 1.0),
    "sdxl_lightning_8step_lora.safetensors": ("lightning", 8, 1.0),
    "Hyper-SD15-2steps-lora.safetensors": ("hyper", 2, 1.0),
    "Hyper-SDXL-12steps-CFG-lora.safetensors": ("hyper", 12, 5.0),
    "dmd2_sdxl_4step_lora_fp16.safetensors": ("dmd2", 4, 1.0),
    "loras/pixel-art-xl.safetensors": None,
    "loras/calcmap.safetensors": None,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_distillation_is_told_by_the_names_it_is_published_under(name):
    kind = find_distillation([Path(name)], None)
    assert (kind and (kind.name, kind.steps, kind.guidance_scale)) == PUBLISHED[name]


def test_the_caller_has_the_last_word_on_distillations():
    lightning, lcm = Path("sdxl_lightning_4step_lora.safetensors"), Path("lcm.safetensors")
    assert find_distillation([lightning], "none") is None
    assert find_distillation([], "lcm") is None
    assert find_distillation([Path("mine.safetensors")], "dmd2") == DISTILLATIONS[-1]
    with pytest.raises(ModelError, match=r"are distillations of two kinds.*Say which with --distilled"):
        find_distillation([lightning, lcm], None)
    with pytest.raises(ModelError, match="Hyper-SD in one step begins at a timestep of its own"):
        find_distillation([Path("Hyper-SDXL-1step-lora.safetensors")], None)


@pytest.mark.parametrize(
    ("name", "sampler", "setting"),
    [
        ("lcm.safetensors", "lcm", ("original_inference_steps", 50)),
        ("dmd2_4step.safetensors", "lcm", ("original_inference_steps", 1000)),
        ("sdxl_lightning_2step_lora.safetensors", "euler", ("timestep_spacing", "trailing")),
        ("Hyper-SD15-8steps-lora.safetensors", "ddim", ("timestep_spacing", "trailing")),
    ],
)
def test_a_distillation_sets_what_the_bundle_is_drawn_with(
    tiny_base, tmp_path, caplog, name, sampler, setting
):
    path = tmp_path / name
    safetensors.torch.save_file(kohya(random_factors(tiny_base), tiny_base), path)
    base = load_base(tiny_base.folder, options=ModelOptions(loras=(LoRAFile(path=path),)))
    manifest = make_manifest(base, files={}, parity={}, precision="fp32")
    assert manifest["scheduler"]["sampler"] == sampler
    assert manifest["scheduler"][setting[0]] == setting[1]
    assert manifest["defaults"]["guidance_scale"] == 1.0
    assert manifest["defaults"]["num_inference_steps"] == int((re.search(r"\d+(?=step)", name) or "4")[0])
    assert [entry["file"] for entry in manifest["made_from"]["loras"]] == [name]
    assert not caplog.records  # the runtime has the scheduler and all its settings
    again = ModelOptions(loras=(LoRAFile(path=path),), steps=6, guidance_scale=2.0)
    defaults = make_manifest(
        load_base(tiny_base.folder, options=again), files={}, parity={}, precision="fp32"
    )["defaults"]
    assert (defaults["num_inference_steps"], defaults["guidance_scale"]) == (6, 2.0)


def test_the_command_line_says_it_all(tmp_path):
    words = ["--output", "out", "--model", "m.safetensors", "--vae", "vae", "--lora", "a.safetensors:0.5"]
    words += ["--lora", "b.safetensors", "--distilled", "lcm", "--steps", "3", "--clip-skip", "2"]
    options = model_options(_arguments([*words, "--prediction", "v_prediction", "--no-zero-terminal-snr"]))
    assert options == ModelOptions(
        vae=Path("vae"),
        prediction="v_prediction",
        zero_terminal_snr=False,
        clip_skip=2,
        loras=(LoRAFile(path=Path("a.safetensors"), scale=0.5), LoRAFile(path=Path("b.safetensors"))),
        distilled="lcm",
        steps=3,
    )


def test_a_concept_of_the_plain_base_loads_with_a_warning_that_names_the_lora(
    bundle_copy, make_concept, caplog
):
    manifest = json.loads((bundle_copy / "bundle.json").read_text())
    manifest["made_from"] = {"loras": [{"file": "lcm.safetensors", "scale": 1.0, "sha256": "0" * 64}]}
    (bundle_copy / "bundle.json").write_text(json.dumps(manifest))
    runtime = Runtime(bundle_copy)
    runtime.load_concept(
        make_concept(
            token="<cat>",
            base=runtime.bundle.base,
            base_fingerprint="1" * 64,
            text_dim=runtime.bundle.text_dim,
            width=runtime.bundle.unet.value_width,
        )
    )
    assert (
        "<cat> was trained on another pocket checkpoint than this bundle's, to which lcm.safetensors was added; "
        "its keys are derived anew"
    ) in caplog.text
    assert runtime.generate("a photo of a <cat>", num_inference_steps=1).size
