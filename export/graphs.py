"""The graphs of a bundle: modules that exist only to be exported, and the names and dimensions of their ends.

docs/graph.md describes them for a reader; a test holds that page against the real graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from perfusion.attention import key_projections, value_projections
from perfusion.base import BaseModel, encode

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

__all__ = ["End", "Graph", "downscale", "graphs_of", "size_multiple"]


@dataclass(frozen=True, kw_only=True)
class End:
    """One input or output of a graph. A dimension is a number, or the name of one that each call chooses."""

    name: str
    dims: tuple[str | int, ...]
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    """The deviation that a real input has. A network whose inputs are ten times too large amplifies rounding, and
    trials with such would measure that."""

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The dimensions with numbers in the place of names."""
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in self.dims)


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A module to export with its ends and sizes for the example call."""

    name: str
    """As in the manifest's parity table, and the file's name before ``.onnx``."""
    module: nn.Module
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    example: dict[str, int]
    """A size for every named dimension; no two alike and none 1, or the exporter may take them for one."""


class TextEncoder(nn.Module):
    """Token ids to encodings; ids from the vocabulary's size on are rows of ``concept_embeddings``."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor, concept_embeddings: Tensor) -> Tensor:
        return encode(self.text_encoder, input_ids, concept_embeddings)


class UNet(nn.Module):
    """One noise prediction, with the concepts of each row as inputs. Needs the processors installed."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        key_hidden_states: Tensor,
        key_gate: Tensor,
        value_gate: Tensor,
        concept_keys: Tensor,
        concept_values: Tensor,
    ) -> Tensor:
        edit = {
            "key_hidden_states": key_hidden_states,
            "key_gate": key_gate,
            "value_gate": value_gate,
            "concept_keys": concept_keys,
            "concept_values": concept_values,
        }
        noise_pred: Tensor = self.unet(
            sample, timestep, encoder_hidden_states, cross_attention_kwargs=edit, return_dict=False
        )[0]
        return noise_pred


class VAEDecoder(nn.Module):
    """Latents, divided by the scaling factor already, to a picture in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        sample: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return sample


class VAEEncoder(nn.Module):
    """A picture in [-1, 1] to the mode of its latents, not multiplied by the scaling factor."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        latent_sample: Tensor = self.vae.encode(sample, return_dict=False)[0].mode()
        return latent_sample


def graphs_of(base: BaseModel) -> tuple[Graph, ...]:
    """The four graphs of a bundle, in the order they are exported."""
    return (_text_encoder(base), _unet(base), _vae_decoder(base), _vae_encoder(base))


def size_multiple(unet: UNet2DConditionModel) -> int:
    """What the height and width of the latents must be divisible by: every level but the last halves them."""
    return int(2 ** (len(unet.config.block_out_channels) - 1))


def downscale(vae: AutoencoderKL) -> int:
    """Pixels of the picture a latent stands for, along each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _text_encoder(base: BaseModel) -> Graph:
    tokens, hidden = base.context_length, base.text_dim
    return Graph(
        name="text_encoder",
        module=TextEncoder(base.text_encoder),
        inputs=(
            End(name="input_ids", dims=("batch", tokens), dtype=torch.int64),
            End(name="concept_embeddings", dims=("concepts", hidden)),
        ),
        outputs=(End(name="last_hidden_state", dims=("batch", tokens, hidden)),),
        example={"batch": 2, "concepts": 3},
    )


def _unet(base: BaseModel) -> Graph:
    config = base.unet.config
    keys = sum(layer.key_dim for layer in base.layers)
    values = sum(layer.value_dim for layer in base.layers)
    latents = ("batch", config.in_channels, "height", "width")
    encoding, key, value = _usual_scales(base)
    multiple = size_multiple(base.unet)
    return Graph(
        name="unet",
        module=UNet(base.unet),
        inputs=(
            End(name="sample", dims=latents),
            End(name="timestep", dims=(1,)),
            End(name="encoder_hidden_states", dims=("batch", "tokens", base.text_dim), scale=encoding),
            End(name="key_hidden_states", dims=("batch", "tokens", base.text_dim), scale=encoding),
            End(name="key_gate", dims=("batch", "tokens", "concepts")),
            End(name="value_gate", dims=("batch", "tokens", "concepts")),
            End(name="concept_keys", dims=("concepts", keys), scale=key),
            End(name="concept_values", dims=("concepts", values), scale=value),
        ),
        outputs=(End(name="out_sample", dims=latents),),
        example={"batch": 2, "concepts": 3, "tokens": 5, "height": 4 * multiple, "width": 6 * multiple},
    )


@torch.no_grad()
def _usual_scales(base: BaseModel) -> tuple[float, float, float]:
    """The deviations of the encodings of some words, and of the keys and values that attention makes of them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, base.vocab_size, (1, base.context_length), generator=generator)
    encodings = encode(base.text_encoder, ids)[0]
    keys, values = (encodings @ part.T for part in (key_projections(base.unet), value_projections(base.unet)))
    return float(encodings.std()), float(keys.std()), float(values.std())


def _vae_decoder(base: BaseModel) -> Graph:
    config = base.vae.config
    return Graph(
        name="vae_decoder",
        module=VAEDecoder(base.vae),
        inputs=(End(name="latent_sample", dims=("batch", config.latent_channels, "height", "width")),),
        # the height and width of the picture are those of the latents times the downscale
        outputs=(End(name="sample", dims=("batch", config.out_channels, "picture_height", "picture_width")),),
        example={"batch": 2, "height": 4, "width": 6},
    )


def _vae_encoder(base: BaseModel) -> Graph:
    config = base.vae.config
    factor = downscale(base.vae)
    return Graph(
        name="vae_encoder",
        module=VAEEncoder(base.vae),
        inputs=(End(name="sample", dims=("batch", config.in_channels, "picture_height", "picture_width")),),
        outputs=(End(name="latent_sample", dims=("batch", config.latent_channels, "height", "width")),),
        example={"batch": 2, "picture_height": 4 * factor, "picture_width": 6 * factor},
    )
