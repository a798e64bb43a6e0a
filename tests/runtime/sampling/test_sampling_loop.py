"""Every kind of picture against diffusers': all schedulers, drawing over pictures, and the guidance's options."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.errors import RequestError
from perfusion.runtime import SCHEDULERS

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


def with_scheduler(pipeline: Any, name: str) -> Any:
    """The pipeline's parts with diffusers' scheduler of that name."""
    base = name.removesuffix("_karras")
    more: dict[str, Any] = {} if base == name else {"use_karras_sigmas": True}
    more |= {"skip_prk_steps": True} if name == "plms" else {}
    return {**pipeline.components, "scheduler": CLASSES[base].from_config(pipeline.scheduler.config, **more)}


def latents_of(made: Any, seed: int, **call: Any) -> np.ndarray:
    """diffusers' last latents, all noise drawn by its own generator."""
    made.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(seed)]
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent", **call}
    return np.asarray(made(generator=generator, **settings).images[0])


def ours(runtime: Any, **options: Any) -> np.ndarray:
    *_, last = runtime.denoise(PROMPT, **options)
    return last.latents[0]


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def picture(seed: int, size: tuple[int, int] = (45, 51), mode: str = "RGB") -> Image.Image:
    """Some smooth picture, not of the model's own size."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return small.convert(mode)


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers samples the latents of a picture; a bundle's encoder gives their mode."""
    for name in ("img2img", "inpaint"):
        path = f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{name}.retrieve_latents"
        monkeypatch.setattr(path, lambda output, generator=None: output.latent_dist.mode())


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_draws_diffusers_picture(runtime, toy_pipeline, name, steps):
    made = diffusers.StableDiffusionPipeline(
        **with_scheduler(toy_pipeline, name), requires_safety_checker=False
    )
    call = {"num_inference_steps": steps, "guidance_scale": 2.5}
    expected = latents_of(made, 5, prompt=PROMPT, **call)
    found = ours(runtime, seed=5, scheduler=name, **call)
    assert distance(found, expected) < 2e-5


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("name", ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "heun"])
def test_drawing_over_a_picture_is_diffusers_image_to_image(runtime, toy_pipeline, modes, name, strength):
    made = diffusers.StableDiffusionImg2ImgPipeline(
        **with_scheduler(toy_pipeline, name), requires_safety_checker=False
    )
    image = picture(1)
    call = {"image": image.resize((32, 32), Image.Resampling.LANCZOS), "strength": strength}
    expected = latents_of(made, 3, prompt=PROMPT, **call)
    found = ours(runtime, seed=3, scheduler=name, image=image, image_strength=strength)
    assert distance(found, expected) < 2e-5
    assert distance(ours(runtime, seed=3, scheduler=name), expected) > 1e-3


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("name", ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "heun"])
def test_a_mask_is_diffusers_inpainting(runtime, toy_pipeline, modes, name, strength):
    made = diffusers.StableDiffusionInpaintPipeline(
        **with_scheduler(toy_pipeline, name), requires_safety_checker=False
    )
    image, mask = picture(1), picture(2, (40, 40), "L")
    call = {"image": image, "mask_image": mask, "strength": strength, "width": 32, "height": 32}
    expected = latents_of(made, 3, prompt=PROMPT, **call)
    found = ours(runtime, seed=3, scheduler=name, image=image, mask=mask, image_strength=strength)
    assert distance(found, expected) < 2e-5


def test_what_a_mask_keeps_is_the_picture_and_the_rest_is_drawn(runtime, bundle):
    dark_left = np.zeros((32, 32), np.uint8)
    dark_left[:, 16:] = 255
    image, mask = picture(1), Image.fromarray(dark_left)
    steps = list(runtime.denoise(PROMPT, image=image, mask=mask))
    other = list(runtime.denoise("two dogs at night", image=image, mask=mask, seed=8))
    same = np.abs(steps[-1].latents - other[-1].latents).max(axis=(0, 1, 2))
    assert (same[:4] == 0).all() and (same[4:] > 0.1).all()
    assert steps[-1].latents.shape == other[-1].latents.shape == (1, 4, 8, 8)


def test_colours_that_hide_under_transparency_are_not_drawn_over(runtime):
    shape = picture(2, (40, 40), "L").point(lambda level: 255 * (level > 127))
    stickers = []
    for hidden in ("magenta", "green"):
        sticker = Image.new("RGB", (40, 40), hidden)
        sticker.paste(picture(1, (40, 40)), mask=shape)
        sticker.putalpha(shape)
        stickers.append(ours(runtime, image=sticker, image_strength=0.5))
    np.testing.assert_array_equal(*stickers)


def thin_line() -> Image.Image:
    line = Image.new("L", (320, 320))
    line.paste(255, (160, 0, 161, 320))
    return line


