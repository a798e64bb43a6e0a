"""Models of other shapes than the toy bundle's: Stable Diffusion 1.5, XL and LCM in little, against diffusers."""

from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from perfusion import Concept
from perfusion.errors import RequestError
from perfusion.runtime import SCHEDULERS, Region, Runtime
from perfusion.runtime.text.feeds import guidance_embedding

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers, numpy 2

PROMPT = "a photo of a cat on a beach"
CLASSES: dict[str, Any] = {
    "ddim": diffusers.DDIMScheduler,
    "plms": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
}


def decibels(found: Any, expected: Any) -> float:
    """Peak signal to noise of two pictures of 8 bits."""
    error = float(np.mean((np.asarray(found, np.float64) - np.asarray(expected, np.float64)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def theirs(pipeline: Any, seed: int = 3, **call: Any) -> Any:
    """diffusers' picture, all noise drawn by its own generator."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(generator=[torch.Generator().manual_seed(seed)], **call).images[0]


def settings_of(pipeline: Any, part: str = "scheduler") -> dict[str, Any]:
    """A part's settings, those it left at their defaults too; diffusers would replace them by another class's own."""
    config = dict(getattr(pipeline, part).config)
    config.pop("_use_default_values", None)
    return config


def close_to(runtime: Runtime, pipeline: Any, *, prompt: str = PROMPT, **call: Any) -> None:
    """Equal to more than 40 dB, the latents much closer, and no flat picture."""
    expected = theirs(pipeline, prompt=prompt, **call)
    assert np.asarray(expected, np.int16).std() > 5
    assert decibels(runtime.generate(prompt, seed=3, **call), expected) >= 40
    latents = np.asarray(theirs(pipeline, prompt=prompt, output_type="latent", **call))
    *_, last = runtime.denoise(prompt, seed=3, **call)
    assert np.linalg.norm(last.latents[0] - latents) < 1e-5 * np.linalg.norm(latents)


def build_sd15(toy: Any) -> Any:
    """Four levels of which the last has no attention, eight heads, epsilon, PNDM's settings: 1.5's, but narrow."""
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=2,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = diffusers.PNDMScheduler(**schedule, skip_prk_steps=True, set_alpha_to_one=False)
    parts = {**toy.components, "unet": unet.eval(), "scheduler": scheduler}
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


@pytest.fixture(scope="module")
def sd15_pipeline(toy_pipeline) -> Any:
    return build_sd15(toy_pipeline)


@pytest.fixture(scope="module")
def sd15(sd15_pipeline, by_torch, tmp_path_factory) -> Iterator[Runtime]:
    with by_torch(sd15_pipeline, tmp_path_factory.mktemp("sd15")) as runtime:
        yield runtime


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_model_of_15s_shape_draws_diffusers_picture_with_every_scheduler(sd15, sd15_pipeline, name):
    base = name.removesuffix("_karras")
    more = {"clip_sample": False} if base in ("ddim", "lcm", "heun") else {}  # PNDM does not know it
    more |= {"use_karras_sigmas": True} if base != name else {}
    more |= {"skip_prk_steps": True} if base == "plms" else {}
    scheduler = CLASSES[base].from_config(settings_of(sd15_pipeline), **more)
    parts = {**sd15_pipeline.components, "scheduler": scheduler}
    made = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    expected = theirs(made, prompt=PROMPT, num_inference_steps=5, guidance_scale=4.0)
    found = sd15.generate(PROMPT, seed=3, num_inference_steps=5, guidance_scale=4.0, scheduler=name)
    assert np.asarray(expected, np.int16).std() > 5
    assert decibels(found, expected) >= 40


@pytest.fixture(scope="module")
def xl(tiny_xl, by_torch, tmp_path_factory) -> Iterator[Runtime]:
    with by_torch(tiny_xl, tmp_path_factory.mktemp("xl")) as runtime:
        yield runtime


@pytest.mark.parametrize(
    "call",
    [
        {},  # the empty negative prompt is zeros
        {"negative_prompt": "a dog at night"},
        {"guidance_scale": 1.0},
        {"guidance_scale": 9.0, "guidance_rescale": 0.7, "num_inference_steps": 7},
        {"width": 64, "height": 32},
    ],
    ids=str,
)
def test_two_text_encoders_pooled_states_and_sizes_draw_xls_picture(xl, tiny_xl, call):
    close_to(
        xl, tiny_xl, **{"width": 32, "height": 32, "num_inference_steps": 4, "guidance_scale": 5.0, **call}
    )


def test_xls_own_scheduler_is_its_default(xl):
    assert xl.bundle.defaults.scheduler == "euler"
    assert xl.bundle.force_zeros_for_empty_prompt
    assert [one.name for one in xl.bundle.text_encoders] == ["text_encoder", "text_encoder_2"]


@pytest.mark.slow
def test_an_exported_xl_bundle_draws_diffusers_picture(tiny_xl, tmp_path):
    """As above, with the graphs as they are exported and run by onnxruntime."""
    from perfusion.base.usual_drawing import FAMILY_FILE
    from perfusion.export import export_bundle

    tiny_xl.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / FAMILY_FILE).write_text('{"family": "tiny"}')
    export_bundle(tmp_path / "model", tmp_path / "bundle")
    call: dict[str, Any] = {"width": 32, "height": 32, "num_inference_steps": 4, "guidance_scale": 5.0}
    with Runtime(tmp_path / "bundle", provider="cpu", threads=1) as runtime:
        expected = theirs(tiny_xl, prompt=PROMPT, negative_prompt="a dog at night", **call)
        assert (
            decibels(runtime.generate(PROMPT, seed=3, negative_prompt="a dog at night", **call), expected)
            >= 40
        )
        runtime.load_concept(xl_concept(runtime))
        assert decibels(runtime.generate("a photo of <cat>", seed=3, **call), expected) < 40


def xl_concept(runtime: Runtime, seed: int = 0, **fields: Any) -> Concept:
    """Random numbers of sensible size for a bundle with any number of text encoders."""
    rng = np.random.default_rng(seed)
    bundle = runtime.bundle

    def normal(width: int) -> np.ndarray:
        return rng.standard_normal((1, width)).astype(np.float32)

    direction = normal(bundle.text_dim)
    energy = np.sum(direction**2, axis=1)
    values: dict[str, Any] = {
        "token": "<cat>", "superclass": "cat", "base": bundle.base, "base_fingerprint": bundle.base_fingerprint,
        "direction": direction, "dual": direction / energy[:, None], "energy": energy,
        "superclass_encoding": normal(bundle.text_dim),
        "embeddings": tuple(normal(one.hidden_size) for one in bundle.text_encoders),
        "target_values": normal(bundle.unet.value_width), "target_keys": normal(bundle.unet.key_width),
        "bias": 0.0, "temperature": 0.3,
    }  # fmt: skip
    return Concept(**{**values, **fields})


@pytest.mark.parametrize("lock", ["local", "global"])
def test_a_concept_draws_the_same_picture_here_and_in_diffusers(xl, tiny_xl, lock):
    from perfusion.diffusers import apply

    concept = xl_concept(xl)
    xl.load_concept(concept)
    try:
        call = {"num_inference_steps": 3, "guidance_scale": 4.0, "width": 32, "height": 32}
        base = theirs(tiny_xl, prompt=PROMPT, **call)
        applied = apply(tiny_xl, concept, lock=lock)
        try:
            expected = theirs(tiny_xl, prompt="a photo of <cat> on a beach", **call)
        finally:
            applied.remove()
        found = xl.generate("a photo of <cat> on a beach", seed=3, lock=lock, **call)
        assert decibels(found, expected) >= 40
        assert decibels(base, expected) < 35, "an edit that hardly shows would prove nothing"
    finally:
        xl.unload_concept("<cat>")


@pytest.mark.parametrize(
    "regions", ["auto", [Region("<cat>", box=(0, 0, 0.5, 1)), Region("dog")]], ids=["bands", "a-box"]
)
def test_xls_regions_are_the_same_here_and_in_diffusers(xl, tiny_xl, regions):
    from perfusion.diffusers import apply

    concept, prompt = xl_concept(xl), "a <cat> and a {dog} on a beach"
    call: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "width": 32, "height": 32}
    xl.load_concept(concept)
    try:
        with apply(tiny_xl, concept, regions=regions) as handle:
            expected = theirs(tiny_xl, prompt=prompt, **call)
            with pytest.raises(RequestError, match="different prompts"):
                theirs(tiny_xl, prompt=prompt, prompt_2="a painting", **call)
            handle.regions = None
            whole = theirs(tiny_xl, prompt="a <cat> and a dog on a beach", **call)
        assert decibels(xl.generate(prompt, seed=3, regions=regions, **call), expected) >= 40
        assert decibels(whole, expected) < 40, "regions that hardly show would prove nothing"
    finally:
        xl.unload_concept("<cat>")


@pytest.fixture(scope="module")
def lcm_pipeline(toy_pipeline) -> Any:
    """A UNet that reads the guidance scale, with LCM's scheduler."""
    torch.manual_seed(2)
    config = {**settings_of(toy_pipeline, "unet"), "time_cond_proj_dim": 32}
    unet = diffusers.UNet2DConditionModel.from_config(config).eval()
    scheduler = diffusers.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", original_inference_steps=40
    )
    parts = {**toy_pipeline.components, "unet": unet, "scheduler": scheduler}
    return diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


@pytest.fixture(scope="module")
def lcm(lcm_pipeline, by_torch, tmp_path_factory) -> Iterator[Runtime]:
    with by_torch(lcm_pipeline, tmp_path_factory.mktemp("lcm")) as runtime:
        yield runtime


@pytest.mark.parametrize("steps, scale", [(1, 8.5), (4, 8.5), (4, 2.0)])
def test_a_model_that_reads_the_guidance_scale_draws_lcms_picture_in_single_rows(
    lcm, lcm_pipeline, steps, scale
):
    assert lcm.bundle.defaults.scheduler == "lcm"
    close_to(lcm, lcm_pipeline, width=32, height=32, num_inference_steps=steps, guidance_scale=scale)


@pytest.mark.parametrize("scale", [1.0, 8.5])
@pytest.mark.parametrize("width", [6, 7, 256])
def test_the_guidance_scale_is_embedded_as_diffusers_embeds_it(lcm_pipeline, scale, width):
    expected = lcm_pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1]), embedding_dim=width)
    np.testing.assert_allclose(guidance_embedding(scale, width), expected[0].numpy(), atol=1e-3)


