"""The gated rank-1 edit with what is learned of it: the word, the values, and the direction that follows the word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perfusion.concept.edit import SAME_DIRECTION

__all__ = ["Edit", "RankOneEdit"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """What the UNet gets for a batch of encodings: projected encodings (batch, tokens, text_dim) and gates
    (batch, tokens, rows), both float32."""

    encodings: Tensor
    gate: Tensor


class RankOneEdit(nn.Module):
    """The trained part of a concept; everything else is frozen.

    Trained: `embeddings`, (rows, hidden) v* of each text encoder, and `learned_values`, which make `target_values`
    (rows, Σ d_V) o*_V. Buffers, saved but not trained by gradient: `direction` (rows, text_dim) i*, `target_keys`
    (rows, Σ d_K) o*_K, locked to the superclass, and `inverse_moment` (text_dim, text_dim) C⁻¹, float64.
    """

    def __init__(
        self, *, embeddings: Sequence[Tensor], direction: Tensor, target_keys: Tensor, target_values: Tensor,
        inverse_moment: Tensor, bias: float, temperature: float, decay: float = 0.99, gradient: str = "ema",
        value_projections: Tensor | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            target_values: o*_V to begin with.
            value_projections: W_V of all layers, (Σ d_V, text_dim): one encoding is learned for all of them, and
                o*_V = o*_V at the start + W_V d. None: o*_V itself is learned, each layer's for itself.
        """
        super().__init__()
        self.embeddings = nn.ParameterList(nn.Parameter(table.float().clone()) for table in embeddings)
        self.first_values: Tensor | None
        self.value_projections: Tensor | None
        start = target_values.detach().float().clone()
        if value_projections is None:
            self.learned_values = nn.Parameter(start)
            self.first_values = self.value_projections = None
        else:
            self.learned_values = nn.Parameter(start.new_zeros(len(start), value_projections.shape[1]))
            self.register_buffer("first_values", start)
            self.register_buffer("value_projections", value_projections.detach().float().clone())
        self.direction: Tensor
        self.target_keys: Tensor
        self.inverse_moment: Tensor
        self.register_buffer("direction", direction.float().clone())
        self.register_buffer("target_keys", target_keys.float().clone())
        self.register_buffer("inverse_moment", inverse_moment.double().clone())
        self.bias, self.temperature, self.decay, self.gradient = bias, temperature, decay, gradient

    @property
    def rows(self) -> int:
        """Placeholder tokens of the concept."""
        return len(self.direction)

    @property
    def target_values(self) -> Tensor:
        """o*_V, (rows, Σ d_V) in layer order, with the gradient of what is learned."""
        if self.first_values is None or self.value_projections is None:
            return self.learned_values
        with torch.autocast(self.learned_values.device.type, enabled=False):
            return self.first_values + self.learned_values @ self.value_projections.T

    def follow(self, concept: Tensor) -> Tensor:
        """Move the direction towards the batch's mean encoding of the concept's tokens, (rows, text_dim).

        i* ← 0.99 i* + 0.01 e. The returned direction carries the gradient that `gradient` asks for; the buffer does
        not. In evaluation the direction stands still.
        """
        if not self.training:
            return self.direction
        seen = concept if self.gradient == "ema" else concept.detach()
        moved = self.decay * self.direction + (1 - self.decay) * seen
        if self.gradient == "straight_through":
            moved = moved + concept - concept.detach()
        self.direction.copy_(moved.detach())
        return moved

    def dual(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """w* = C⁻¹ i* / n (rows, text_dim) and the energy n = i*ᵀ C⁻¹ i* (rows,), float64 inside for C's condition."""
        raised = direction.double() @ self.inverse_moment
        energy = (raised * direction.double()).sum(-1)
        return (raised / energy[:, None]).float(), energy.float()

    def forward(self, encodings: Tensor, concept: Tensor) -> Edit:
        """Project the encodings off the direction and open the gate where they resemble it.

        Args:
            encodings: (batch, tokens, text_dim), of prompts that hold the concept.
            concept: (rows, text_dim), the batch's mean encoding of each placeholder token.
        """
        with torch.autocast(encodings.device.type, enabled=False):
            encodings = encodings.float()
            direction = self.follow(concept.float())
            dual, _ = self.dual(direction)
            similarity = encodings @ dual.T
            if len(direction) == 1:
                projected = encodings - similarity * direction
            else:
                projected = encodings - self._shares(encodings, direction).float() @ direction
            gate = torch.sigmoid((similarity - self.bias) / self.temperature)
        return Edit(encodings=projected, gate=gate)

    def _shares(self, encodings: Tensor, direction: Tensor) -> Tensor:
        """G⁻¹ (n ∘ W e), (batch, tokens, rows) float64: how much of each direction is in the encodings' part to go.

        With n_k w_k = C⁻¹ i_k and G_jk = ⟨i_j, i_k⟩, both divided by √n on every side as in `perfusion.concept.edit`,
        whose threshold this is too: rows that agree are taken out once, in training as when drawing.
        """
        raised = direction.double() @ self.inverse_moment
        gram = direction.double() @ raised.T
        scale = gram.diagonal().sqrt()
        # what is not a number stays so in the parts, and the loop reports it; the pseudo-inverse would break here
        cosines = torch.nan_to_num(gram / torch.outer(scale, scale))
        parts = encodings.double() @ raised.T / scale
        inverse: Tensor = torch.linalg.pinv(cosines, rtol=SAME_DIRECTION, hermitian=True)
        return parts @ inverse / scale
