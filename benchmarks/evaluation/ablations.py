"""Perfusion with one part of it taken away.

What a training has to differ in is a subclass of the product's own edit, everything around it the product's own
functions; the three kinds of gate are told apart by a name, which `edited` turns into what the UNet reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.evaluation.models import base_model, samples_of
from perfusion.base.attention import installed, key_projections
from perfusion.concept.concept_file import Concept
from perfusion.training import TrainingConfig
from perfusion.training import training_loop as loop
from perfusion.training.initial_edit import initial_edit
from perfusion.training.placement import Placement
from perfusion.training.rank_one import Edit, RankOneEdit
from perfusion.training.templates import check_superclass
from perfusion.training.trainer import as_concept
from perfusion.training.training_loop import Run, optimise
from recipes.pocket.subjects import Subject

__all__ = ["EDITS", "as_kind", "edited", "train_variant"]

Kind = TypeVar("Kind", bound=RankOneEdit)
Save = Callable[[Path], None]


def edited(
    kind: str, encodings: Tensor, dual: Tensor, direction: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """Encodings and gate of prompts with a concept of one row, without the logistic gate.

    Args:
        kind: `own-position`: the concept's own token is edited and no other; `similarity`: the gate is the similarity
            itself, ROME's closed form.
        encodings: (batch, tokens, text_dim).
        dual, direction: (1, text_dim), w* and i*.
        places: (batch,) where the concept's token stands.
    """
    similarity = encodings @ dual.T
    projected = encodings - similarity * direction
    if kind == "similarity":
        return projected, similarity
    spot = torch.zeros_like(similarity).scatter(1, places.view(-1, 1, 1), 1.0)
    # the sum that is zero ties the gate to what is trained, which the loop expects of every gate
    return torch.where(spot > 0, projected, encodings), spot + 0.0 * similarity


class TrainedKeys(RankOneEdit):
    """The target keys are learned as the target values are, from the same start: each layer's for itself or, with
    `key_projections`, (Σ d_K, text_dim), one encoding for all."""

    def __init__(self, *, key_projections: Tensor | None = None, **parts: Any) -> None:
        super().__init__(**parts)
        start = self.target_keys
        del self.target_keys
        self.target_keys = nn.Parameter(start)
        if key_projections is not None:
            parametrize.register_parametrization(self, "target_keys", Projected(start, key_projections))

    @property
    def learned_keys(self) -> nn.Parameter:
        """What is trained: (rows, Σ d_K), or (rows, text_dim) of the one encoding."""
        (learned,) = (value for name, value in self.named_parameters() if "target_keys" in name)
        return learned


class Projected(nn.Module):
    """What is learned of a tensor is an encoding, whose projection is added to the start."""

    start: Tensor
    projections: Tensor

    def __init__(self, start: Tensor, projections: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())
        self.register_buffer("projections", projections.detach().float().clone())

    def forward(self, encoding: Tensor) -> Tensor:
        return self.start + encoding @ self.projections.T

    def right_inverse(self, tensor: Tensor) -> Tensor:
        """The encoding before the first step."""
        return tensor.new_zeros(len(tensor), self.projections.shape[1])


class OtherGate(RankOneEdit):
    """Another gate than the logistic one."""

    kind = ""
    places: Tensor = torch.zeros(0, dtype=torch.int64)

    def forward(self, encodings: Tensor, concept: Tensor) -> Edit:
        direction = self.follow(concept.float())
        dual, _ = self.dual(direction)
        states, gate = edited(self.kind, encodings.float(), dual, direction, self.places)
        return Edit(encodings=states, gate=gate)


class OwnPosition(OtherGate):
    kind = "own-position"


class SimilarityGate(OtherGate):
    kind = "similarity"


EDITS: dict[str, type[RankOneEdit]] = {
    "trained-keys": TrainedKeys, "own-position": OwnPosition, "similarity-gate": SimilarityGate,
}  # fmt: skip
"""The variants that learn another edit; any other differs in its options only."""


def train_variant(
    context_plan: Any,
    work: Path,
    subject: Subject,
    config: TrainingConfig,
    variant: str,
    keep: Callable[[int, Save], None],
) -> None:
    """Train as `perfusion.training.train` does, with the variant's edit; `keep` gets the concept at each checkpoint."""
    base = base_model()
    samples = samples_of(context_plan, work, subject)
    if config.masks == "none":
        samples = replace(samples, masks=torch.ones_like(samples.masks))
    edit, encoding = initial_edit(base, check_superclass(base, config.superclass), config, lambda line: None)
    if variant in EDITS:
        tied = variant == "trained-keys" and config.values == "encoding"
        keys = {"key_projections": key_projections(base.unet)} if tied else {}
        edit = as_kind(edit, EDITS[variant], **keys)
    run = Run.begin(edit.train(), config, Placement.pick("cpu"))
    if isinstance(edit, TrainedKeys):
        run.optimiser.add_param_group(
            {"params": [edit.learned_keys], "lr": run.optimiser.param_groups[1]["lr"]}
        )

    def after(loss: float) -> None:
        if run.step in context_plan.checkpoints or run.step == config.steps:
            keep(run.step, _saving(as_concept(base, edit, encoding, config, {"steps": str(run.step)})))

    with installed(base.unet), _knowing_places(edit):
        optimise(base, run, samples.latents, samples.masks, config, after)


def _saving(concept: Concept) -> Save:
    return lambda folder: concept.save(folder / "concept.safetensors")


def as_kind(edit: RankOneEdit, kind: type[Kind], **other: torch.Tensor) -> Kind:
    """The same edit as another class of it; `other` are target keys or values that it is to begin with instead, and
    what the class takes besides."""
    targets = {"target_keys": edit.target_keys, "target_values": edit.target_values.detach()}
    return kind(
        embeddings=list(edit.embeddings), direction=edit.direction, inverse_moment=edit.inverse_moment,
        bias=edit.bias, temperature=edit.temperature, decay=edit.decay, gradient=edit.gradient,
        value_projections=edit.value_projections, **(targets | other),
    )  # fmt: skip


@contextmanager
def _knowing_places(edit: RankOneEdit) -> Iterator[None]:
    """Tell an edit that asks for it where the concept's token stands in the prompts it is about to read."""
    if not isinstance(edit, OtherGate):
        yield
        return
    original = loop.condition_batch

    def condition_batch(base: Any, edit: Any, prompts: Any, chosen: Any, *rest: Any) -> Any:
        edit.places = torch.tensor([prompts[index].last for index in sorted(set(chosen))])
        return original(base, edit, prompts, chosen, *rest)

    with mock.patch.object(loop, "condition_batch", condition_batch):
        yield
