"""Several GPUs, one training: every process takes a share of the batch, and all of them the same step.

    accelerate launch -m perfusion.commands.train --images cat/ --superclass cat --output cat.safetensors

Every process draws the random numbers of the whole batch and works on its slice, divides its loss by the whole batch's
weight, and the gradients are added up: the sum is that of one process with the whole batch, up to the order of
addition. What is learned is 13,248 numbers on Stable Diffusion 1.5, so one small all-reduce a step does it, without a
wrapper around the model. Process 0 reports and writes. (`torchrun` does as well: both set the environment read here.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor

from perfusion.errors import TrainingError

__all__ = ["World", "check_step", "opened", "share", "sum_", "world"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """How many processes train together and which of them this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of this process on its machine, and so of its GPU."""

    @property
    def main(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0


def world() -> World:
    """The processes that train together: those of torch.distributed if it runs, else this one alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return World(rank=dist.get_rank(), size=dist.get_world_size(), local_rank=local)


@contextmanager
def opened() -> Iterator[World]:
    """Join the processes that `accelerate launch` started, for the length of a with block; alone without it.

    Raises:
        TrainingError: the launcher's environment is there, but the processes cannot reach each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or (dist.is_available() and dist.is_initialized()):
        yield world()
        return
    on_gpu = torch.cuda.is_available()
    fast = on_gpu and dist.is_nccl_available()  # Windows has none; gloo adds up a GPU's tensors too
    try:
        if on_gpu:  # "cuda" is this process's GPU from here on
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if fast else "gloo")
    except (RuntimeError, ValueError) as error:  # of the meeting point, and of a GPU that is not there
        raise TrainingError(
            f"The processes of this training did not find each other ({error}); start them with accelerate launch, one "
            "for each GPU."
        ) from error
    try:
        yield world()
    finally:
        dist.destroy_process_group()


@overload
def share(batch: Tensor) -> Tensor: ...
@overload
def share(batch: Sequence[T]) -> Sequence[T]: ...
def share(batch: Tensor | Sequence[T]) -> Tensor | Sequence[T]:
    """This process's slice of a batch: contiguous, the slices in order make the batch, their lengths differ by one at
    most. A batch smaller than the number of processes is refused, since a process without work would stop all.

    Raises:
        TrainingError: fewer samples than processes.
    """
    here = world()
    count = len(batch)
    if count < here.size:
        raise TrainingError(
            f"{count} samples a step for {here.size} processes, expected at least one for each; give a larger "
            "--batch-size or start fewer processes."
        )
    return batch[here.rank * count // here.size : (here.rank + 1) * count // here.size]


@torch.no_grad()
def sum_(tensors: Iterable[Tensor | None]) -> None:
    """Add each tensor up over all processes, in place, through one message of float32. None is left out, and must be
    None in every process. Every process ends with the same bits."""
    present = [tensor for tensor in tensors if tensor is not None]
    if world().size == 1 or not present:
        return
    flat = torch.cat([tensor.detach().float().reshape(-1) for tensor in present])
    dist.all_reduce(flat)
    for tensor, part in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
        tensor.copy_(part.view_as(tensor))


def check_step(step: int, device: torch.device) -> None:
    """Raise `TrainingError` in every process where they stand at different steps: some found no state to go on from,
    as on machines that share no disk, and would add up gradients of different batches."""
    total = torch.tensor([float(step)], device=device)
    sum_([total])
    if float(total) != step * world().size:
        raise TrainingError(
            f"This process stands after step {step} and others do not; --resume needs the folder beside the output in "
            "the reach of every process, so start over, or put the output where all of them can read it."
        )
