"""What the trainings of pocket share: Muon, averaged weights, the learning-rate curve, checkpoints."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from perfusion.training.placement import Placement
from perfusion.training.state import read_checkpoint, write_checkpoint
from recipes.pocket.slices import on_cores, slices

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration that pushes singular values towards one (Jordan et al., Muon, 2024)."""


def mixed_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where the hardware computes in it; where it is emulated, float32 is ten times faster."""
    return Placement.on(device).autocast()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: each update of a weight matrix is replaced by the nearest semi-orthogonal matrix.

    For hidden convolutions and linear layers (seen as `(out, everything else)` matrices); embeddings, norms, biases,
    first and last layers belong to AdamW. On the autoencoder it saved two thirds of the training time.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        steps: int = 4,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        params = ((param, group) for group in self.param_groups for param in group["params"])
        work = [(param, param.grad, group) for param, group in params if param.grad is not None]
        work.sort(key=lambda item: -item[0].numel())  # so that each core has as much to do
        cores = len(slices(len(work), work[0][0].device)) if work else 1
        on_cores([partial(self._update, work[core::cores]) for core in range(cores)])

    @torch.no_grad()
    def _update(self, work: Sequence[tuple[torch.Tensor, torch.Tensor, Mapping[str, Any]]]) -> None:
        for param, gradient, group in work:
            gradient = gradient.reshape(param.shape[0], -1)
            buffer = self.state[param].setdefault("momentum", torch.zeros_like(gradient))
            buffer.lerp_(gradient, 1 - group["momentum"])
            update = orthogonalise(gradient.lerp(buffer, group["momentum"]), group["steps"])
            scale = max(1, update.shape[0] / update.shape[1]) ** 0.5
            param.add_(update.view(param.shape), alpha=-group["lr"] * scale)


def orthogonalise(matrix: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """About the semi-orthogonal factor of the matrix: all singular values in 0.7 … 1.2. Same shape and type."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(Placement.on(matrix.device).dtype or matrix.dtype)
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a X + (b G + c G²) X
    return (x.T if tall else x).to(matrix.dtype)


class Average:
    """An exponential moving average of a module's floating-point state, shorter at the start."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.module, self.decay, self.steps = module, decay, 0
        self.live = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        self.state = {name: value.detach().clone() for name, value in self.live.items()}

    def restore(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Continue from saved averages, whatever order their file had: `update` goes by the module's."""
        self.state = {name: state[name].to(value.device) for name, value in self.live.items()}
        self.steps = steps

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with its averaged weights, in evaluation mode; afterwards it trains on with its live ones."""
        live = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.state, strict=False)
        self.module.eval()
        try:
            yield
        finally:
            self.module.load_state_dict(live)
            self.module.train()

    @torch.no_grad()
    def update(self) -> None:
        """Move a step towards the module's present weights."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 20))
        torch._foreach_lerp_(list(self.state.values()), list(self.live.values()), 1 - decay)


def rate(step: int, total: int, warm_up: int = 60, decay_from: float = 0.6, begun: int = 0) -> float:
    """The share of the learning rate at a step: up over `warm_up` steps from the one that was begun at, flat, then down
    to 2 % in a line."""
    progress = min(1.0, step / total)
    return min(1.0, (step - begun + 1) / warm_up) * (
        1 if progress < decay_from else max(0.02, (1 - progress) / (1 - decay_from))
    )


def set_rate(optimisers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Scale every group's own rate (`base_lr`, remembered at the first call)."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group.setdefault("base_lr", group["lr"]) * share


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    optimisers: list[torch.optim.Optimizer],
    rng: random.Random,
    facts: Mapping[str, Any],
) -> None:
    """Write everything an exact resume needs to one safetensors file: weights, optimisers, generators, counters."""
    write_checkpoint(
        path, tensors, optimisers=optimisers, rng=rng, generators=_global_generators(), facts=facts
    )


def load_checkpoint(
    path: Path, optimisers: list[torch.optim.Optimizer], rng: random.Random
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Read a checkpoint: restores the optimisers and generators, returns the tensors by group and the facts."""
    saved = read_checkpoint(path)
    saved.restore(optimisers=optimisers, rng=rng, generators=_global_generators())
    return saved.groups, saved.facts


def _global_generators() -> dict[str, torch.Generator]:
    """Torch's own generators, which the recipe draws from."""
    generators = {"torch": torch.default_generator}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.default_generators[torch.cuda.current_device()]
    return generators
