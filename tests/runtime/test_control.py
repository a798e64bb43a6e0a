"""Pictures that a ControlNet controls, against diffusers' pipelines on small random models."""

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.commands.generate import main
from perfusion.errors import RequestError
from perfusion.runtime import Runtime
from perfusion.runtime.picture_settings import settings_of
from tests.runtime.test_bases import build_sd15, decibels, theirs, xl_concept

CALL = {"width": 32, "height": 32, "num_inference_steps": 3, "guidance_scale": 4.0}
PROMPT = "a photo of a cat on a beach"


def control_image(width=32, height=32, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def build_controlnet(unet, seed=5):
    """Of a UNet's structure, with zero convolutions that are none, so that it does something."""
    torch.manual_seed(seed)
    controlnet = diffusers.ControlNetModel.from_unet(
        unet, load_weights_from_unet=False, conditioning_embedding_out_channels=(8, 16, 32)
    ).eval()
    with torch.no_grad():
        for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block,
                      controlnet.controlnet_cond_embedding.conv_out):  # fmt: skip
            layer.weight.normal_(std=0.2)
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
