"""Make tests/data/toy_bundle: a bundle of random weights, small enough to commit, for tests without torch.

    python tests/make_toy_bundle.py

It has the structure of a real one and pocket's vocabulary. Its pictures are noise; every number of its graphs
is right, which is all that the tests of the runtime ask. Run again when the format of bundles changes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

# before tests/, which has a folder called perfusion as well
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from perfusion.base.usual_drawing import FAMILY_FILE
from perfusion.export import export_bundle
from perfusion.pocket.vocabulary import words
from recipes.pocket.architecture import SCHEDULER, Size, build_text_encoder
from recipes.pocket.tokenizer import build_tokenizer

TOY_BUNDLE = Path(__file__).parent / "data" / "toy_bundle"


def build_toy_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """Four cross-attention layers on two levels, pictures of 32 pixels, latents of 8."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(words())
    text = Size(
        resolution=32,
        unet_channels=(8, 16),
        layers_per_block=1,
        head_dim=8,
        text_dim=16,
        text_layers=1,
        vae_channels=(8, 8, 8),
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=build_text_encoder(text, tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_toy_model(folder: Path) -> None:
    """Write the pipeline as a diffusers folder, its weights in float16."""
    build_toy_pipeline().to(torch.float16).save_pretrained(folder)
    own = {"family": "pocket", "guidance_scale": 3.0, "num_inference_steps": 4}
    (folder / FAMILY_FILE).write_text(json.dumps(own), encoding="utf-8")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        save_toy_model(Path(folder))
        exported = export_bundle(folder, TOY_BUNDLE)
    print(f"{exported.folder}: {exported.size} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
