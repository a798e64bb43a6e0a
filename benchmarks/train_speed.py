"""python benchmarks/train_speed.py [--gpu]: training a concept against the loops that diffusers' users run today.

Ours is `train_concept` as it is called. Theirs are the steps of diffusers' textual-inversion and DreamBooth-LoRA
examples, written out in benchmarks/loops: the same weights, pictures, batch, resolution and precision, one step of each
in turn, so that whatever else the machine does touches all three. Peak memory is measured in a process of its own for
each.

Models: `pocket`, the embedded one; `sd15-quarter`, Stable Diffusion 1.5 with every width divided by four, at 256 px;
and with --gpu `sd15`, the true architecture at 512 px, as it is and compiled. The last two have random weights, which
changes nothing about the speed.
"""

import argparse
import copy
import ctypes
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

import torch

from benchmarks.loops.of_diffusers import LOOPS, Loop, Task, has_peft
from benchmarks.models.scaled import scaled_sd15
from benchmarks.record import ROOT, write_record
from perfusion.base.base_model import BaseModel, load_base
from perfusion.errors import DeviceError, PerfusionError
from perfusion.training import TrainingConfig, train_concept
from perfusion.training.captions import generate_captions
from perfusion.training.placement import Placement

PICTURES, SUPERCLASS, CAPTIONS = ROOT / "examples" / "subjects" / "school-bus", "bus", 256
CONTENDERS = ("perfusion", "textual_inversion", "dreambooth_lora")
WARM_UP, MEMORY_STEPS, TARGET = 2, 3, 1.3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the record."""

    model: str
    batch_size: int
    rounds: int
    """Steps of each contender, the first `WARM_UP` not counted."""
    device: str = "cpu"
    divisor: int = 0
    """What Stable Diffusion 1.5's widths are divided by; 0: the embedded model instead."""
    resolution: int = 0
    compiled: bool = False

    def build(self) -> BaseModel:
        """The base model, on the CPU."""
        return scaled_sd15(self.divisor, self.resolution) if self.divisor else load_base(None)

    def loop(self, name: str, base: BaseModel) -> Loop:
        """One of theirs, by its name in `LOOPS`."""
        task = Task(
            pictures=PICTURES, superclass=SUPERCLASS, batch_size=self.batch_size, device=self.device,
            compiled=self.compiled,
        )  # fmt: skip
        return LOOPS[name](base, task)


CPU_CASES = (
    Case(model="pocket", batch_size=16, rounds=24),
    Case(model="sd15-quarter", batch_size=4, rounds=12, divisor=4, resolution=256),
)
GPU_CASES = tuple(
    Case(model="sd15", batch_size=16, rounds=30, device="cuda", divisor=1, resolution=512, compiled=compiled)
    for compiled in (False, True)
)


def train_ours(base: BaseModel, case: Case, steps: int, after: Callable[[], None]) -> None:
    """`train_concept`, with `after` called after each of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERFUSION_CACHE"] = folder  # a random model's second moment is nothing to keep
        captions = Path(folder) / "captions.txt"
        captions.write_text("\n".join(generate_captions()[:CAPTIONS]), "utf-8")
        config = TrainingConfig(
            superclass=SUPERCLASS, steps=steps, batch_size=case.batch_size, masks="none", crops=2, captions=captions,
            device=case.device,
        )  # fmt: skip
        if case.compiled:
            base.unet.compile()
        train_concept(PICTURES, config, model=base, report=lambda step, loss: after())


def step_times(case: Case) -> dict[str, list[float]]:
    """Seconds of every counted step of each contender, taken in turns: theirs run between two of ours."""
    base = case.build()
    loops = {name: case.loop(name, copy.deepcopy(base)) for name in LOOPS}
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}

    def clock() -> float:
        if case.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    start = clock()

    def after() -> None:
        nonlocal start
        times["perfusion"].append(clock() - start)
        for name, loop in loops.items():
            start = clock()
            loop.step()
            times[name].append(clock() - start)
        start = clock()

    train_ours(base, case, case.rounds, after)
    return {name: series[WARM_UP:] for name, series in times.items()}


def peak_bytes(case: Case, name: str) -> int | None:
    """What a few steps of one contender take at their peak: on a GPU everything, in a process's own memory what comes
    on top of the loaded model; None where it cannot be told."""
    base = case.build()
    start = _resident(reset=True, device=case.device)
    if name == "perfusion":
        train_ours(base, case, MEMORY_STEPS, lambda: None)
    else:
        loop = case.loop(name, base)
        for _ in range(MEMORY_STEPS):
            loop.step()
    end = _resident(reset=False, device=case.device)
    return None if start is None or end is None else end - start


def _resident(*, reset: bool, device: str) -> int | None:
    """Bytes of memory: now, with the peak forgotten, or the peak since then. A GPU's own (with the model), or the
    process's as Linux counts it."""
    if device == "cuda":
        return 0 if reset else torch.cuda.max_memory_allocated()
    if platform.system() != "Linux":
        return None
    if reset:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024 if found else None


def measure(case: Case, number: int) -> dict[str, Any]:
    """One row of the record."""
    times = step_times(case)
    ours = times["perfusion"]
    memory = {name: _in_own_process(number, case, name) for name in CONTENDERS}
    return {
        "model": case.model, "device": torch.cuda.get_device_name() if case.device == "cuda" else "cpu",
        "compiled": case.compiled, "resolution": case.resolution or 128, "batch_size": case.batch_size,
        "precision": "bf16 autocast" if Placement.pick(case.device).dtype else "fp32",
        "threads": torch.get_num_threads(), "rounds": len(ours),
        "lora": "peft" if has_peft() else "written out, peft is not installed",
        "images_per_second": {
            name: round(case.batch_size / statistics.median(series), 3) for name, series in times.items()
        },
        "speed_over": {
            name: round(statistics.median(t / o for t, o in zip(times[name], ours, strict=True)), 3) for name in LOOPS
        },
        "target": TARGET, "peak_memory_mb": {name: b and round(b / 1e6, 1) for name, b in memory.items()},
    }  # fmt: skip


def _in_own_process(number: int, case: Case, name: str) -> int | None:
    """`peak_bytes` in a fresh process: memory that an allocator kept from before would hide what is needed."""
    command = [sys.executable, __file__, "--memory", f"{number}:{name}"]
    if case.device == "cuda":
        command.append("--gpu")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout) if done.stdout.strip() != "None" else None


def main() -> int:
    """Measure the cases that are asked for and print them; all together they are recorded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true", help="measure Stable Diffusion 1.5 on the CUDA device")
    parser.add_argument("--case", type=int, help="only this case, counted from 0; nothing is recorded")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = GPU_CASES if arguments.gpu else CPU_CASES
    try:
        if arguments.gpu and not torch.cuda.is_available():
            raise DeviceError("--gpu: no CUDA device was found; run it where there is one, or without --gpu")
        if arguments.memory:
            number, name = arguments.memory.split(":")
            print(peak_bytes(cases[int(number)], name))
            return 0
        chosen = range(len(cases)) if arguments.case is None else [arguments.case]
        rows = [measure(cases[number], number) for number in chosen]
    except PerfusionError as error:
        print(error, file=sys.stderr)
        return 1
    print(*rows, sep="\n")
    if arguments.case is None:
        print(write_record("train-speed-gpu" if arguments.gpu else "train-speed", rows))
    slow = [row["model"] for row in rows if min(row["speed_over"].values()) < TARGET]
    if slow:
        print(f"less than {TARGET} times their speed: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
