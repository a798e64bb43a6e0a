"""The gated rank-1 edit inside diffusers' attention: one processor, no change to the UNet.

The edit arrives with each call, as tensors in ``cross_attention_kwargs``, so one UNet serves every concept
and every row of a batch may carry its own. The same processor is used in training, where ``concept_values``
is the parameter being learned, and in export, where the tensors become inputs of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from perfusion.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = [
    "ConceptAttnProcessor",
    "Layer",
    "attend_in_regions",
    "install",
    "installed",
    "key_projections",
    "layer_table",
    "level_count",
    "region_levels",
    "uninstall",
    "value_projections",
]


_EXTRAS = ("norm_cross", "norm_q", "norm_k", "added_kv_proj_dim")
"""What an attention layer may have between an encoding and its key; a concept's target bypasses it."""


_MAX_SCORES = 2**23
"""Scores of a batch, 16 MB in 16 bits."""


_NOTHING = slice(0, 0)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One cross-attention layer and where its part of the concatenated keys and values begins.

    ``concept_keys`` holds the target keys of all layers side by side, (concepts, Σ key_dim); this layer's are
    the columns ``key_slice``. Values likewise.
    """

    name: str
    key_dim: int
    value_dim: int
    key_offset: int
    value_offset: int

    @property
    def key_slice(self) -> slice:
        return slice(self.key_offset, self.key_offset + self.key_dim)

    @property
    def value_slice(self) -> slice:
        return slice(self.value_offset, self.value_offset + self.value_dim)


class ConceptAttnProcessor:
    """Scaled dot-product attention whose keys and values take the gated targets of a concept.

    K = to_k(key_hidden_states) + key_gate @ concept_keys, V = to_v(encoder_hidden_states) + value_gate @
    concept_values (docs/method.md, section 2; the encodings arrive already projected off the concepts'
    directions). With none of the concept tensors given, and in self-attention, it computes what diffusers'
    own processor does: bit for bit, except where a gradient runs through it on a CPU.

    ``original`` is the processor it stands in for, put back by `uninstall`. Without arguments it is one for
    self-attention: diffusers copies the self-attention's processors by their class when an IP-Adapter is loaded.
    """

    def __init__(
        self,
        key_slice: slice = _NOTHING,
        value_slice: slice = _NOTHING,
        original: Any = None,
        level: int = 0,
    ) -> None:
        self.key_slice = key_slice
        self.value_slice = value_slice
        self.original = original
        self.level = level

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        key_hidden_states: Tensor | None = None,
        key_gate: Tensor | None = None,
        value_gate: Tensor | None = None,
        concept_keys: Tensor | None = None,
        concept_values: Tensor | None = None,
        regions: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Attend from ``hidden_states`` (batch, positions, channels) and return the same shape.

        ``encoder_hidden_states``, ``key_hidden_states`` (batch, tokens, text_dim) are what to_v and to_k
        read; the second defaults to the first. ``key_gate``, ``value_gate`` (batch, tokens, concepts) and
        ``concept_keys``, ``concept_values`` (concepts, Σ dims) are float32; a gate without its targets, or
        the reverse, adds nothing.

        ``regions``, by level (`region_levels`), are (batch, regions, positions): how much of each position's output
        comes from each reading. The readings then lie one after another on the tokens axis, all of one length.
        """
        if encoder_hidden_states is None:  # self-attention knows no concepts
            key = attn.to_k(hidden_states)
            value = attn.to_v(hidden_states)
        else:
            key = attn.to_k(encoder_hidden_states if key_hidden_states is None else key_hidden_states)
            value = attn.to_v(encoder_hidden_states)
            if key_gate is not None and concept_keys is not None:
                key = key + _gated(key_gate, concept_keys[:, self.key_slice]).to(key.dtype)
            if value_gate is not None and concept_values is not None:
                value = value + _gated(value_gate, concept_values[:, self.value_slice]).to(value.dtype)

        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        key = _split_heads(key, attn.heads)
        value = _split_heads(value, attn.heads)
        if attention_mask is not None:
            batch, tokens = key.shape[0], key.shape[2]
            attention_mask = attn.prepare_attention_mask(attention_mask, tokens, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, tokens)
        maps = None if regions is None or encoder_hidden_states is None else regions[self.level]
        attended = self.attend(query, key, value, attention_mask, maps)
        attended = attended.transpose(1, 2).flatten(2).to(query.dtype)
        out: Tensor = attn.to_out[1](attn.to_out[0](attended))
        if attn.residual_connection:
            out = out + hidden_states
        return torch.div(out, attn.rescale_output_factor)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, regions: Tensor | None = None
    ) -> Tensor:
        """Attention of (batch, heads, positions, dim) states; what a subclass may compute in another precision."""
        if regions is None:
            return _attend(query, key, value, mask)
        return attend_in_regions(query, key, value, regions)