@pytest.mark.parametrize(
    "mask, sentence",
    [
        (Image.new("L", (8, 8)), "The mask is dark everywhere: nothing is drawn, all is kept."),
        (Image.new("L", (8, 8), "white"), "The mask is light everywhere: all is drawn anew."),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 0)), "The mask is dark everywhere: nothing is drawn"),
        (
            Image.fromarray(np.uint8([[0, 1]])),
            "The mask holds 0 and 1 where 0 and 255 are expected: nothing is",
        ),
        (thin_line(), "The mask has only dark places at 32 × 32 pixels: nothing is drawn, all is kept."),
        (Image.fromarray(np.uint8([[0, 255]])), None),
    ],
)
def test_a_mask_that_comes_to_nothing_is_told_once(runtime, caplog, mask, sentence):
    ours(runtime, image=picture(1), mask=mask, count=2, num_inference_steps=1)
    assert [record.message.startswith(sentence or "never") for record in caplog.records] == [True] * bool(
        sentence
    )


@pytest.mark.parametrize("rescale", [0.4, 1.0])
def test_guidance_rescale_is_that_of_diffusers(runtime, toy_pipeline, rescale):
    call = {"guidance_scale": 7.0, "guidance_rescale": rescale}
    made = diffusers.StableDiffusionPipeline(
        **with_scheduler(toy_pipeline, "ddim"), requires_safety_checker=False
    )
    found = ours(runtime, seed=2, **call)
    assert distance(found, latents_of(made, 2, prompt=PROMPT, **call)) < 2e-5
    assert distance(ours(runtime, seed=2, guidance_scale=7.0), found) > 0.01


def test_each_picture_has_a_stream_of_noise_of_its_own(runtime):
    """Fresh noise too: a batch is its pictures, whoever else is in it."""
    for name in ("euler_ancestral", "lcm"):
        *_, batch = runtime.denoise([PROMPT, "a dog"], seed=[4, 9], scheduler=name)
        *_, alone = runtime.denoise("a dog", seed=9, scheduler=name)
        np.testing.assert_array_equal(batch.latents[1], alone.latents[0])


def test_count_gives_each_prompt_pictures_of_neighbouring_seeds(runtime):
    found = runtime.generate(["a cat", "a dog"], seed=[3, 8], count=2, negative_prompt=["", "a cat"])
    expected = [
        runtime.generate(prompt, seed=seed, negative_prompt=negative)
        for prompt, seed, negative in (("a cat", 3, ""), ("a cat", 4, ""), ("a dog", 8, "a cat"), ("a dog", 9, "a cat"))
    ]  # fmt: skip
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert len(runtime.generate("a cat", count=1)) == 1


def test_pictures_of_one_call_may_be_drawn_over_pictures_of_their_own(runtime, tmp_path):
    picture(1).save(tmp_path / "one.png")
    batch = runtime.generate("a cat", seed=[0, 0], image=tmp_path / "one.png")
    np.testing.assert_array_equal(
        np.asarray(batch[0]), np.asarray(runtime.generate("a cat", image=picture(1)))
    )
    each = runtime.generate(["a cat", "a cat"], image=[picture(1), picture(2)])
    np.testing.assert_array_equal(np.asarray(each[0]), np.asarray(batch[0]))
    assert not np.array_equal(np.asarray(each[1]), np.asarray(batch[0]))


def test_heun_evaluates_all_steps_but_the_last_twice(runtime):
    steps = list(runtime.denoise("a cat", scheduler="heun", num_inference_steps=5))
    assert [(one.index, one.total) for one in steps] == [(index, 9) for index in range(9)]


def test_the_bundles_own_scheduler_is_the_default(runtime):
    from dataclasses import replace

    expected = runtime.generate("a cat", scheduler="euler_karras")
    defaults = replace(runtime.bundle.defaults, scheduler="euler_karras")
    runtime._preparation._bundle = replace(runtime.bundle, defaults=defaults)
    np.testing.assert_array_equal(np.asarray(runtime.generate("a cat")), np.asarray(expected))


@pytest.mark.parametrize(
    "call, message",
    [
        ({"mask": picture(1)}, "a mask and no image"),
        ({"image_strength": 0.5}, "an image strength and no image"),
        ({"image": picture(1), "image_strength": 0.0}, "image strength is 0, which leaves no step"),
        ({"image": picture(1), "image_strength": 0.2}, "leaves none of 4 steps.*5 steps would do"),
        (
            {"image": picture(1), "image_strength": 1.5},
            "image strength is 1.5, expected a number from 0 to 1",
        ),
        ({"image": "nothing.png"}, r"nothing\.png cannot be read as a picture: no such file"),
        ({"image": __file__}, "cannot be read as a picture: cannot identify image file"),
        ({"image": 3}, "The picture is int, expected a PIL image or a file's path"),
        ({"image": b"PNG"}, "The picture is bytes, expected a PIL image or a file's path"),
        ({"image": [picture(1)] * 2}, "2 images for 1 prompts"),
        ({"guidance_rescale": -1}, "guidance rescale is -1, expected a number from 0 to 1"),
        ({"guidance_rescale": "x"}, "guidance rescale is 'x'"),
        ({"count": 0}, "count is 0, expected a whole number from 1"),
        ({"count": 10**6}, "1000000 pictures, expected at most 4096"),
        ({"seed": 2**32 - 1, "count": 2}, "seed is 4294967296"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_over_or_counted_is_said_before_the_first_step(runtime, call, message):
    with pytest.raises(RequestError, match=message):
        runtime.denoise("a cat", **call)
