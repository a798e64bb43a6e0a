"""From nothing to the shipped files: autoencoder, UNet and text encoder, then the model folder and its bundle.

Everything lies in a work folder, so that a run can be stopped at any moment and continued by the same command.
"""

from __future__ import annotations

import json
import logging
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from perfusion.contact_sheet import contact_sheet
from perfusion.errors import ModelError
from perfusion.files import writing
from recipes.pocket.architecture import SIZES, build_pipeline
from recipes.pocket.editions import Edition
from recipes.pocket.pool import encode
from recipes.pocket.scorer import build_scorer
from recipes.pocket.sheet import PROMPTS
from recipes.pocket.tokenizer import build_tokenizer
from recipes.pocket.train_scorer import ScorerConfig, accuracies, train_scorer
from recipes.pocket.train_unet import Trainer, UnetConfig, train_unet
from recipes.pocket.train_vae import VaeConfig, train_vae
from recipes.pocket.weights import Packed, averaged, steps_done
from recipes.pocket.world import Taste, World

__all__ = [
    "load_trained",
    "pack",
    "pack_scorer",
    "run_scorer",
    "run_unet",
    "run_vae",
    "save_sheet",
]

logger = logging.getLogger(__name__)

CAPTIONS = 5_000


def run_vae(
    work: Path,
    edition: Edition,
    config: VaeConfig,
    minutes: float,
    device: str,
    packed: Packed | None = None,
) -> bool:
    """Train the autoencoder in `work`; True when its steps are done. Begins with a packed model's, where there is no
    checkpoint."""
    pipeline, world = build_pipeline(edition.family), edition.world(device=device)
    weights, begin = (packed.weights["vae"], packed.steps["vae"]) if packed else (None, 0)
    checkpoint, gauge = work / "vae.safetensors", edition.gauge(world)
    return train_vae(
        pipeline.vae, world, config, checkpoint, minutes, weights=weights, begin=begin, gauge=gauge
    )


def run_unet(
    work: Path,
    edition: Edition,
    config: UnetConfig,
    minutes: float,
    device: str,
    packed: Packed | None = None,
) -> bool:
    """Train the UNet and the text encoder in `work`; writes a sample sheet at every checkpoint. Begins as `run_vae`."""
    world, pipeline, checkpoint = (
        edition.world(device=device),
        build_pipeline(edition.family),
        work / "unet.safetensors",
    )
    load_vae(pipeline, world, work / "vae.safetensors")
    known = packed if not checkpoint.exists() else None
    if known:
        pipeline.unet.load_state_dict(known.weights["unet"])
        pipeline.text_encoder.load_state_dict(known.weights["text"], strict=False)  # buffers are no weights
    trainer = edition.trainer(pipeline, world, config)
    if known:
        trainer.begin(known.steps["unet"])

    def show(_: Trainer) -> None:
        save_sheet(pipeline, edition, work / "sheet.png")

    return train_unet(trainer, checkpoint, minutes, show)


def run_scorer(work: Path, edition: Edition, config: ScorerConfig, minutes: float, device: str) -> bool:
    """Train the scorer of the pictures in `work`; True when its steps are done."""
    world, tokenizer = edition.world(device=device), build_tokenizer(SIZES[edition.family].words())
    scorer = build_scorer(tokenizer, config.size)
    return train_scorer(scorer, world, tokenizer, config, work / "scorer.safetensors", minutes)


def load_vae(pipeline: Any, world: World, checkpoint: Path) -> None:
    """Put the trained autoencoder into the pipeline, with the factor that gives its latents a deviation of one."""
    pipeline.vae.load_state_dict(averaged(checkpoint, "average"), strict=False)
    vae = pipeline.vae.to(world.device).eval()
    vae.register_to_config(scaling_factor=1.0)
    rng = random.Random(1)
    with world.seeded(1):
        scenes = [world.sample(rng, Taste()) for _ in range(256)]
        latents = torch.cat(
            [encode(vae, world.render(scenes[row : row + 32])[0]) for row in range(0, 256, 32)]
        )
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))


