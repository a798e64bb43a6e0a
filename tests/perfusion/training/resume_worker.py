"""A small training that is killed again and again; run by test_state.py.

    python resume_worker.py FOLDER KILLS

Trains once without a kill to FOLDER/whole.bin, then with KILLS kills at random moments to FOLDER/killed.bin, each time
in a process of its own that goes on from the last state. Prints how far each life came.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from perfusion.files import writing
from perfusion.training.state import restore_
from perfusion.training.work_folder import WorkFolder

STEPS, SAVE_EVERY = 60, 3


def train(output: Path, pause: float) -> int:
    """The whole of it, from the last state on; returns the step it began at."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-1, 1 + number, parameter.numel()).view_as(parameter))
    optimiser = torch.optim.Adam(
        [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters()}]
    )
    rng, generator, running, step = random.Random(3), torch.Generator().manual_seed(4), 0.0, 0
    work = WorkFolder(output)
    saved = work.load_state({"steps": str(STEPS)})
    if saved:
        restore_(model.state_dict(), saved.groups["model"])
        saved.restore(optimisers=[optimiser], rng=rng, generators={"noise": generator})
        step, running = saved.facts["step"], saved.facts["running"]
    began = step
    while step < STEPS:
        batch = torch.randn(rng.randrange(2, 9), 6, generator=generator)
        loss = (model(batch) - batch.roll(1, 1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step, running = step + 1, 0.9 * running + 0.1 * float(loss)
        time.sleep(pause)
        if step % SAVE_EVERY == 0:
            work.save_state(
                {"steps": str(STEPS)}, {"step": step, "running": running}, tensors={"model": model.state_dict()},
                optimisers=[optimiser], rng=rng, generators={"noise": generator},
            )  # fmt: skip
    with writing(output) as file:
        for value in model.state_dict().values():
            file.write(value.numpy().tobytes())
        file.write(repr((running, rng.random(), float(torch.rand(1, generator=generator)))).encode())
    work.finish(keep=False)
    return began


def live(output: Path, after: float | None) -> int:
    """One life of the training, killed after so many seconds; its exit status as `os.waitpid` gives it."""
    child = os.fork()
    if not child:
        began = train(output, pause=0.004)
        print(f"finished from step {began}", flush=True)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)  # one thread, so that forking is safe
    assert live(folder / "whole.bin", None) == 0
    killed, moments = folder / "killed.bin", random.Random(os.urandom(8))
    for _ in range(kills):
        if live(killed, moments.uniform(0.0, 0.25)) == 0:  # it was faster than we were
            break
        print(
            "killed; work folder:",
            sorted(os.listdir(WorkFolder(killed).path)) if WorkFolder(killed).path.exists() else "none",
            flush=True,
        )
    if not killed.exists():
        assert live(killed, None) == 0


if __name__ == "__main__":
    main()
