"""The graphs of a bundle: their names, files, and the inputs and outputs each must have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perfusion.bundle.description import Bundle
from perfusion.bundle.names import CONTROLNET, UNET_CONTROLNET, residual_names

__all__ = ["GraphIO", "SELDOM_NEEDED", "graph_io_of"]


SELDOM_NEEDED = frozenset({"vae_encoder", CONTROLNET, UNET_CONTROLNET})
"""Graphs that only some requests use: those that give a picture to draw over, or one that controls."""


@dataclass(frozen=True, kw_only=True)
class GraphIO:
    """A graph's file, and the inputs and outputs it must have."""

    file: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def graph_io_of(bundle: Bundle) -> dict[str, GraphIO]:
    """The graphs of a bundle by name, in the order in which a request needs them."""
    ends = {
        encoder.name: GraphIO(
            file=encoder.file,
            inputs=("input_ids", "concept_embeddings"),
            outputs=(encoder.output, *([encoder.pooled_output] if encoder.pooled_output else [])),
        )
        for encoder in bundle.text_encoders
    }
    if bundle.decoder.encoder is not None:
        ends["vae_encoder"] = GraphIO(
            file=bundle.decoder.encoder, inputs=("sample",), outputs=("latent_sample",)
        )
    ends["unet"] = GraphIO(
        file=bundle.unet.file,
        inputs=bundle.unet_inputs,
        outputs=("out_sample",),
    )
    ends["vae_decoder"] = GraphIO(file=bundle.decoder.file, inputs=("latent_sample",), outputs=("sample",))
    return ends | _control_io(bundle)


def _control_io(bundle: Bundle) -> dict[str, GraphIO]:
    """The graphs of the ControlNet that draws, where there is one."""
    control = bundle.controlnet
    if control is None:
        return {}
    residuals = residual_names(control.residuals)
    inputs = ("sample", "timestep", "encoder_hidden_states", "control_image", "control_scale")
    return {
        CONTROLNET: GraphIO(file=control.file, inputs=(*inputs, *control.conditions), outputs=residuals),
        UNET_CONTROLNET: GraphIO(
            file=control.unet_file, inputs=(*bundle.unet_inputs, *residuals), outputs=("out_sample",)
        ),
    }
