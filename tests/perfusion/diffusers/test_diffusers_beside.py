"""Concepts beside what else one puts into a diffusers pipeline: LoRA, ControlNet, IP-Adapter, offloading, slicing."""

import copy

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

import perfusion.diffusers
from perfusion.base.attention import layer_table
from perfusion.base.base_model import fingerprint
from perfusion.concept.concept_file import Concept
from perfusion.errors import ModelError
from perfusion.runtime.sampling.noise import initial_noise
from recipes.pocket.architecture import build_pipeline

PROMPT = "a photo of <cat> on a beach"


@pytest.fixture
def pipeline():
    """Random weights, small, a fresh one for each test."""
    made = build_pipeline("tiny")
    made.set_progress_bar_config(disable=True)
    return made


def make(pipeline) -> Concept:
    """A concept of random numbers that fits; its gates stand about half open."""
    random, layers = np.random.default_rng(0), layer_table(pipeline.unet)
    width = pipeline.unet.config.cross_attention_dim
    vocabulary = pipeline.text_encoder.config.vocab_size
    direction = random.normal(size=(1, width))
    energy = (direction**2).sum(1)
    return Concept(
        token="<cat>", superclass="cat", base="test", base_fingerprint=fingerprint(pipeline.unet, vocabulary, width),
        direction=direction, dual=direction / energy[:, None], energy=energy,
        superclass_encoding=random.normal(size=(1, width)), embeddings=(random.normal(size=(1, width)),),
        target_values=random.normal(size=(1, sum(layer.value_dim for layer in layers))),
        target_keys=random.normal(size=(1, sum(layer.key_dim for layer in layers))), bias=0.1, temperature=0.3,
    )  # fmt: skip


def drawn(pipeline, prompt=PROMPT, **call) -> torch.Tensor:
    """The last latents of two steps."""
    side = pipeline.unet.config.sample_size
    size = side * pipeline.vae_scale_factor
    noise = torch.from_numpy(initial_noise(0, (1, 4, side, side)))
    call = {
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "latents": noise,
        "output_type": "latent",
        **call,
    }
    return pipeline(prompt, height=size, width=size, **call).images


def distance(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


# --- LoRA


def add_lora(pipeline) -> None:
    """A LoRA of random numbers on the attention of the UNet and of the text encoder."""
    from peft import LoraConfig

    torch.manual_seed(1)
    for part, modules in (
        (pipeline.unet, ["to_q", "to_k", "to_v", "to_out.0"]),
        (pipeline.text_encoder, ["q_proj", "v_proj"]),
    ):
        part.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=modules), "style")


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_a_concept_beside_a_lora_is_one_in_the_model_that_the_lora_was_merged_into(pipeline, scale):
    pytest.importorskip("peft")
    merged, concept = copy.deepcopy(pipeline), make(pipeline)
    with perfusion.diffusers.apply(pipeline, concept):
        without = drawn(pipeline)
    add_lora(pipeline)
    plain = drawn(pipeline, "a photo of a cat")
    with perfusion.diffusers.apply(pipeline, concept):
        found = drawn(pipeline, cross_attention_kwargs={"scale": scale})
    assert torch.equal(drawn(pipeline, "a photo of a cat"), plain)
    add_lora(merged)
    merged.fuse_lora(components=["unet", "text_encoder"], lora_scale=scale)
    merged.unload_lora_weights()
    with perfusion.diffusers.apply(merged, make(merged)):  # the same numbers, with that model's fingerprint
        assert distance(found, drawn(merged)) < 1e-4
    assert (distance(found, without) < 1e-6) == (scale == 0.0)


def test_a_lora_may_come_and_go_while_concepts_are_in(pipeline):
    pytest.importorskip("peft")
    concept, other = make(pipeline), copy.deepcopy(pipeline)
    add_lora(other)
    with perfusion.diffusers.apply(other, concept):
        expected = drawn(other)
    plain = drawn(pipeline, "a photo of a cat")
    with perfusion.diffusers.apply(pipeline, concept):
        before = drawn(pipeline)
        add_lora(pipeline)
        assert torch.equal(drawn(pipeline), expected)
        pipeline.unload_lora_weights()
        assert torch.equal(drawn(pipeline), before)
    assert torch.equal(drawn(pipeline, "a photo of a cat"), plain)


# --- ControlNet


