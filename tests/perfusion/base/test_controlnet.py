"""ControlNets in the layouts that people have, and those that are refused."""

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from perfusion.base.controlnet import load_controlnet, residual_ends
from perfusion.errors import ModelError


@pytest.fixture(scope="module")
def controlnet(tiny_base):
    torch.manual_seed(0)
    shrinks = len(tiny_base.vae.config.block_out_channels)
    return diffusers.ControlNetModel.from_unet(
        tiny_base.unet, conditioning_embedding_out_channels=(4, 8, 16, 32)[:shrinks]
    )


def equal(loaded, expected):
    theirs = expected.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.state_dict().items())


def test_a_folder_of_diffusers_and_a_file_in_its_layout_are_read(tiny_base, controlnet, tmp_path):
    controlnet.save_pretrained(tmp_path / "canny")
    assert equal(load_controlnet(tmp_path / "canny", tiny_base), controlnet)
    file = tmp_path / "canny" / "diffusion_pytorch_model.safetensors"
    assert equal(load_controlnet(file, tiny_base), controlnet)


def test_the_residuals_are_those_that_it_gives(tiny_base, controlnet):
    config, side = tiny_base.unet.config, 8
    sample = torch.zeros(1, config.in_channels, side, side)
    pixels = side * 2 ** (len(tiny_base.vae.config.block_out_channels) - 1)
    with torch.no_grad():
        down, middle = controlnet(
            sample, torch.zeros(1), torch.zeros(1, 3, config.cross_attention_dim),
            torch.zeros(1, 3, pixels, pixels), return_dict=False,
        )  # fmt: skip
    shapes = [(residual.shape[1], side // residual.shape[2]) for residual in (*down, middle)]
    assert residual_ends(tiny_base.unet) == shapes


def test_what_is_no_controlnet_of_this_model_is_told(tiny_base, controlnet, tmp_path):
    other = diffusers.ControlNetModel.from_config({**controlnet.config, "cross_attention_dim": 8})
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ModelError, match="of another base model: its cross_attention_dim is 8, and that of the UNet"
    ):
        load_controlnet(tmp_path / "other", tiny_base)
    with pytest.raises(
        ModelError, match="has other tensors than a ControlNet of this base model: size mismatch"
    ):
        load_controlnet(tmp_path / "other" / "diffusion_pytorch_model.safetensors", tiny_base)
    wide = diffusers.ControlNetModel.from_config(
        {**controlnet.config, "conditioning_embedding_out_channels": (4, 4, 4, 4, 4)}
    )
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(ModelError, match="makes one place of 16 pixels, and the VAE one latent of"):
        load_controlnet(tmp_path / "wide", tiny_base)
    (tmp_path / "control.pth").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a pickle, which can run code"):
        load_controlnet(tmp_path / "control.pth", tiny_base)
    save_file({"emb_params": torch.zeros(1, 8)}, tmp_path / "no.safetensors")
    with pytest.raises(ModelError, match="holds no ControlNet"):
        load_controlnet(tmp_path / "no.safetensors", tiny_base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config.json, expected the folder"):
        load_controlnet(tmp_path / "empty", tiny_base)
