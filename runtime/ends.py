"""The graphs of a bundle: their names, files, and the inputs and outputs each must have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perfusion.runtime.bundle import Bundle

__all__ = ["Ends", "graph_ends"]

_UNET_INPUTS = (
    "sample", "timestep", "encoder_hidden_states", "key_hidden_states",
    "key_gate", "value_gate", "concept_keys", "concept_values",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Ends:
    """A graph's file, and the inputs and outputs it must have."""

    file: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def graph_ends(bundle: Bundle) -> dict[str, Ends]:
    """The graphs of a bundle by name, in the order in which a request needs them."""
    ends = {
        encoder.name: Ends(
            file=encoder.file,
            inputs=("input_ids", "concept_embeddings"),
            outputs=(encoder.output, *([encoder.pooled_output] if encoder.pooled_output else [])),
        )
        for encoder in bundle.text_encoders
    }
    if bundle.decoder.encoder is not None:
        ends["vae_encoder"] = Ends(
            file=bundle.decoder.encoder, inputs=("sample",), outputs=("latent_sample",)
        )
    ends["unet"] = Ends(
        file=bundle.unet.file,
        inputs=(*_UNET_INPUTS, *bundle.unet.conditions),
        outputs=("out_sample",),
    )
    ends["vae_decoder"] = Ends(file=bundle.decoder.file, inputs=("latent_sample",), outputs=("sample",))
    return ends
