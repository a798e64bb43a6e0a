"""What an export in half precision leaves in float32, told by a model's family: a bundle in float32 does not say it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["kept_places"]

# The places of `perfusion.export.half.KEPT` that apply to the models of a family as they were published.
_KEPT: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "pocket": frozenset({"vae_encoder"}),
        "pocket2": frozenset({"vae_encoder"}),
        "sd21": frozenset({"unet.attention"}),
        "sdxl": frozenset({"vae_decoder", "vae_encoder"}),
    }
)


def kept_places(family: str) -> frozenset[str]:
    """Graphs ("vae_decoder") and their attention ("unet.attention") that stay in float32; "sdxl-9840" is an "sdxl"."""
    return _KEPT.get(family.partition("-")[0], frozenset())
