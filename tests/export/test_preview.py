"""The colours of latents before they are decoded, against a VAE that is linear and one that is not."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfusion.export.preview import fit_latent_rgb

COLOURS = torch.tensor([[0.2, -0.1, 0.3], [0.1, 0.25, -0.2], [-0.15, 0.1, 0.2], [0.05, 0.2, 0.1]])
OFFSET = torch.tensor([0.1, -0.05, 0.02])


class LinearVAE(nn.Module):
    """Each latent is a block of pixels of one colour, a linear map of it."""

    config = SimpleNamespace(block_out_channels=(1, 1, 1), in_channels=3, scaling_factor=0.5)

    def encode(self, pictures: Tensor) -> Any:
        small = F.avg_pool2d(pictures, 4)
        latents = torch.cat([small, small.mean(1, keepdim=True)], 1) * 0.8
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        colours = torch.einsum("nchw,cr->nrhw", latents, COLOURS) + OFFSET[:, None, None]
        return (F.interpolate(colours, scale_factor=4.0),)


def test_a_linear_decoder_is_found_again_with_the_scaling_taken_out():
    found = fit_latent_rgb(LinearVAE())
    np.testing.assert_allclose(found["weight"], COLOURS.numpy() / 0.5, atol=2e-3)
    np.testing.assert_allclose(found["bias"], OFFSET.numpy(), atol=2e-3)


def test_a_bundle_holds_a_row_for_each_latent_channel(exported):
    fitted = exported.manifest["vae"]["latent_rgb"]
    assert np.shape(fitted["weight"]) == (exported.manifest["vae"]["latent_channels"], 3)
    assert np.shape(fitted["bias"]) == (3,)


def test_the_embedded_models_colours_are_in_its_bundle_and_most_of_its_pictures():
    """On smooth latents the map explains most of what decoding gives."""
    from perfusion.base.base_model import load_base
    from perfusion.embedded import model_path

    vae = load_base(None).vae
    fitted = fit_latent_rgb(vae)
    shipped = json.loads((model_path() / "bundle.json").read_text())["vae"]["latent_rgb"]
    for name, numbers in fitted.items():
        np.testing.assert_allclose(shipped[name], numbers, atol=2e-3, err_msg=name)
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1
    picture = F.interpolate(coarse, (128, 128), mode="bilinear", align_corners=True)
    with torch.no_grad():
        latents = vae.encode(picture).latent_dist.mode()
        decoded = F.avg_pool2d(vae.decode(latents).sample, 8)[0]
    scaled = latents[0] * vae.config.scaling_factor
    colours = torch.einsum("chw,cr->rhw", scaled, torch.tensor(fitted["weight"]))
    colours += torch.tensor(fitted["bias"])[:, None, None]
    left = (colours - decoded).square().mean() / (
        decoded - decoded.mean((1, 2), keepdim=True)
    ).square().mean()
    assert left < 0.15
