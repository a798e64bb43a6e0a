"""The graphs of a bundle: modules that exist only to be exported, and the names and dimensions of their ends.

docs/graph.md describes them for a reader; a test holds that page against the real graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perfusion.base.attention import key_projections, level_count, region_levels, value_projections
from perfusion.base.base_model import BaseModel, encode
from perfusion.base.encoding import encode_penultimate, pool

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

__all__ = ["End", "Graph", "conditions_of", "downscale", "graphs_of", "plain_graphs_of", "size_multiple"]

TIME_IDS = 6
"""Original height and width, crop's top and left, target height and width: what SDXL is told of a picture."""


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
        """The dimensions with numbers in the place of names; ``height_4`` is a quarter of ``height``."""
        return tuple(dim if isinstance(dim, int) else _size_of(dim, sizes) for dim in self.dims)


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
    weight_dtype: Callable[[str], torch.dtype] = lambda name: torch.float32
    """What a weight becomes in the graph, by its name; the module may hold it as anything."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What must hold while the module is traced."""
    widens: bool = False
    """Whether every weight is read by the forward of the module that owns it, and by nothing else: then weights
    stored in 16 bits can be widened one module at a time, see `perfusion.export.proof.reference`."""


def _size_of(dim: str, sizes: dict[str, int]) -> int:
    side, _, factor = dim.rpartition("_")
    return sizes[side] // int(factor) if dim not in sizes and factor.isdigit() else sizes[dim]


class TextEncoder(nn.Module):
    """Token ids to encodings; ids from the vocabulary's size on are rows of ``concept_embeddings``."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor, concept_embeddings: Tensor) -> Tensor:
        return encode(self.text_encoder, input_ids, concept_embeddings)


class PlainTextEncoder(TextEncoder):
    """The encoder without concepts, as other exporters write it."""

    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        return encode(self.text_encoder, input_ids)


class PenultimateEncoder(nn.Module):
    """Token ids to the states before the last layer, as SDXL's UNet reads those of both its text encoders."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor, concept_embeddings: Tensor) -> Tensor:
        return encode_penultimate(self.text_encoder, input_ids, concept_embeddings)


class PoolingEncoder(PenultimateEncoder):
    """The same, and the projection of the last layer's state at the first end token."""

    def __init__(self, text_encoder: CLIPTextModel, eos_token_id: int) -> None:
        super().__init__(text_encoder)
        self.eos_token_id = eos_token_id

    def forward(self, input_ids: Tensor, concept_embeddings: Tensor) -> Any:
        hidden = super().forward(input_ids, concept_embeddings)
        return hidden, pool(self.text_encoder, hidden, input_ids, self.eos_token_id)


class UNet(nn.Module):
    """One noise prediction, with the concepts of each row as inputs. Needs the processors installed.

    ``conditions`` are the names of what it reads beside noise, time and prompt, see `conditions_of`.
    """

    def __init__(self, unet: UNet2DConditionModel, conditions: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.unet = unet
        self.conditions = conditions
        self.levels = level_count(unet)

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
        regions: Tensor,
        *conditions: Tensor,
        down: tuple[Tensor, ...] | None = None,
        middle: Tensor | None = None,
    ) -> Tensor:
        """The prediction, as large as ``sample``; shapes as in docs/graph.md, ``conditions`` in their own order.

        ``down`` and ``middle``: a ControlNet's residuals, see `perfusion.export.control_graphs`.
        """
        edit = {
            "key_hidden_states": key_hidden_states,
            "key_gate": key_gate,
            "value_gate": value_gate,
            "concept_keys": concept_keys,
            "concept_values": concept_values,
            "regions": region_levels(regions, self.levels),
        }
        given = dict(zip(self.conditions, conditions, strict=True))
        noise_pred: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=given.pop("timestep_cond", None),
            added_cond_kwargs=given or None,
            cross_attention_kwargs=edit,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return noise_pred


class PlainUNet(nn.Module):
    """The UNet without concept inputs, as other exporters write it."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        noise_pred: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
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
    """The graphs of a bundle, in the order they are exported: text encoders, UNet, VAE decoder, VAE encoder."""
    return (*_text_encoders(base), _unet(base), _vae_decoder(base), _vae_encoder(base))


def plain_graphs_of(base: BaseModel) -> tuple[Graph, ...]:
    """The same graphs without their concept inputs, of a model with one text encoder, for a check by others' tools."""
    graphs = []
    for graph in graphs_of(base):
        if graph.name == "text_encoder":
            graph = replace(graph, module=PlainTextEncoder(base.text_encoder), inputs=graph.inputs[:1])
        elif graph.name == "unet":
            graph = replace(graph, module=PlainUNet(base.unet), inputs=graph.inputs[:3])
        graphs.append(graph)
    return tuple(graphs)


