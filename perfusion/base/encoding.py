"""From token ids to what cross-attention reads, through one CLIP text encoder or two.

Written out from the encoders' parts because their own forward takes ids only, and pools at the highest id in older
configurations, which would be a concept's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTextModel

__all__ = ["Encodings", "encode", "encode_penultimate", "encode_prompts", "pool", "token_embedding"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Encodings:
    """Prompts as the UNet reads them: `hidden` (batch, tokens, text_dim) by its cross-attention, and where there
    are two text encoders `pooled` (batch, pooled_dim) beside the timestep."""

    hidden: Tensor
    pooled: Tensor | None = None


def token_embedding(text_encoder: CLIPTextModel) -> torch.nn.Embedding:
    """The table of word embeddings, (vocab_size, hidden)."""
    table: torch.nn.Embedding = _text_model(text_encoder).embeddings.token_embedding
    return table


def encode(
    text_encoder: CLIPTextModel, input_ids: Tensor, concept_embeddings: Tensor | None = None
) -> Tensor:
    """Hidden states after the final LayerNorm, (batch, tokens, hidden), of ids (batch, tokens) int64.

    What Stable Diffusion 1.x and 2.x read. An id of ``vocab_size`` or more stands for a row of
    ``concept_embeddings`` (concepts, hidden), counted from there. Differentiable in ``concept_embeddings``; the
    text encoder itself may be frozen.
    """
    model = _text_model(text_encoder)
    hidden = _run(model.encoder.layers, _enter(model, input_ids, concept_embeddings))
    normed: Tensor = model.final_layer_norm(hidden)
    return normed


def encode_prompts(
    text_encoders: Sequence[CLIPTextModel],
    input_ids: Sequence[Tensor],
    concept_embeddings: Sequence[Tensor] | None = None,
    *,
    eos_token_id: int,
    pooled: bool = True,
) -> Encodings:
    """What a UNet with these text encoders reads of prompts.

    One encoder: `encode`. Two (SDXL): the hidden states before the last layer of each, without the final LayerNorm,
    side by side; pooled is the second's projection of its final state at the first end token.

    Args:
        input_ids: (batch, tokens) int64 for each encoder, padded as its own tokenizer does.
        concept_embeddings: (concepts, hidden) for each encoder, see `encode`.
        eos_token_id: the end token of the last encoder's tokenizer.
        pooled: False leaves the pooled output out, and the layer that only it needs.
    """
    tables: Sequence[Tensor | None] = concept_embeddings or [None] * len(text_encoders)
    if len(text_encoders) == 1:
        return Encodings(hidden=encode(text_encoders[0], input_ids[0], tables[0]))
    states = []
    for text_encoder, ids, table in zip(text_encoders, input_ids, tables, strict=True):
        states.append(encode_penultimate(text_encoder, ids, table))
    vector = pool(text_encoders[-1], states[-1], input_ids[-1], eos_token_id) if pooled else None
    return Encodings(hidden=torch.cat(states, dim=-1), pooled=vector)


def encode_penultimate(
    text_encoder: CLIPTextModel, input_ids: Tensor, concept_embeddings: Tensor | None = None
) -> Tensor:
    """Hidden states before the last layer, (batch, tokens, hidden): what SDXL reads of each encoder. See `encode`."""
    model = _text_model(text_encoder)
    return _run(model.encoder.layers[:-1], _enter(model, input_ids, concept_embeddings))


def pool(text_encoder: Any, penultimate: Tensor, input_ids: Tensor, eos_token_id: int) -> Tensor:
    """(batch, pooled_dim) of the states (batch, tokens, hidden) before the last layer, at the first end token."""
    model = _text_model(text_encoder)
    final = model.final_layer_norm(_run(model.encoder.layers[-1:], penultimate))
    ends = (input_ids == eos_token_id).int().argmax(-1)
    at_end = final[torch.arange(len(final), device=final.device), ends]
    projected: Tensor = text_encoder.text_projection(at_end)
    return projected


def _enter(model: Any, input_ids: Tensor, concept_embeddings: Tensor | None) -> Tensor:
    """What the first layer reads: words, or rows of the concepts, at their positions. (batch, tokens, hidden)."""
    hidden = _embed(model.embeddings.token_embedding, input_ids, concept_embeddings)
    entered: Tensor = hidden + model.embeddings.position_embedding.weight[: input_ids.shape[1]]
    return entered


def _run(layers: Any, hidden: Tensor) -> Tensor:
    """The states (batch, tokens, hidden) after some of an encoder's layers."""
    tokens = hidden.shape[1]
    # causal: a token sees itself and what stands before it. Padding is not masked, as no pipeline masks it
    mask = torch.full((tokens, tokens), float("-inf"), dtype=hidden.dtype, device=hidden.device).triu(1)
    for layer in layers:
        hidden = layer(hidden, attention_mask=mask[None, None])
    return hidden


def _embed(table: torch.nn.Embedding, input_ids: Tensor, concept_embeddings: Tensor | None) -> Tensor:
    if concept_embeddings is None:
        words: Tensor = table(input_ids)
        return words
    vocab_size = table.num_embeddings
    is_concept = input_ids >= vocab_size
    words = table(torch.where(is_concept, torch.zeros_like(input_ids), input_ids))
    # row 0 is a zero that no concept id reaches: with no concepts the table would be empty, and every runtime
    # refuses to gather from an empty table, even where nothing is taken
    padded = torch.cat([concept_embeddings.new_zeros(1, concept_embeddings.shape[1]), concept_embeddings])
    rows = torch.where(is_concept, input_ids - vocab_size + 1, torch.zeros_like(input_ids))
    concepts = torch.nn.functional.embedding(rows, padded).to(words.dtype)
    return torch.where(is_concept[..., None], concepts, words)


def _text_model(text_encoder: CLIPTextModel) -> Any:
    """Where the parts are: one level deeper in encoders with a projection, and before transformers 5 in all."""
    return getattr(text_encoder, "text_model", text_encoder)
