"""python benchmarks/fitting.py: what published models take on every device, computed from their graphs, not measured.

The models are exported from their public settings without weights. That takes some minutes, and the graphs are kept
under build/ until the exporter changes.

A plan reads nothing of a device but its memory, its precision and whether it has a GPU. So `--missing` adds the devices
that the record lacks without an export, where a row of the record says all of their plan: one of the same memory, or
one of less in which everything stays open and nothing is cut.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import RECORDS, write_record
from perfusion.bundle.call_size import CallSize
from perfusion.devices.planning.float32_parts import kept_places
from perfusion.devices.planning.memory_plan import Workload, plan_graphs
from perfusion.devices.profiles import PROFILES, DeviceProfile
from perfusion.embedded import bundle_path

Row = dict[str, Any]

MIB = 1 << 20
MODELS = {"sd15": (512, 64), "sd21": (768, 64), "sdxl": (1024, 32), "pocket": (128, 32)}
"""The side of a model's own pictures, and what sides are a multiple of, in pixels."""


def fitting() -> Iterator[dict[str, Any]]:
    """What each model takes on each device at its own size, from the graphs alone."""
    from benchmarks.models.hollow import hollow_model  # torch, diffusers: for exports alone

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


def implied(model: str, profile: DeviceProfile, rows: Sequence[Row]) -> Row | None:
    """A device's row, from those of other devices; None where they do not say it."""
    usable = round(profile.usable / MIB)
    for row in rows:
        what, _, name = row["what"].rpartition(" on ")
        other = PROFILES[name]
        alike = (other.precision, len(other.engines) > 1) == (profile.precision, len(profile.engines) > 1)
        roomy = row["fits"] and row["all_open"] and row["tile"] is None and row["usable_mib"] <= usable
        if what.split()[0] == model and alike and (roomy or row["usable_mib"] == usable):
            return {**row, "what": f"{what} on {profile.name}", "usable_mib": usable}
    return None


def with_missing(rows: Sequence[Row]) -> list[Row]:
    """The rows of every device in the table's order: those that there are, and those that they imply.

    Raises:
        LookupError: for a device that needs a plan of its own.
    """
    known = {row["what"]: row for row in rows}
    filled = []
    for model, (side, _) in MODELS.items():
        for profile in PROFILES.values():
            row = known.get(f"{model} {side} on {profile.name}") or implied(model, profile, rows)
            if row is None:
                raise LookupError(
                    f"{model} on {profile.name} is not implied by the record; run without --missing."
                )
            filled.append(row)
    return filled


def main() -> int:
    """Plan, and write the record."""
    if "--missing" in sys.argv[1:]:
        (path,) = RECORDS.glob("fitting-*.json")
        print(write_record("fitting", with_missing(json.loads(path.read_text())["rows"])))
        return 0
    print(write_record("fitting", list(fitting())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