def region_levels(regions: Tensor, count: int) -> tuple[Tensor, ...]:
    """Maps of regions (batch, regions, height, width), as large as the latents, for ``count`` levels of a UNet.

    Each level has half the height and width of the one before; a place there takes the mean of those it covers, so the
    regions of a place sum to what they summed to. Returns (batch, regions, positions) for each.
    """
    levels = [regions]
    for level in range(1, count):
        levels.append(F.avg_pool2d(regions, 2**level))
    return tuple(maps.flatten(2) for maps in levels)


def attend_in_regions(query: Tensor, key: Tensor, value: Tensor, regions: Tensor) -> Tensor:
    """Attention in which every region of the picture reads its own reading of the prompt (docs/method.md).

    out(x) = Σ_r m_r(x) softmax(q(x) K_rᵀ / √d) V_r. With one reading and m = 1 this is plain attention.

    Args:
        query: (batch, heads, positions, dim).
        key, value: (batch, heads, regions · tokens, dim), the readings one after another.
        regions: m, (batch, regions, positions).
    """
    # turned and scaled in the way in which torch's own attention is exported, so that both round alike
    turned = key.flatten(0, 1).transpose(1, 2).unflatten(0, key.shape[:2])
    scale = query.shape[-1] ** -0.25
    scores = (query * scale) @ (turned * scale)
    # one softmax a reading: (batch, heads, positions, regions, tokens)
    probabilities = scores.unflatten(-1, (regions.shape[1], -1)).softmax(-1)
    # weigh the readings by how much of each place is theirs
    weights = regions.to(probabilities.dtype).transpose(1, 2)[:, None, :, :, None]
    probabilities = probabilities * weights
    attended: Tensor = probabilities.flatten(-2).to(value.dtype) @ value
    return attended


def level_count(unet: UNet2DConditionModel) -> int:
    """The sizes that latents have on their way through a UNet, the first their own."""
    return 1 + sum(_halves(block) for block in unet.down_blocks)


def layer_table(unet: UNet2DConditionModel) -> tuple[Layer, ...]:
    """The cross-attention layers in module order, which is that of all stacked keys and values here."""
    layers: list[Layer] = []
    key_offset = value_offset = 0
    for name, attention in _cross_attentions(unet):
        key_dim, value_dim = attention.to_k.out_features, attention.to_v.out_features
        layers.append(
            Layer(
                name=name,
                key_dim=key_dim,
                value_dim=value_dim,
                key_offset=key_offset,
                value_offset=value_offset,
            )
        )
        key_offset += key_dim
        value_offset += value_dim
    return tuple(layers)


def install(unet: UNet2DConditionModel) -> tuple[Layer, ...]:
    """Put a `ConceptAttnProcessor` on every attention layer; returns the table of the cross-attention ones.

    Self-attention layers get one as well: diffusers hands ``cross_attention_kwargs`` to all of them and warns
    once a layer about arguments that a processor does not know. Installing twice is installing once.
    """
    layers = layer_table(unet)
    by_name = {layer.name: layer for layer in layers}
    for name, attention in _attentions(unet):
        if isinstance(attention.processor, ConceptAttnProcessor):
            continue
        layer = by_name.get(name)
        attention.set_processor(
            ConceptAttnProcessor(
                layer.key_slice if layer else _NOTHING,
                layer.value_slice if layer else _NOTHING,
                original=attention.processor,
                level=_level_of(unet, name),
            )
        )
    return layers


def uninstall(unet: UNet2DConditionModel) -> None:
    """Put back the processors that `install` replaced."""
    for _, attention in _attentions(unet):
        if isinstance(attention.processor, ConceptAttnProcessor):
            attention.set_processor(attention.processor.original or AttnProcessor2_0())


