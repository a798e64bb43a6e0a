"""python benchmarks/pocket.py: how good the embedded model is, by gauges that need no scorer.

The wrong-noun gap (how much the denoising error rises when the caption names another noun) at several timesteps, and
what the autoencoder keeps of a picture. On fresh scenes, drawn from seeds that the training did not use.
"""

import random
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from perfusion.base.base_model import load_base
from recipes.pocket.gauge import wrong_noun_gap
from recipes.pocket.sprites import training_atlas
from recipes.pocket.train_vae import SCENES, psnr, reconstruct
from recipes.pocket.world import World

COUNT = 128


def main() -> int:
    """Gauge, print, record."""
    base = load_base(None)
    world = World(training_atlas(), backdrops=16, seed=1234)
    rows: list[dict[str, Any]] = []
    for timestep in (300, 500, 650, 800, 900):
        parts = (base.vae, base.text_encoder, base.unet, base.tokenizer)
        gap = wrong_noun_gap(world, *parts, timestep=timestep, count=COUNT, seed=4321)
        rows.append(
            {
                "what": f"wrong-noun gap at timestep {timestep}",
                "percent": round(100 * gap, 1),
                "scenes": COUNT,
            }
        )
        print(rows[-1])
    torch.manual_seed(4321)
    rng = random.Random(4321)
    total = 0.0
    for _ in range(COUNT // 16):
        pictures = world.render([world.sample(rng, SCENES) for _ in range(16)])[0] * 2 - 1
        with torch.no_grad():
            total += psnr(reconstruct(base.vae, pictures), pictures) * 16 / COUNT
    rows.append(
        {"what": "autoencoder, PSNR of the reconstruction", "decibels": round(total, 2), "scenes": COUNT}
    )
    print(rows[-1])
    print(write_record("pocket", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
