"""The training loop: what a step does, and what has to be kept to go on after it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfusion.base.base_model import BaseModel
from perfusion.base.usual_drawing import DEFAULT_LR_VALUES
from perfusion.errors import TrainingError
from perfusion.training.config import TrainingConfig
from perfusion.training.initial_edit import concept_prompt
from perfusion.training.objective import Noising, everywhere_if_empty, masked_error
from perfusion.training.parallel import share, sum_
from perfusion.training.placement import Placement
from perfusion.training.rank_one import RankOneEdit
from perfusion.training.state import Checkpoint, restore_
from perfusion.training.templates import TEMPLATES, Prompt, as_tensors

__all__ = ["Run", "optimise", "predict"]

FIXED = ("inverse_moment", "target_keys", "first_values", "value_projections")
"""Of the edit's tensors: made from the base model and the captions, never changed, and large."""

SMALLEST_SCALE = 2.0**-10
"""Of the loss in float16; a training that wants less has gradients that no scale helps."""


@dataclass(kw_only=True, eq=False)
class Run:
    """Where a training stands: everything that changes from step to step."""

    edit: RankOneEdit
    placement: Placement
    optimiser: torch.optim.Optimizer
    rng: random.Random
    generator: torch.Generator
    scaler: torch.amp.GradScaler
    """Of float16's loss; switched off in other precisions."""
    step: int = 0
    """Steps done."""
    loss: float = 0.0
    """Its running mean: the last value counts 5 %."""

    @classmethod
    def begin(cls, edit: RankOneEdit, config: TrainingConfig, placement: Placement) -> Run:
        """Before the first step. Adam at the paper's two rates; its weight decay would pull the values towards zero.

        Raises:
            TrainingError: one encoding is learned for all values, for which the paper has no rate, and none is given.
        """
        if config.lr_values is None and edit.value_projections is not None:
            raise TrainingError(
                "The config leaves lr_values to the base model, whose values are learned as one encoding; fill it in "
                "with suited_to(base, config)."
            )
        optimiser = torch.optim.Adam(
            [
                {"params": list(edit.embeddings), "lr": config.lr_embedding},
                {"params": [edit.learned_values], "lr": config.lr_values or DEFAULT_LR_VALUES},
            ]
        )
        scaled = placement.dtype is torch.float16
        return cls(
            edit=edit,
            placement=placement,
            optimiser=optimiser,
            rng=random.Random(config.seed),
            generator=torch.Generator().manual_seed(config.seed),
            scaler=torch.amp.GradScaler(placement.device.type, enabled=scaled),
        )

    def parts(self) -> dict[str, Any]:
        """The arguments of `WorkFolder.save_state` besides identity and facts."""
        return {
            "tensors": {"edit": self._changing()}, "optimisers": [self.optimiser], "rng": self.rng,
            "generators": {"draws": self.generator},
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What the state says in words and numbers."""
        return {"step": self.step, "loss": self.loss, "loss_scale": self.scaler.state_dict()}

    def restore(self, saved: Checkpoint) -> None:
        """Go back to where a saved training stood.

        Raises:
            TrainingError: the state is another training's, or damaged.
        """
        restore_(self._changing(), saved.groups.get("edit", {}))
        saved.restore(optimisers=[self.optimiser], rng=self.rng, generators={"draws": self.generator})
        self.step, self.loss = int(saved.facts["step"]), float(saved.facts["loss"])
        if self.scaler.is_enabled() and (scale := saved.facts.get("loss_scale")):
            self.scaler.load_state_dict(scale)

    def _changing(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.edit.state_dict().items() if name not in FIXED}


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """What the UNet reads of a batch's prompts. A template drawn twice is encoded once."""

    states: Tensor
    """(used, tokens, text_dim), off the concept's direction."""
    gate: Tensor
    """(used, tokens, rows)"""
    pooled: Tensor | None
    """(used, pooled_dim), of models with two text encoders."""
    where: Tensor
    """(batch,) int64: which of them each sample reads."""


def optimise(
    base: BaseModel,
    run: Run,
    latents: Tensor,
    masks: Tensor,
    config: TrainingConfig,
    after: Callable[[float], None],
) -> None:
    """Train from `run.step` to `config.steps`. The UNet has its concept processors.

    Args:
        latents, masks: (n, channels, h, w) and (n, 1, h, w), of the prepared pictures.
        after: called after every step with its own loss.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    noising = Noising.of(base)
    prompts = [concept_prompt(base, template, config.rows) for template in TEMPLATES]
    while run.step < config.steps:
        value = train_step(base, run, latents, masks, config, noising, prompts)
        run.step += 1
        run.loss = value if run.step == 1 else 0.95 * run.loss + 0.05 * value
        after(value)


def train_step(
    base: BaseModel, run: Run, latents: Tensor, masks: Tensor, config: TrainingConfig, noising: Noising,
    prompts: Sequence[Prompt],
) -> float:  # fmt: skip
    """One step of Adam; returns the loss of the whole batch.

    Random numbers are drawn for the whole batch whoever computes it, and the loss is divided by the whole batch's
    weight: micro-batches, and shares of several processes, add up to the gradient of the batch in one.
    """
    device, edit = run.placement.device, run.edit
    picked = torch.tensor([run.rng.randrange(len(latents)) for _ in range(config.batch_size)], device=device)
    chosen = [run.rng.randrange(len(prompts)) for _ in range(config.batch_size)]
    noise = torch.randn(latents[picked].shape, generator=run.generator).to(device)
    timesteps = torch.randint(
        0, noising.scheduler.config.num_train_timesteps, (config.batch_size,), generator=run.generator
    ).to(device)
    noisy, target = noising(latents[picked], noise, timesteps)
    weights = everywhere_if_empty(masks[picked])
    total = weights.sum()
    conditions = condition_batch(base, edit, prompts, chosen, device)
    # The UNet's gradients are collected where it reads the edit, and go on through the text encoders once
    leaves = replace(
        conditions,
        states=conditions.states.detach().requires_grad_(),
        gate=conditions.gate.detach().requires_grad_(),
    )
    run.optimiser.zero_grad(set_to_none=True)
    value = torch.zeros((), device=device)
    for piece in pieces(config):
        with run.placement.autocast():
            output = unet_output(base, edit, leaves, piece, noisy[piece], timesteps[piece])
        loss = masked_error(output, target[piece], weights[piece], total)
        run.scaler.scale(loss).backward()
        value += loss.detach()
    torch.autograd.backward(
        [conditions.states, conditions.gate], [_gradient(leaves.states), _gradient(leaves.gate)]
    )
    sum_([value, *(parameter.grad for parameter in edit.parameters())])
    if not np.isfinite(float(value)):  # before it gets into what is kept
        raise TrainingError(
            f"The loss became {float(value)} at step {run.step + 1}; use --precision fp32 or a lower rate."
        )
    _apply(run)
    return float(value)


def _apply(run: Run) -> None:
    """Adam's step. In float16 the loss was scaled so that small gradients do not vanish: they are scaled back, and a
    step whose gradients overflowed is left out and the scale halved. Every process has the same sum of gradients, and
    so does the same."""
    run.scaler.step(run.optimiser)
    run.scaler.update()
    if run.scaler.is_enabled() and run.scaler.get_scale() < SMALLEST_SCALE:
        raise TrainingError(
            f"The gradients overflow float16 at every loss scale down to {SMALLEST_SCALE:g}; use --precision bf16 or "
            "fp32."
        )


def pieces(config: TrainingConfig) -> list[slice]:
    """This process's share of a batch in as many parts as the gradient is accumulated over."""
    mine = share(range(config.batch_size))
    parts = min(config.accumulate, len(mine))
    ends = [mine[0] + part * len(mine) // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def condition_batch(
    base: BaseModel, edit: RankOneEdit, prompts: Sequence[Prompt], chosen: Sequence[int], device: torch.device
) -> Conditions:
    """The chosen prompts, one for each sample, encoded and edited."""
    used = sorted(set(chosen))
    ids = as_tensors([prompts[index] for index in used], device)
    # in float32 also under autocast: s is what is left after large parts cancel, and 16 bits move it by 0.05
    with torch.autocast(device.type, enabled=False):
        encoded = base.encode(ids, list(edit.embeddings))
        encodings = encoded.hidden.float()
    edited = edit(encodings, mean_placeholders(edit, encodings, prompts, used, chosen))
    # The pooled vector of SDXL is the concept prompt's own, as in drawing: the end of the prompt as the second encoder
    # sees it, with a trace of the learned word, which no gate holds back. So nothing is learned through it: the bias
    # could not turn that down again. Without its gradient the UNet's first level, the largest, needs no backward pass.
    return Conditions(
        states=edited.encodings,
        gate=edited.gate,
        pooled=None if encoded.pooled is None else encoded.pooled.detach(),
        where=torch.tensor([used.index(index) for index in chosen], device=device),
    )


def unet_output(
    base: BaseModel, edit: RankOneEdit, conditions: Conditions, piece: slice, noisy: Tensor, timesteps: Tensor
) -> Tensor:
    """The UNet's prediction for one piece of a batch, (piece, channels, h, w) float32."""
    where = conditions.where[piece]
    # index_select, since the gradient of plain indexing adds up in an order that several CPU threads leave to chance
    gate = conditions.gate.index_select(0, where)
    pooled = None if conditions.pooled is None else conditions.pooled.index_select(0, where)
    unet: Any = base.unet
    output: Tensor = unet(
        noisy,
        timesteps,
        conditions.states.index_select(0, where),
        cross_attention_kwargs={
            "key_gate": gate,
            "value_gate": gate,
            "concept_keys": edit.target_keys,
            "concept_values": edit.target_values,
        },
        **base.unet_conditions(pooled, len(noisy)),
    ).sample
    return output.float()


def predict(
    base: BaseModel, edit: RankOneEdit, prompts: Sequence[Prompt], chosen: Sequence[int], noisy: Tensor,
    timesteps: Tensor,
) -> Tensor:  # fmt: skip
    """The UNet's prediction for noisy latents under the chosen prompts, through the edit. float32."""
    conditions = condition_batch(base, edit, prompts, chosen, noisy.device)
    return unet_output(base, edit, conditions, slice(None), noisy, timesteps)


def mean_placeholders(
    edit: RankOneEdit,
    encodings: Tensor,
    prompts: Sequence[Prompt],
    used: Sequence[int],
    chosen: Sequence[int],
) -> Tensor:
    """The batch's mean encoding of each placeholder token, (rows, text_dim).

    Args:
        encodings: (len(used), tokens, text_dim) of the prompts `used`; `chosen` says how often each is in the batch.
    """
    spots = [
        encodings[row, prompts[index].last - edit.rows + 1 : prompts[index].last + 1]
        for row, index in enumerate(used)
    ]
    counts = [chosen.count(index) for index in used]
    weights = torch.tensor(counts, device=encodings.device, dtype=torch.float32)
    return (torch.stack(spots) * weights[:, None, None]).sum(0) / weights.sum()


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