@pytest.fixture
def controlled(pipeline):
    """A pipeline with a ControlNet that does something, and its picture to follow."""
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 16, 16)).eval()
    ends = (net.controlnet_mid_block, *net.controlnet_down_blocks, net.controlnet_cond_embedding.conv_out)
    for end in ends:
        torch.nn.init.normal_(end.weight, std=0.1)
    made = StableDiffusionControlNetPipeline(
        **pipeline.components, controlnet=net, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return made, torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_a_controlnet_pipeline_draws_the_concept_and_obeys_its_picture(pipeline, controlled):
    """Silenced, the ControlNet changes nothing; heard, it changes the UNet's answer by what it adds."""
    steered, picture = controlled
    concept = make(pipeline)
    base = drawn(steered, "a photo of a cat on a beach", image=picture)
    with perfusion.diffusers.apply(pipeline, concept):
        alone = drawn(pipeline)
    with perfusion.diffusers.apply(steered, concept):
        silent = drawn(steered, image=picture, controlnet_conditioning_scale=0.0)
        heard = drawn(steered, image=picture)
        other = drawn(steered, image=1 - picture)
    assert distance(silent, alone) < 1e-6
    assert min(distance(heard, alone), distance(heard, base), distance(heard, other)) > 1e-3
    assert torch.equal(drawn(steered, "a photo of a cat on a beach", image=picture), base)


def test_the_unet_gets_the_edit_and_the_controlnet_the_plain_encodings(controlled):
    steered, picture = controlled
    seen = {}

    def note(module, args, kwargs):
        seen[type(module)] = kwargs

    with perfusion.diffusers.apply(steered, make(steered)):
        parts = (steered.controlnet, steered.unet)
        hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in parts]
        positive, negative = steered.encode_prompt(PROMPT, "cpu", 1, True)
        drawn(steered, image=picture)
        for hook in hooks:
            hook.remove()
    beside, edited = seen[ControlNetModel], seen[type(steered.unet)]
    assert torch.equal(beside["encoder_hidden_states"], torch.cat([negative, positive]))
    assert not torch.equal(edited["encoder_hidden_states"][1], positive[0])
    assert edited["cross_attention_kwargs"]["value_gate"][1].max() > 0.1


# --- IP-Adapter


def ip_adapter(unet) -> dict:
    """The weights of an IP-Adapter of random numbers, as its files hold them."""
    width, weights = unet.config.cross_attention_dim, {}
    for index, layer in enumerate(layer_table(unet)):
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"{2 * index + 1}.{part}.weight"] = torch.randn(layer.key_dim, width)
    image = {
        "proj.weight": torch.randn(4 * width, 24), "proj.bias": torch.randn(4 * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip
    return {"image_proj": image, "ip_adapter": weights}


def test_an_ip_adapter_is_refused_before_and_noticed_afterwards_and_may_be_taken_out(pipeline):
    plain = drawn(pipeline, "a photo of a cat")
    with perfusion.diffusers.apply(pipeline, make(pipeline)) as handle:
        expected = drawn(pipeline)
        pipeline.unet._load_ip_adapter_weights([ip_adapter(pipeline.unet)])
        with pytest.raises(
            ModelError, match=r"has got a IPAdapterAttnProcessor2_0 since .* apply them again"
        ):
            drawn(pipeline, ip_adapter_image_embeds=[torch.randn(2, 1, 24)])
        handle.remove()
        with pytest.raises(ModelError, match=r"IPAdapterAttnProcessor2_0, expected .*\(IP-Adapter, "):
            perfusion.diffusers.apply(pipeline, make(pipeline))
        pipeline.unload_ip_adapter()
    assert torch.equal(drawn(pipeline, "a photo of a cat"), plain)
    with perfusion.diffusers.apply(pipeline, make(pipeline)):
        assert torch.equal(drawn(pipeline), expected)


# --- memory


@pytest.mark.parametrize("when", ["before", "after"])
def test_whole_models_may_be_offloaded_before_and_after(pipeline, when):
    """With the CPU for the accelerator: the hooks that move the models are the real ones."""
    pytest.importorskip("accelerate")
    concept = make(pipeline)
    with perfusion.diffusers.apply(pipeline, concept):
        expected = drawn(pipeline)
    plain = drawn(pipeline, "a photo of a cat")
    if when == "before":
        pipeline.enable_model_cpu_offload(device="cpu")
    with perfusion.diffusers.apply(pipeline, concept):
        if when == "after":
            pipeline.enable_model_cpu_offload(device="cpu")
        assert hasattr(pipeline.unet, "_hf_hook")
        assert torch.equal(drawn(pipeline), expected)
        assert torch.equal(drawn(pipeline), expected)  # offloaded in between
    assert torch.equal(drawn(pipeline, "a photo of a cat"), plain)


def test_sliced_attention_makes_room_for_concepts_and_comes_back(pipeline):
    concept = make(pipeline)
    with perfusion.diffusers.apply(pipeline, concept):
        expected = drawn(pipeline)
    pipeline.enable_attention_slicing(1)
    sliced = {name: id(one) for name, one in pipeline.unet.attn_processors.items()}
    with perfusion.diffusers.apply(pipeline, concept):
        assert distance(drawn(pipeline), expected) < 1e-6
    assert {name: id(one) for name, one in pipeline.unet.attn_processors.items()} == sliced
    with perfusion.diffusers.apply(pipeline, concept):
        pipeline.enable_attention_slicing(1)
        with pytest.raises(ModelError, match="has got a SlicedAttnProcessor since the concepts were applied"):
            drawn(pipeline)