def conditions_of(base: BaseModel) -> dict[str, int]:
    """The UNet's inputs beside noise, time, prompt and concepts, each (batch, width): names and widths."""
    conditions = {}
    if len(base.text_encoders) == 2:
        conditions["text_embeds"] = int(base.text_encoders[1].config.projection_dim)
        conditions["time_ids"] = TIME_IDS
    if base.unet.config.time_cond_proj_dim is not None:
        conditions["timestep_cond"] = int(base.unet.config.time_cond_proj_dim)
    return conditions


def size_multiple(unet: UNet2DConditionModel) -> int:
    """What the height and width of the latents must be divisible by: every level but the last halves them."""
    return int(2 ** (len(unet.config.block_out_channels) - 1))


def downscale(vae: AutoencoderKL) -> int:
    """Pixels of the picture a latent stands for, along each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _text_encoders(base: BaseModel) -> tuple[Graph, ...]:
    if len(base.text_encoders) == 1:
        state = End(name="last_hidden_state", dims=("batch", base.context_length, base.text_dim))
        return (_text_encoder(base, 0, TextEncoder(base.text_encoder), (state,)),)
    first, second = base.text_encoders
    states = [
        End(name="penultimate_hidden_state", dims=("batch", base.context_length, size))
        for size in base.hidden_sizes
    ]
    pooled = End(name="text_embeds", dims=("batch", conditions_of(base)["text_embeds"]))
    pooling = PoolingEncoder(second, base.tokenizers[1].eos_token_id)
    return (
        _text_encoder(base, 0, PenultimateEncoder(first), (states[0],)),
        _text_encoder(base, 1, pooling, (states[1], pooled)),
    )


def _text_encoder(base: BaseModel, index: int, module: nn.Module, outputs: tuple[End, ...]) -> Graph:
    tokens, hidden = base.context_length, base.hidden_sizes[index]
    return Graph(
        name=("text_encoder", "text_encoder_2")[index],
        module=module,
        inputs=(
            End(name="input_ids", dims=("batch", tokens), dtype=torch.int64),
            End(name="concept_embeddings", dims=("concepts", hidden)),
        ),
        outputs=outputs,
        example={"batch": 2, "concepts": 3},
    )


def _unet(base: BaseModel) -> Graph:
    config = base.unet.config
    keys = sum(layer.key_dim for layer in base.layers)
    values = sum(layer.value_dim for layer in base.layers)
    latents = ("batch", config.in_channels, "height", "width")
    encoding, key, value = _usual_scales(base)
    multiple = size_multiple(base.unet)
    conditions = conditions_of(base)
    return Graph(
        name="unet",
        module=UNet(base.unet, tuple(conditions)),
        inputs=(
            End(name="sample", dims=latents),
            End(name="timestep", dims=("batch",)),
            End(name="encoder_hidden_states", dims=("batch", "tokens", base.text_dim), scale=encoding),
            End(name="key_hidden_states", dims=("batch", "tokens", base.text_dim), scale=encoding),
            End(name="key_gate", dims=("batch", "tokens", "concepts")),
            End(name="value_gate", dims=("batch", "tokens", "concepts")),
            End(name="concept_keys", dims=("concepts", keys), scale=key),
            End(name="concept_values", dims=("concepts", values), scale=value),
            End(name="regions", dims=("batch", "regions", "height", "width")),
            *(End(name=name, dims=("batch", width)) for name, width in conditions.items()),
        ),
        outputs=(End(name="out_sample", dims=latents),),
        example={
            "batch": 2,
            "concepts": 3,
            "tokens": 35,  # of all readings together
            "regions": 5,
            "height": max(4, 2 * multiple),
            "width": max(6, 3 * multiple),
        },
        widens=True,
    )


@torch.no_grad()
def _usual_scales(base: BaseModel) -> tuple[float, float, float]:
    """The deviations of the encodings of some words, and of the keys and values that attention makes of them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, base.vocab_size, (1, base.context_length), generator=generator)
    encodings = base.encode([ids] * len(base.text_encoders), pooled=False).hidden[0].float()
    keys, values = (
        (encodings.to(part.dtype) @ part.T).float()
        for part in (key_projections(base.unet), value_projections(base.unet))
    )
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
