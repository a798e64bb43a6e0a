"""Pictures that a ControlNet controls, against diffusers' pipelines on small random models."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.errors import RequestError
from perfusion.runtime import Runtime
from perfusion.runtime.picture_settings import parameters_text, settings_of
from tests.runtime.test_bases import build_sd15, decibels, theirs, xl_concept

CALL = {"width": 32, "height": 32, "num_inference_steps": 3, "guidance_scale": 4.0}
PROMPT = "a photo of a cat on a beach"


def control_image(width=32, height=32, seed=0):
    """Large fields of random colours."""
    levels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST)


def build_controlnet(unet, seed=5):
    """Of a UNet's structure, with zero convolutions that are none, so that it does something."""
    torch.manual_seed(seed)
    controlnet = diffusers.ControlNetModel.from_unet(
        unet, load_weights_from_unet=False, conditioning_embedding_out_channels=(8, 16, 32)
    ).eval()
    seeing = controlnet.controlnet_cond_embedding
    with torch.no_grad():
        for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            layer.weight.normal_(std=0.2)
        for layer in (seeing.conv_in, *seeing.blocks, seeing.conv_out):
            layer.weight.normal_(std=2 / layer.weight[0].numel() ** 0.5)
    return controlnet


def controlled(pipeline, controlnet, kind):
    more = {} if kind is diffusers.StableDiffusionXLControlNetPipeline else {"requires_safety_checker": False}
    return kind(**pipeline.components, controlnet=controlnet, **more)


@pytest.fixture(scope="module")
def sd15_pipeline(toy_pipeline):
    return build_sd15(toy_pipeline)


@pytest.fixture(scope="module")
def canny(sd15_pipeline):
    return build_controlnet(sd15_pipeline.unet)


