"""A few steps of a training shared among processes; run by test_parallel.py, and imported by it for the one process.

python parallel_worker.py OUTPUT        in each process, with the launcher's environment
"""

import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from perfusion.training.parallel import opened, share, sum_, world
from perfusion.training.rank_one import RankOneEdit

STEPS, BATCH, DIM, VALUES = 6, 5, 8, 10


def train() -> dict[str, torch.Tensor]:
    """The edit on a stand-in for a UNet: drawn as one, worked on in shares, added up."""
    start = torch.Generator().manual_seed(0)
    table, head = torch.randn(7, DIM, generator=start), torch.randn(VALUES, 3, generator=start)
    encoder = torch.randn(DIM, DIM, generator=start)
    edit = RankOneEdit(
        embeddings=[table[:1]], direction=table[1:2], target_keys=torch.zeros(1, 4),
        target_values=torch.randn(1, VALUES, generator=start),
        inverse_moment=torch.eye(DIM, dtype=torch.float64), bias=0.1, temperature=0.5,
    ).train()  # fmt: skip
    (word,) = edit.embeddings
    optimiser = torch.optim.Adam(
        [{"params": [word], "lr": 0.05}, {"params": [edit.learned_values], "lr": 0.1}]
    )
    rng, generator = random.Random(1), torch.Generator().manual_seed(2)
    for _ in range(STEPS):
        # the whole batch's numbers in every process
        templates = [rng.randrange(6) for _ in range(BATCH)]
        noise = torch.randn(BATCH, 3, generator=generator)
        weights = torch.rand(BATCH, 1, generator=generator)
        # the encodings of all templates: cheap, and so the direction is the same everywhere
        encodings = torch.stack([torch.stack([table[1 + t], word[0]]) for t in range(6)]) @ encoder
        counts = torch.tensor([templates.count(t) for t in range(6)], dtype=torch.float32)
        edited = edit(encodings, (encodings[:, 1] * counts[:, None]).sum(0)[None] / BATCH)
        mine = torch.tensor(share(templates))
        states, gate = edited.encodings.index_select(0, mine), edited.gate.index_select(0, mine)
        output = (states.sum(1) @ encoder)[:, :3] + (gate.sum(1) @ edit.target_values) @ head
        # the weight of the whole batch
        loss = (share(weights) * (output - share(noise)).square()).sum() / weights.sum()
        optimiser.zero_grad()
        loss.backward()
        sum_([parameter.grad for parameter in edit.parameters()])
        optimiser.step()
    return {name: value.detach().clone() for name, value in edit.state_dict().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with opened() as here:
        assert here == world()
        trained = train()
        save_file(trained, Path(sys.argv[1]).with_suffix(f".{here.rank}-of-{here.size}"))
