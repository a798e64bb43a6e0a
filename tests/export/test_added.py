"""What is added to a model on its way into a bundle, by the command: a VAE, a LoRA, a shorter text encoder."""

import argparse
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline, LCMScheduler

from perfusion.base.base_model import BaseModel, load_base
from perfusion.base.model_arguments import model_options
from perfusion.commands.export import _arguments
from perfusion.export import export_bundle
from perfusion.runtime import Runtime
from tests.perfusion.base.test_lora import Factors, kohya, random_factors
from tests.perfusion.base.test_single_file import to_original
from tests.runtime.test_bases import decibels, theirs

pytestmark = [
    pytest.mark.slow,  # a whole export; tests/perfusion/base/test_lora.py compares the weights of every layout
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def strong_factors(base: BaseModel) -> Factors:
    """A change of the weights that shows in a picture of two steps."""
    return {place: (4 * down, 4 * up) for place, (down, up) in random_factors(base).items()}


@pytest.fixture(scope="module")
def files(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy model as one file without VAE, its VAE, its settings, and a LoRA that is called LCM's."""
    folder = tmp_path_factory.mktemp("files")
    pipeline = DiffusionPipeline.from_pretrained(toy_model)
    tensors = to_original(pipeline)
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "vae": {}}
    for name, tensor in tensors.items():
        parts["vae" if name.startswith("first_stage_model.") else "model"][name] = tensor
    base = load_base(toy_model)
    parts["lcm_2steps"] = kohya(strong_factors(base), base)
    for name, content in parts.items():
        safetensors.torch.save_file(content, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in parts} | {"settings": toy_model}


def arguments(files: dict[str, Path], output: Path) -> argparse.Namespace:
    words = [
        "--model",
        files["model"],
        "--config",
        files["settings"],
        "--vae",
        files["vae"],
        "--output",
        output,
    ]
    words += ["--lora", f"{files['lcm_2steps']}:0.5", "--clip-skip", 1]
    return _arguments([str(word) for word in words])


@pytest.fixture(scope="module")
def fused(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    args = arguments(files, tmp_path_factory.mktemp("fused") / "bundle")
    return export_bundle(args.model, args.output, config=args.config, options=model_options(args)).folder


def test_a_bundle_is_made_of_a_file_its_vae_and_a_lora(fused):
    manifest = json.loads((fused / "bundle.json").read_text())
    assert manifest["scheduler"]["sampler"] == "lcm"
    assert manifest["defaults"]["num_inference_steps"] == 2
    assert manifest["made_from"]["file"] == "model.safetensors"
    (lora,) = manifest["made_from"]["loras"]
    assert (lora["file"], lora["scale"]) == ("lcm_2steps.safetensors", 0.5)


def test_the_bundle_draws_as_diffusers_does_with_the_lora_fused_there(fused, files, toy_model):
    """The UNet's LoRA by diffusers and peft, the text encoder's by arithmetic: there diffusers loses a part of it."""
    pytest.importorskip("peft")
    pipeline = DiffusionPipeline.from_pretrained(toy_model, dtype=torch.float32)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    call = {"prompt": "a photo of a cat", "num_inference_steps": 2, "guidance_scale": 1.0}
    plain = theirs(pipeline, **call)
    tensors = safetensors.torch.load_file(files["lcm_2steps"])
    pipeline.load_lora_weights({name: value for name, value in tensors.items() if "unet" in name})
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    for (part, name), (down, up) in strong_factors(load_base(toy_model)).items():
        if part == "text_encoder":
            pipeline.text_encoder.get_submodule(name).weight.data += 0.5 * 0.5 * up @ down
    picture = Runtime(fused).generate("a photo of a cat", seed=3)
    assert decibels(picture, theirs(pipeline, **call)) >= 40
    assert decibels(picture, plain) < 30  # it does change the picture


def test_a_concept_of_the_plain_base_loads_with_a_warning_that_names_the_lora(
    fused, toy_model, make_concept, caplog
):
    runtime, base = Runtime(fused), load_base(toy_model)
    bundle = runtime.bundle
    concept = make_concept(
        token="<cat>",
        base=bundle.base,
        base_fingerprint=base.fingerprint,
        text_dim=bundle.text_dim,
        width=bundle.unet.value_width,
    )
    runtime.load_concept(concept)
    assert (
        "<cat> was trained on another pocket checkpoint than this bundle's, to which lcm_2steps.safetensors was added; "
        "its keys are derived anew"
    ) in caplog.text
    runtime.generate("a photo of a <cat>", num_inference_steps=1)