def load_trained(work: Path, edition: Edition) -> Any:
    """The pipeline with the averaged weights of both checkpoints."""
    pipeline = build_pipeline(edition.family)
    load_vae(pipeline, edition.world(backdrops=8), work / "vae.safetensors")
    pipeline.unet.load_state_dict(averaged(work / "unet.safetensors", "average.unet"), strict=False)
    pipeline.text_encoder.load_state_dict(averaged(work / "unet.safetensors", "average.text"), strict=False)
    return pipeline


def draw(pipeline: Any, edition: Edition, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
    """Pictures through diffusers, at the shipped settings."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images: list[Image.Image] = pipeline(
        prompts,
        num_inference_steps=edition.steps,
        guidance_scale=edition.guidance_scale,
        generator=generators,
    ).images
    return images


def save_sheet(pipeline: Any, edition: Edition, path: Path) -> None:
    """A sheet of the fixed prompts, one seed each."""
    pictures = draw(pipeline, edition, list(PROMPTS), list(range(len(PROMPTS))))
    with writing(path) as file:
        contact_sheet(pictures, PROMPTS).save(file, "PNG")


def pack(work: Path, edition: Edition, folder: Path) -> None:
    """Write the shipped folder: float16 weights in diffusers' layout, captions, and the bundle that reads them.

    Made beside the folder and moved into it when everything is there: an export that fails leaves the old model whole.
    """
    from perfusion.export import export_bundle

    pipeline = load_trained(work, edition).to(dtype=torch.float16)
    facts = {
        "family": edition.family,
        "guidance_scale": edition.guidance_scale,
        "num_inference_steps": edition.steps,
        "lr_values": edition.lr_values,
        "values": edition.values,
        "steps": {part: steps_done(work / f"{part}.safetensors") for part in ("vae", "unet")},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        draft = Path(temporary) / folder.name
        pipeline.save_pretrained(draft, safe_serialization=True)
        _open_in_float32(draft / "text_encoder" / "config.json")
        with writing(draft / "perfusion.json", "w") as file:
            file.write(json.dumps(facts, indent=2) + "\n")
        write_captions(draft / "captions.txt", edition)
        export_bundle(draft, draft, link_weights=True)
        for path in sorted(draft.rglob("*")):
            if path.is_file():
                target = folder / path.relative_to(draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)


def _open_in_float32(config: Path) -> None:
    """Let transformers open the encoder as diffusers opens the UNet: half precision is how the weights are stored, and
    a pipeline whose parts differ cannot draw."""
    settings = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n", newline="\n")


def pack_scorer(work: Path, edition: Edition, folder: Path) -> None:
    """Write the shipped scorer, with its accuracies on scenes from seeds that no training uses."""
    from recipes.pocket.scorer_files import save_scorer

    config, tokenizer = edition.scorer, build_tokenizer(SIZES[edition.family].words())
    scorer = build_scorer(tokenizer, config.size).eval()
    weights = averaged(work / "scorer.safetensors", "average")
    if missing := sorted(dict(scorer.named_parameters()).keys() - weights.keys()):
        raise ModelError(f"{work}: the scorer there has no {missing[0]}, it is an older one. Train it anew.")
    scorer.load_state_dict(weights, strict=False)  # it has no buffers that are whole numbers
    world = edition.world(backdrops=16, seed=1234)
    shares = accuracies(scorer, world, taste=config.taste, count=2048, seed=4321)
    save_scorer(scorer, tokenizer, folder, shares)


def write_captions(path: Path, edition: Edition, count: int = CAPTIONS, seed: int = 9) -> None:
    """Captions of the world's scenes, for the second moment of the text encodings."""
    world, rng = edition.world(size=16, backdrops=1), random.Random(seed)
    taste = replace(edition.caption_taste, empty_caption=0.0)
    with writing(path, "w") as file:
        file.write("".join(world.sample(rng, taste).caption + "\n" for _ in range(count)))
