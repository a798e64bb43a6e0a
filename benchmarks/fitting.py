"""python benchmarks/fitting.py: what published models take on every device, computed from their graphs, not measured.

The models are exported from their public settings without weights. That takes some minutes, and the graphs are kept
under build/ until the exporter changes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.models.hollow import hollow_model
from benchmarks.record import write_record
from perfusion.bundle.call_size import CallSize
from perfusion.devices.planning.float32_parts import kept_places
from perfusion.devices.planning.memory_plan import Workload, plan_graphs
from perfusion.devices.profiles import PROFILES
from perfusion.embedded import bundle_path

MIB = 1 << 20
MODELS = {"sd15": (512, 64), "sd21": (768, 64), "sdxl": (1024, 32), "pocket": (128, 32)}
"""The side of a model's own pictures, and what sides are a multiple of, in pixels."""


def fitting() -> Iterator[dict[str, Any]]:
    """What each model takes on each device at its own size, from the graphs alone."""
    for model, (side, step) in MODELS.items():
        folder = bundle_path() if model == "pocket" else hollow_model(model)
        names = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
        files = {name: folder / f"{name}.onnx" for name in names if (folder / f"{name}.onnx").exists()}
        for profile in PROFILES.values():
            workload = Workload(
                size=CallSize(width=side, height=side, concepts=4), precision=profile.precision,
                own_precision="fp32", downscale=8, step=step, kept=kept_places(model),
            )  # fmt: skip
            plan = plan_graphs(files, workload, profile)
            yield {
                "what": f"{model} {side} on {profile.name}",
                "precision": profile.precision,
                "peak_mib": round(plan.peak / MIB),
                "usable_mib": round(plan.budget / MIB),
                "fits": plan.fits,
                "all_open": len(set(plan.resident.values())) == 1,
                "tile": plan.tile,
                "nearest": str(plan.nearest) if plan.nearest else None,
            }


def main() -> int:
    """Plan, and write the record."""
    print(write_record("fitting", list(fitting())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
