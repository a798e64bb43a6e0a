"""How long a picture takes, estimated by the roofline: arithmetic and bytes counted in the graphs against what the
device can do. An estimate, and never shown as anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perfusion.devices.planning.memory_plan import DENOISING, Workload, graph_costs
from perfusion.devices.profiles import DeviceProfile

__all__ = ["CPU_ERROR", "Latency", "estimate_latency", "graph_seconds"]

CPU_ERROR = 0.4
"""The largest relative error against the measured times in benchmarks/records/plan-*.json."""

_GPU_SHARE = 0.5  # of a GPU's peaks: assumed, since no GPU has been recorded
_NODE_SECONDS = 2e-6  # an operator takes at least this long on a processor


@dataclass(frozen=True, kw_only=True)
class Latency:
    """An estimate for one batch of pictures, in seconds."""

    encode: float
    step: float  # one step of denoising
    decode: float
    steps: int
    error: str  # how far off it may be, in words

    @property
    def total(self) -> float:
        """All of it."""
        return self.encode + self.steps * self.step + self.decode

    def __str__(self) -> str:
        return (
            f"about {self.total:.2g} s ({self.steps} steps of {self.step:.2g} s), an estimate: {self.error}"
        )


def estimate_latency(
    files: Mapping[str, Path],
    workload: Workload,
    profile: DeviceProfile,
    *,
    steps: int,
    tile: int | None = None,
) -> Latency | None:
    """Estimate the time of a workload; None where the device's speed is not known."""
    if not profile.fp16_flops or not profile.bandwidth:
        return None
    size = workload.size
    seconds = {name: graph_seconds(path, name, workload, profile, tile) for name, path in files.items()}
    latents = (size.height // workload.downscale, size.width // workload.downscale)
    tiles = 1 if tile is None else -(-latents[0] // tile) * -(-latents[1] // tile)
    error = f"within {CPU_ERROR:.0%} on the processor it was fitted to, and several times off on a slow one"
    if profile.kind != "cpu":
        error = "no GPU has been measured, so it may be off by half or more either way"
    return Latency(
        encode=size.texts * sum(seconds[name] for name in seconds if name.startswith("text_encoder"))
        + seconds.get("vae_encoder", 0.0),
        step=sum(seconds[name] for name in DENOISING if name in seconds),
        decode=size.batch * tiles * seconds["vae_decoder"],
        steps=steps,
        error=error,
    )


def graph_seconds(
    path: Path, name: str, workload: Workload, profile: DeviceProfile, tile: int | None = None
) -> float:
    """One call of one graph."""
    costs = graph_costs(path, name, workload, tile)
    if profile.kind == "cpu":
        return costs.seconds(profile.fp16_flops, profile.bandwidth) + _NODE_SECONDS * len(costs.flops)
    return costs.seconds(_GPU_SHARE * profile.fp16_flops, _GPU_SHARE * profile.bandwidth)
