# .venv/bin/python examples/4_diffusers.py
"""Concepts inside a diffusers pipeline, for programs that have one already; needs torch and diffusers."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import perfusion.diffusers
from perfusion.embedded import model_path

OUTPUT = Path("build/examples")
OUTPUT.mkdir(parents=True, exist_ok=True)
SAMPLES = model_path() / "concepts"

# or any Stable Diffusion 1.x, 2.x or XL of yours
pipeline = StableDiffusionPipeline.from_pretrained(model_path(), dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
call = {"num_inference_steps": 20, "guidance_scale": 5.0}
prompts = ["a <school-bus> on a beach", "a <pink-cake> and a <school-bus>", "a bus on a beach"]

with perfusion.diffusers.apply(
    pipeline, [SAMPLES / "school-bus.safetensors", SAMPLES / "pink-cake.safetensors"]
) as handle:
    # diffusers' own call: a batch, every prompt with other concepts or with none
    pictures = pipeline(prompts, generator=[torch.Generator().manual_seed(3) for _ in prompts], **call).images
    handle.set("<school-bus>", bias=1.0)  # from the next call on: less of the concept, more of the prompt
    pictures += pipeline(prompts[0], generator=torch.Generator().manual_seed(3), **call).images
# here the pipeline is what it was, bit for bit
for name, picture in zip(("bus", "cake-and-bus", "plain", "bus-bias-1"), pictures, strict=True):
    picture.save(OUTPUT / f"diffusers-{name}.png")
print(f"{OUTPUT}/diffusers-*.png")
