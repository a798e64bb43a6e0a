"""python benchmarks/pocket.py: how good the embedded model is, by gauges that need no scorer.

The wrong-noun gap (how much the denoising error rises when the caption names another noun) at several timesteps; with
a model whose world knows its things, what their nouns' attention does; and what the autoencoder keeps of a picture. On
fresh scenes, drawn from seeds that the training did not use.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from perfusion.base.base_model import load_base
from recipes.pocket.editions import edition_of
from recipes.pocket.gauge import wrong_noun_gap
from recipes.pocket.train_vae import qualities
from recipes.pocket.train_wide import attention_gauge
from recipes.pocket.wide_world import WideWorld

COUNT = 128


def main() -> int:
    """Gauge, print, record."""
    base, rows = load_base(None), list[dict[str, Any]]()
    edition = edition_of(base.family)
    world = edition.world(backdrops=16, seed=1234)
    parts = (base.vae, base.text_encoder, base.unet, base.tokenizer)

    def told(what: str, scenes: int = COUNT, **number: float) -> None:
        rows.append({"what": what, **number, "scenes": scenes})
        print(rows[-1], flush=True)

    for timestep in (300, 500, 650, 800, 900):
        gap = wrong_noun_gap(world, *parts, timestep=timestep, count=COUNT, seed=4321)
        told(f"wrong-noun gap at timestep {timestep}", percent=round(100 * gap, 1))
    if isinstance(world, WideWorld):
        for timestep, (share, area) in attention_gauge(world, *parts, count=COUNT, seed=4321).items():
            told(
                f"attention on a thing that its noun takes at timestep {timestep}",
                percent=round(100 * share, 1),
            )
            told(f"two things told apart by it at timestep {timestep}", area=round(area, 3))
    pictures = edition.gauge(world)
    for name, decibels in qualities(base.vae, pictures).items():
        told(f"autoencoder, PSNR of {name}", scenes=len(pictures[name]), decibels=round(decibels, 2))
    print(write_record("pocket", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
