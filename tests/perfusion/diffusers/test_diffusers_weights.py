"""Weights in the prompts of diffusers' pipelines: as in our runtime, and by a computation of their own."""

import functools

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import perfusion.diffusers
from perfusion.embedded import model_path
from perfusion.errors import RequestError
from perfusion.runtime import Runtime

SAMPLES = model_path() / "concepts"


@pytest.fixture(scope="module")
def pocket():
    loaded = StableDiffusionPipeline.from_pretrained(model_path(), dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def xl(tiny_xl_pipeline):
    tiny_xl_pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():  # so that its encodings have means
        for encoder in (tiny_xl_pipeline.text_encoder, tiny_xl_pipeline.text_encoder_2):
            for name, parameter in encoder.named_parameters():
                if name.endswith("bias"):
                    parameter += 0.2
    return tiny_xl_pipeline


@pytest.fixture(scope="module")
def runtime():
    with Runtime(threads=1) as opened:
        opened.load_concept("pink-cake")
        opened.load_concept("gold-hat")
        yield opened


def encoded(pipeline, *prompts, **options):
    with torch.no_grad():
        return pipeline.encode_prompt(*prompts, device="cpu", num_images_per_prompt=1,
                                      do_classifier_free_guidance=True, **options)  # fmt: skip


def emphasised(hidden, weights):
    """A1111's emphasis of encodings (77, width), in numbers of twice the precision."""
    hidden = hidden.double().numpy()
    heavy = hidden * np.asarray(weights)[:, None]
    return heavy * (hidden.mean() / heavy.mean())


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a (<pink-cake>:1.3) on a [beach]",
        "a (photo:0.5) of a (<pink-cake>:0.8) BREAK at (night:1.4)",
        "a (<pink-cake>:1.2) and a <gold-hat> on a (table:1.3) <lora:pink-cake:0.6>",
        "a photo of a (pink cake:1.4)",
    ],
)
def test_a_picture_is_our_runtimes(pocket, runtime, prompt):
    concepts = [SAMPLES / f"{name}.safetensors" for name in ("pink-cake", "gold-hat")]
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "negative_prompt": "a (tree:1.2)"}
    expected = runtime.generate(prompt, seed=3, regions="auto", scheduler="ddim", **options)
    with perfusion.diffusers.apply(pocket, concepts, regions="auto"):
        shape = (1, pocket.unet.config.in_channels, *[side // 8 for side in expected.size])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        picture = pocket(prompt, latents=noise, **options).images[0]
    difference = np.asarray(picture, float) - np.asarray(expected, float)
    assert 10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9)) > 45


def test_both_text_encoders_have_weights_and_means_of_their_own_and_pooled_states_none(xl):
    plain = encoded(xl, "a photo of a cat on a beach", "a red cat", negative_prompt="a dog")
    with perfusion.diffusers.apply(xl, ()):
        weighted = encoded(
            xl, "a photo of a (cat:1.5) on a beach", "a (red:0.5) cat", negative_prompt="a (dog:2)"
        )
    widths = [encoder.config.hidden_size for encoder in (xl.text_encoder, xl.text_encoder_2)]
    weights = {5: 1.5}, {2: 0.5}
    for side, by_encoder in ((0, weights), (1, ({2: 2.0}, {2: 2.0}))):
        for column, places in zip(range(2), by_encoder, strict=True):
            span = slice(sum(widths[:column]), sum(widths[: column + 1]))
            numbers = np.ones(77)
            for place, weight in places.items():
                numbers[place] = weight
            expected = emphasised(plain[side][0, :, span], numbers)
            np.testing.assert_allclose(weighted[side][0, :, span].numpy(), expected, rtol=1e-4, atol=1e-5)
    for side in (2, 3):
        torch.testing.assert_close(weighted[side], plain[side], rtol=0, atol=0)


def test_a_break_makes_parts_that_are_read_one_after_another(xl):
    first, second = (encoded(xl, text, negative_prompt="a dog") for text in ("a cat", "on a beach"))
    with perfusion.diffusers.apply(xl, ()):
        both = encoded(xl, ["a cat BREAK on a beach", "a cat"], negative_prompt=["a dog", "a dog"])
        with pytest.raises(RequestError, match="come as encodings"):
            encoded(
                xl, None, prompt_embeds=first[0], pooled_prompt_embeds=first[2], negative_prompt="a BREAK b"
            )
    torch.testing.assert_close(both[0][0], torch.cat([first[0][0], second[0][0]]))
    torch.testing.assert_close(both[0][1, :77], first[0][0])
    torch.testing.assert_close(both[1][0, :77], first[1][0])
    torch.testing.assert_close(both[2][0], first[2][0])


def test_without_syntax_and_with_plain_prompts_nothing_changes(pocket):
    expected = encoded(pocket, "a (cat:1.3) BREAK [x]")[0]
    with perfusion.diffusers.apply(
        pocket, SAMPLES / "pink-cake.safetensors", prompt_syntax="plain"
    ) as handle:
        torch.testing.assert_close(encoded(pocket, "a (cat:1.3) BREAK [x]")[0], expected, rtol=0, atol=0)
        handle.prompt_syntax = "weights"
        assert encoded(pocket, "a (cat:1.3) BREAK [x]")[0].shape[1] == 2 * 77
        long = "a cat " * 60
        torch.testing.assert_close(encoded(pocket, long)[0], encoded(pocket, long)[0], rtol=0, atol=0)
        with pytest.raises(RequestError, match="expected 'weights' or 'plain'"):
            handle.prompt_syntax = "compel"
        with pytest.raises(RequestError, match="nowhere the word <pink-cake>"):
            encoded(pocket, "a cat <lora:pink-cake:0.5>")


@pytest.mark.parametrize("module, factor", [("diffusers.pipelines.any", 1.3), ("of.others", None)])
def test_the_prompts_of_pipelines_by_others_are_left_to_them(pocket, monkeypatch, module, factor):
    original, texts = pocket.encode_prompt, []

    @functools.wraps(original)
    def encode_prompt(prompt, *args, **kwargs):
        texts.append(prompt)
        return original(prompt, *args, **kwargs)

    encode_prompt.__module__ = module
    monkeypatch.setitem(vars(pocket), "encode_prompt", encode_prompt)
    with perfusion.diffusers.apply(pocket, SAMPLES / "pink-cake.safetensors"):
        encoded(pocket, "a (<pink-cake>:1.3)")
    assert set(texts) == ({"a <pink-cake>"} if factor else {"a (<pink-cake>:1.3)"})


def test_prompts_of_one_batch_have_strengths_of_their_own(pocket):
    with perfusion.diffusers.apply(pocket, SAMPLES / "pink-cake.safetensors") as handle:
        both = encoded(pocket, ["a <pink-cake> <lora:pink-cake:0.4>", "a <pink-cake>"])[0]
        full = encoded(pocket, "a <pink-cake>")[0]
        handle.set("<pink-cake>", strength=0.4)
        part = encoded(pocket, "a <pink-cake>")[0]
    torch.testing.assert_close(both[0], part[0])
    torch.testing.assert_close(both[1], full[0])
