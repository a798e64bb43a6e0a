"""Whether a float16 bundle stays finite on what it will be fed: a prompt, noise of a picture's size, a latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perfusion.base.base_model import BaseModel
from perfusion.errors import ExportError
from perfusion.export.graph_modules import conditions_of, downscale
from perfusion.export.half import ATTENTION
from perfusion.export.proof.overflow import first_overflow
from perfusion.export.weights import FLOAT16_MAX

__all__ = ["Probe", "make_probe", "probe"]

PROMPT = "a photo of a cat on a beach, highly detailed"
_LARGEST = 32
"""Side of the latents at most: numbers do not grow with it, and the time does."""
_TIMESTEPS = (999.0, 1.0)
_FED = {"vae_decoder": "noise of a picture's size", "vae_encoder": "a decoded picture"}
"""What a graph is fed, for messages, where it is not a prompt."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """What is fed: ids of a prompt for each text encoder, and the sizes of the other inputs."""

    input_ids: tuple[np.ndarray, ...]
    embedding_widths: tuple[int, ...]
    latents: tuple[int, int, int, int]
    scaling_factor: float
    target_width: int
    pixels: int
    timestep_cond: int | None


def make_probe(base: BaseModel, resolution: int) -> Probe:
    """The probe of ``base`` for pictures of ``resolution`` pixels."""
    side = min(resolution // downscale(base.vae), _LARGEST)
    ids = tuple(
        np.asarray(
            tokenizer(
                [PROMPT], padding="max_length", max_length=base.context_length, truncation=True
            ).input_ids
        )
        for tokenizer in base.tokenizers
    )
    return Probe(
        input_ids=ids,
        embedding_widths=base.hidden_sizes,
        latents=(1, int(base.unet.config.in_channels), side, side),
        scaling_factor=float(base.vae.config.scaling_factor),
        target_width=base.layers[-1].value_slice.stop,
        pixels=resolution,
        timestep_cond=conditions_of(base).get("timestep_cond"),
    )


def probe(spec: Probe, graphs: Mapping[str, Path]) -> None:
    """Run every graph (files by name) after the other, each on what the one before gave.

    Raises `ExportError` naming the graph, its first layer that overflows and what to keep in float32.
    """
    random = np.random.default_rng(0)
    latents = random.normal(size=spec.latents).astype(np.float16)
    encodings, pooled = _encode(spec, graphs)
    unet = {
        "sample": latents,
        "encoder_hidden_states": encodings,
        "key_hidden_states": encodings,
        "key_gate": np.zeros((1, encodings.shape[1], 1), np.float16),
        "value_gate": np.zeros((1, encodings.shape[1], 1), np.float16),
        "concept_keys": np.zeros((1, spec.target_width), np.float16),
        "concept_values": np.zeros((1, spec.target_width), np.float16),
        "regions": np.ones((1, 1, *latents.shape[2:]), np.float16),
    }
    if pooled is not None:
        unet |= {
            "text_embeds": pooled,
            "time_ids": np.array([[spec.pixels, spec.pixels, 0, 0] + [spec.pixels] * 2], np.float16),
        }
    if spec.timestep_cond is not None:
        unet["timestep_cond"] = random.normal(size=(1, spec.timestep_cond)).astype(np.float16)
    for timestep in _TIMESTEPS:
        _run("unet", graphs["unet"], unet | {"timestep": np.array([timestep], np.float32)})
    scaled = (latents.astype(np.float32) / spec.scaling_factor).astype(np.float16)
    (picture,) = _run("vae_decoder", graphs["vae_decoder"], {"latent_sample": scaled})
    _run("vae_encoder", graphs["vae_encoder"], {"sample": np.clip(picture, -1, 1)})


def _encode(spec: Probe, graphs: Mapping[str, Path]) -> tuple[np.ndarray, np.ndarray | None]:
    """The prompt's encodings (1, tokens, text_dim), and its pooled state where there are two text encoders."""
    states = []
    pooled = None
    for name, ids, width in zip(
        ("text_encoder", "text_encoder_2"), spec.input_ids, spec.embedding_widths, strict=False
    ):
        feeds = {"input_ids": ids, "concept_embeddings": np.zeros((0, width), np.float16)}
        hidden, *more = _run(name, graphs[name], feeds)
        states.append(hidden)
        pooled = more[0] if more else None
    return np.concatenate(states, axis=-1), pooled


def _run(name: str, path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """A graph's outputs. Raises `ExportError` where a number in it is too large for float16."""
    outputs, overflow = first_overflow(name, path, feeds)
    if overflow is not None:
        remedy = f"{name}.{ATTENTION}" if overflow.in_attention else name
        where = "in the attention after" if overflow.in_attention else "at"
        raise ExportError(
            f"{name}: {_FED.get(name, 'a real prompt')} gives {overflow.largest:.2g} {where} {overflow.module}, and "
            f"float16 ends at {FLOAT16_MAX:.0f}; keep it in float32 with --keep-fp32 {remedy}, or export with "
            "--precision fp32"
        )
    return outputs