def test_a_long_prompt_is_its_parts_encodings_one_after_another(sd15, sd15_pipeline):
    """And with guidance the shorter of the two prompts is filled up with empty parts."""
    words = "a photo of a cat on a beach with two dogs and a red ball " * 9
    tokenizer, encoder = sd15_pipeline.tokenizer, sd15_pipeline.text_encoder
    ids = tokenizer(words).input_ids[1:-1]
    assert 75 < len(ids) <= 150

    @torch.no_grad()
    def encoded(part: list[int]) -> torch.Tensor:
        framed = [tokenizer.bos_token_id, *part]
        framed += [tokenizer.eos_token_id] * (77 - len(framed))
        return encoder(torch.tensor([framed])).last_hidden_state

    parts = torch.cat([encoded(ids[:75]), encoded(ids[75:])], dim=1)
    empty = torch.cat([encoded([]), encoded([])], dim=1)
    scheduler = diffusers.DDIMScheduler.from_config(settings_of(sd15_pipeline), clip_sample=False)
    parts_of_it = {**sd15_pipeline.components, "scheduler": scheduler}
    made = diffusers.StableDiffusionPipeline(**parts_of_it, requires_safety_checker=False)
    call = {"num_inference_steps": 3, "guidance_scale": 4.0}
    expected = theirs(made, prompt_embeds=parts, negative_prompt_embeds=empty, **call)
    found = sd15.generate(words, seed=3, scheduler="ddim", **call)
    assert decibels(found, expected) >= 40
    assert decibels(sd15.generate("a photo of a cat", seed=3, scheduler="ddim", **call), expected) < 40