@contextmanager
def installed(unet: UNet2DConditionModel) -> Iterator[tuple[Layer, ...]]:
    """`install` for the length of a with block; leaves a UNet alone that had the processors before."""
    had = any(isinstance(attention.processor, ConceptAttnProcessor) for _, attention in _attentions(unet))
    layers = install(unet)
    try:
        yield layers
    finally:
        if not had:
            uninstall(unet)


def key_projections(unet: UNet2DConditionModel) -> Tensor:
    """All to_k weights stacked in layer order, (Σ key_dim, text_dim), detached."""
    return torch.cat([attention.to_k.weight.detach() for _, attention in _cross_attentions(unet)])


def value_projections(unet: UNet2DConditionModel) -> Tensor:
    """All to_v weights stacked in layer order, (Σ value_dim, text_dim), detached."""
    return torch.cat([attention.to_v.weight.detach() for _, attention in _cross_attentions(unet)])


def _level_of(unet: UNet2DConditionModel, name: str) -> int:
    """How many times the latents were halved where an attention layer of this name reads them."""
    halvings = [_halves(block) for block in unet.down_blocks]
    part, _, rest = name.partition(".")
    if part == "down_blocks":
        return sum(halvings[: int(rest.split(".")[0])])
    if part == "up_blocks":
        doublings = [block.upsamplers is not None for block in unet.up_blocks]
        return sum(halvings) - sum(doublings[: int(rest.split(".")[0])])
    return sum(halvings)


def _halves(block: Any) -> bool:
    return getattr(block, "downsamplers", None) is not None


def _attentions(unet: UNet2DConditionModel) -> list[tuple[str, Any]]:
    """The attention layers of the transformer blocks; those between plain blocks never see a prompt."""
    attentions = [(name, module) for name, module in unet.named_modules() if isinstance(module, Attention)]
    return [(name, module) for name, module in attentions if name.endswith((".attn1", ".attn2"))]


def _cross_attentions(unet: UNet2DConditionModel) -> list[tuple[str, Any]]:
    layers = [(name, module) for name, module in _attentions(unet) if module.is_cross_attention]
    if not layers:
        raise ModelError(
            "This UNet has no cross-attention layer, so a concept has nothing to edit; "
            "use a text-to-image model."
        )
    for name, module in layers:
        extras = [extra for extra in _EXTRAS if getattr(module, extra)]
        if extras or module.to_k.bias is not None or module.to_v.bias is not None:
            what = ", ".join(extras) or "a bias on to_k or to_v"
            raise ModelError(
                f"Cross-attention layer {name} has {what}, which the rank-1 edit is not defined for; "
                "expected plain projections as in Stable Diffusion 1.x, 2.x and XL."
            )
    return layers


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of (batch, heads, positions, dim) states."""
    if mask is None and _faster_written_out(query, key, value):
        scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        attended: Tensor = scores.softmax(-1).to(value.dtype) @ value
        return attended
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _faster_written_out(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether plain products beat torch's fused kernel: on a CPU, in 16 bits, where a gradient runs through.

    The backward of the fused kernel is slow there, a third of a training step; in float32 it is the faster one. Scores
    that outgrow the processor's cache cost more to write and read than the products save.
    """
    return (
        query.device.type == "cpu"
        and query.dtype != torch.float32
        and _needs_gradient(query, key, value)  # before the sizes: asking for those fixes them in a trace
        and query.shape[:-1].numel() * key.shape[-2] <= _MAX_SCORES
    )


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """(batch, positions, channels) -> (batch, heads, positions, channels / heads)"""
    return torch.unflatten(states, -1, (heads, -1)).transpose(1, 2)


def _gated(gate: Tensor, targets: Tensor) -> Tensor:
    """gate (batch, tokens, concepts) @ targets (concepts, dim) in float32, whatever autocast says.

    The gate is a steep logistic and the targets are what training moves: both lose visibly in 16 bits, and
    the product is small. A float16 graph gets both in float16, where there is no more to lose: there the product
    is as well, since TensorRT for RTX has none in float32 for sm75.
    """
    if gate.dtype == targets.dtype == torch.float16:
        return gate @ targets
    if torch.is_autocast_enabled(gate.device.type):
        with torch.autocast(gate.device.type, enabled=False):
            return gate.float() @ targets.float()
    return gate.float() @ targets.float()
