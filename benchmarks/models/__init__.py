"""Published models made from their settings alone, for benchmarks: hollow, or with random weights."""

from typing import Any

from benchmarks.record import ROOT

__all__ = ["CONFIGS", "VAE"]

CONFIGS = ROOT / "tests" / "data" / "base_models"
VAE: dict[str, Any] = {  # the same in SD1.5, SD2.1 and SDXL
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