@pytest.fixture(scope="module")
def sd15(sd15_pipeline, canny, by_torch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd15")
    canny.save_pretrained(folder / "canny")
    with by_torch(sd15_pipeline, folder, controlnets={"canny": folder / "canny"}) as runtime:
        yield runtime


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_controlled_picture_of_15s_shape_is_diffusers(sd15, sd15_pipeline, canny, scale):
    pipeline = controlled(sd15_pipeline, canny, diffusers.StableDiffusionControlNetPipeline)
    call = {**CALL, "negative_prompt": "a dog at night"}
    expected = theirs(
        pipeline, prompt=PROMPT, image=control_image(), controlnet_conditioning_scale=scale, **call
    )
    drawing = sd15.generate(PROMPT, seed=3, control_image=control_image(), control_scale=scale, **call)
    assert decibels(drawing, expected) >= 40
    plain = sd15.generate(PROMPT, seed=3, **call)
    assert decibels(plain, expected) < 36, "control that hardly shows would prove nothing"
    assert decibels(plain, theirs(sd15_pipeline, prompt=PROMPT, **call)) >= 40


def test_xls_controlnet_reads_its_pooled_states_and_sizes(tiny_xl, by_torch, tmp_path):
    controlnet = build_controlnet(tiny_xl.unet)
    controlnet.save_pretrained(tmp_path / "canny")
    pipeline = controlled(tiny_xl, controlnet, diffusers.StableDiffusionXLControlNetPipeline)
    with by_torch(tiny_xl, tmp_path, controlnets={"canny": tmp_path / "canny"}) as runtime:
        assert runtime.bundle.controlnet.conditions == ("text_embeds", "time_ids")
        expected = theirs(pipeline, prompt=PROMPT, image=control_image(), negative_prompt="a dog", **CALL)
        drawing = runtime.generate(
            PROMPT, seed=3, control_image=control_image(), negative_prompt="a dog", **CALL
        )
        assert decibels(drawing, expected) >= 40
        assert decibels(runtime.generate(PROMPT, seed=3, negative_prompt="a dog", **CALL), expected) < 40


def test_a_scale_of_zero_is_the_plain_picture(sd15):
    plain = sd15.generate(PROMPT, seed=3, **CALL)
    drawing = sd15.generate(PROMPT, seed=3, control_image=control_image(), control_scale=0, **CALL)
    assert decibels(drawing, plain) > 50


def test_concepts_and_regions_are_drawn_and_the_controlnet_reads_the_superclass(sd15):
    """A ControlNet has no edit. With the concept at strength 0 the picture is the base model's."""
    sd15.load_concept(xl_concept(sd15))
    try:
        call = {"seed": 3, "control_image": control_image(), **CALL}
        base = sd15.generate(PROMPT, **call)
        concept = sd15.generate(PROMPT.replace("cat", "<cat>"), **call)
        off = sd15.generate(
            PROMPT.replace("cat", "<cat>"), concept_settings={"<cat>": {"strength": 0}}, **call
        )
        np.testing.assert_array_equal(np.asarray(off), np.asarray(base))
        assert decibels(concept, base) < 40
        two, plain = "a <cat> and a {dog} on a beach", {**call, "control_image": None}
        assert decibels(sd15.generate(two, **call), sd15.generate(two, **plain)) < 40
        rows = sd15._preparation.draft(two, 3, None, {"control_image": control_image(), **CALL}).specs[0]
        assert [part.text for part in rows.control_parts] == ["a cat and a dog on a beach"]
    finally:
        sd15.unload_concept("<cat>")


def test_each_picture_of_a_batch_has_its_own_image(sd15):
    images = [control_image(seed=1), control_image(seed=2)]
    both = sd15.generate([PROMPT, PROMPT], seed=3, control_image=images, **CALL)
    for picture, image in zip(both, images, strict=True):
        alone = sd15.generate(PROMPT, seed=3, control_image=image, **CALL)
        assert decibels(picture, alone) > 50
    assert decibels(*both) < 36


def test_jobs_with_and_without_control_are_drawn_beside_one_another(sd15):
    jobs = [
        sd15.submit(PROMPT, seed=3, **CALL),
        sd15.submit(PROMPT, seed=3, control_image=control_image(), **CALL),
    ]
    plain, drawing = (job.result() for job in jobs)
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(sd15.generate(PROMPT, seed=3, **CALL)))
    assert decibels(drawing, plain) < 36


def test_what_cannot_be_served_is_told(sd15, runtime, caplog):
    for options, sentence in (
        ({"control_scale": 0.5}, "a control scale and no control image"),
        (
            {"control_image": control_image(), "control_scale": 3},
            "The control scale is 3, expected a number from 0",
        ),
        ({"control_image": [control_image()] * 2}, "There are 2 control images for 1 prompts"),
    ):
        with pytest.raises(RequestError, match=sentence):
            sd15.generate(PROMPT, **options)
    with pytest.raises(RequestError, match=r"this bundle has no ControlNet\. Export it again"):
        runtime.generate(PROMPT, control_image=control_image())
    with pytest.raises(RequestError, match=r"no ControlNet 'depth' in this bundle; it has none"):
        Runtime(runtime.bundle.folder, controlnet="depth")
    with pytest.raises(RequestError, match="no ControlNet 'depth' in this bundle; it has canny"):
        sd15.bundle.with_controlnet("depth")
    sd15.generate(PROMPT, control_image=control_image(64, 32), **CALL)
    assert "the control image has 64 × 32 pixels and the picture 32 × 32, so it is squeezed" in caplog.text


def test_the_settings_of_a_picture_say_what_controlled_it(sd15):
    settings = settings_of(sd15, PROMPT, 3, control_image=control_image(), control_scale=0.5)
    assert (settings["controlnet"], settings["control_scale"]) == ("canny", 0.5)
    assert len(settings["control_image"]) == 64
    assert 'ControlNet 0: "Model: canny, Weight: 0.5"' in parameters_text(settings)
    plain = settings_of(sd15, PROMPT, 3)
    assert [plain[name] for name in ("controlnet", "control_scale", "control_image")] == [None] * 3
