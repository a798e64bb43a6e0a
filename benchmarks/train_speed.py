"""python benchmarks/train_speed.py [--gpu]: training a concept against the loops that diffusers' users run today.

Ours is `train_concept` as it is called. Theirs are the steps of diffusers' textual-inversion and DreamBooth-LoRA
examples, written out here: the same weights, pictures, batch, resolution and precision, one step of each in turn, so
that whatever else the machine does touches all three. In their favour: their pictures are already decoded, cropped and
on the device, and their prompts already tokenised. Peak memory is measured in a process of its own for each.

Models: `pocket`, the embedded one; `sd15-quarter`, Stable Diffusion 1.5 with every width divided by four, at 256 px;
and with --gpu `sd15`, the true architecture at 512 px, as it is and compiled. The last two have random weights, which
changes nothing about the speed.
"""

import argparse
import copy
import ctypes
import importlib
import importlib.util
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.record import ROOT, write_record
from perfusion.attention import layer_table
from perfusion.base import BaseModel, fingerprint, load_base
from perfusion.errors import DeviceError, PerfusionError
from perfusion.pocket.architecture import SCHEDULER
from perfusion.pocket.tokenizer import build_tokenizer
from perfusion.pocket.vocabulary import words
from perfusion.training import TrainingConfig, train_concept
from perfusion.training.captions import generate_captions
from perfusion.training.pictures import find_pictures, load_picture, prepare
from perfusion.training.prompts import TEMPLATES, as_tensors, input_ids

PICTURES, SUPERCLASS, CAPTIONS = ROOT / "examples" / "subjects" / "school-bus", "bus", 256
CONTENDERS = ("perfusion", "textual_inversion", "dreambooth_lora")
WARM_UP, MEMORY_STEPS, TARGET = 2, 3, 1.3
RANK, PROJECTIONS = 4, ("to_q", "to_k", "to_v", "to_out.0")


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


CPU_CASES = (
    Case(model="pocket", batch_size=16, rounds=24),
    Case(model="sd15-quarter", batch_size=4, rounds=12, divisor=4, resolution=256),
)
GPU_CASES = tuple(
    Case(model="sd15", batch_size=16, rounds=30, device="cuda", divisor=1, resolution=512, compiled=compiled)
    for compiled in (False, True)
)


def scaled_sd15(divisor: int, resolution: int) -> BaseModel:
    """Stable Diffusion 1.5 with all widths divided, random weights and its full vocabulary."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    wide, text_dim = tuple(width // divisor for width in (320, 640, 1280, 1280)), 768 // divisor
    vae_widths = tuple(width // divisor for width in (128, 256, 512, 512))
    tokenizer: Any = build_tokenizer(words())
    unet = UNet2DConditionModel(
        sample_size=resolution // 8, block_out_channels=wide, cross_attention_dim=text_dim, attention_head_dim=8,
        norm_num_groups=32 // divisor,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=vae_widths, layers_per_block=2, latent_channels=4, norm_num_groups=32 // divisor,
        sample_size=resolution,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=text_dim, intermediate_size=4 * text_dim, num_hidden_layers=12,
            num_attention_heads=12 // divisor, max_position_embeddings=77, hidden_act="quick_gelu",
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    for part in (unet, vae, text):
        part.requires_grad_(False).eval()
    return BaseModel(
        family="sd15" if divisor == 1 else f"sd15-over-{divisor}", unet=unet, text_encoders=(text,),
        tokenizers=(tokenizer,), vae=vae, scheduler={**SCHEDULER, "prediction_type": "epsilon"},
        layers=layer_table(unet), fingerprint=fingerprint(unet, 49408, text_dim), folder=Path("random"),
    )  # fmt: skip


class Loop:
    """One training as diffusers' examples write it: `step` is what they repeat.

    Every step encodes its pictures and its prompts, noises the latents, asks the UNet, and takes one AdamW step.
    The base model is its own: one loop trains a table of the text encoder, the other adds layers to the UNet.
    """

    def __init__(self, base: BaseModel, case: Case) -> None:
        from diffusers import DDPMScheduler

        self.device, self.dtype = torch.device(case.device), half_precision(case.device)
        self.batch_size = case.batch_size
        parts: list[Any] = [part.to(self.device) for part in base.parts]
        self.unet, self.text_encoder, self.vae = parts
        self.unet.train(), self.text_encoder.train()
        known = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
        self.scheduler: Any = DDPMScheduler(**{name: base.scheduler[name] for name in known})
        loaded = [load_picture(path, "none") for path in find_pictures(PICTURES)]
        images, _ = prepare(loaded, base.resolution, 2, flip=True, seed=0)
        self.pixels = torch.from_numpy(images).to(self.device)
        self.prompts = self.tokenise(base).to(self.device)
        self.trained = self.prepare(base)
        self.optimiser = torch.optim.AdamW(self.trained, lr=5e-4, weight_decay=1e-2)
        if case.compiled:
            self.unet.compile()

    def tokenise(self, base: BaseModel) -> Tensor:
        """Token ids to draw from, (prompts, tokens)."""
        raise NotImplementedError

    def prepare(self, base: BaseModel) -> list[nn.Parameter]:
        """Make trainable what is trained, and return it."""
        raise NotImplementedError

    def encode(self, ids: Tensor) -> Tensor:
        """What the UNet reads of prompts."""
        hidden: Tensor = self.text_encoder(ids)[0]
        return hidden

    def update(self) -> None:
        """After the gradients are there."""
        self.optimiser.step()
        self.optimiser.zero_grad()

    def step(self) -> None:
        """As diffusers' examples train: the pictures through the VAE and the prompts through the encoder every time."""
        pixels = self.pixels[torch.randint(len(self.pixels), (self.batch_size,), device=self.device)]
        ids = self.prompts[torch.randint(len(self.prompts), (self.batch_size,), device=self.device)]
        with autocast(self.device, self.dtype):
            with torch.no_grad():  # nothing there has a gradient; the examples detach the result
                latents = (
                    self.vae.encode(pixels).latent_dist.sample().float() * self.vae.config.scaling_factor
                )
            noise = torch.randn_like(latents)
            steps = self.scheduler.config.num_train_timesteps
            timesteps = torch.randint(steps, (self.batch_size,), device=self.device)
            noisy = self.scheduler.add_noise(latents, noise, timesteps)
            v = self.scheduler.config.prediction_type == "v_prediction"
            target = self.scheduler.get_velocity(latents, noise, timesteps) if v else noise
            predicted = self.unet(noisy, timesteps, self.encode(ids)).sample
        F.mse_loss(predicted.float(), target.float()).backward()
        self.update()


class TextualInversion(Loop):
    """A new row of the table of word embeddings; the whole table is the optimiser's, the other rows are put back."""

    def tokenise(self, base: BaseModel) -> Tensor:
        prompts = [input_ids(base, template, [[base.vocab_size]]) for template in TEMPLATES]
        return as_tensors(prompts, torch.device("cpu"))[0]

    def prepare(self, base: BaseModel) -> list[nn.Parameter]:
        self.text_encoder.resize_token_embeddings(base.vocab_size + 1, mean_resizing=False)
        self.table: Any = self.text_encoder.get_input_embeddings().weight
        word = base.tokenizer(SUPERCLASS, add_special_tokens=False).input_ids[-1]
        with torch.no_grad():
            self.table[-1] = self.table[word]
        self.table.requires_grad_(True)
        self.original = self.table.detach().clone()
        self.others = torch.arange(len(self.table), device=self.device) < base.vocab_size
        return [self.table]

    def update(self) -> None:
        super().update()
        with torch.no_grad():
            self.table[self.others] = self.original[self.others]


class DreamBoothLora(Loop):
    """Low-rank additions to every attention projection of the UNet; the text encoder is frozen."""

    def tokenise(self, base: BaseModel) -> Tensor:
        word = base.tokenizer(SUPERCLASS, add_special_tokens=False).input_ids
        return as_tensors([input_ids(base, "a photo of my {}", [word])], torch.device("cpu"))[0]

    def prepare(self, base: BaseModel) -> list[nn.Parameter]:
        """Adapters of rank RANK by peft, or where it is missing by hand."""
        if importlib.util.find_spec("peft"):
            config = importlib.import_module("peft").LoraConfig
            self.unet.add_adapter(
                config(
                    r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(PROJECTIONS)
                )
            )
        else:
            for name, module in list(self.unet.named_modules()):
                if name.endswith(PROJECTIONS):
                    self.unet.set_submodule(name, LowRank(module).to(self.device))
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def encode(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return super().encode(ids)

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        super().update()


class LowRank(nn.Module):
    """A frozen linear layer plus B A x, as peft computes it (LoRA, arXiv 2106.09685)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, linear.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / RANK)
        nn.init.zeros_(self.up.weight)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.linear(states) + self.up(self.down(states))
        return out


LOOPS = {"textual_inversion": TextualInversion, "dreambooth_lora": DreamBoothLora}


def half_precision(device: str) -> torch.dtype | None:
    """bfloat16 where the hardware computes in it; both sides use it, or neither."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def train_ours(base: BaseModel, case: Case, steps: int, after: Callable[[], None]) -> None:
    """`train_concept`, with `after` called after each of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERFUSION_CACHE"] = folder  # a random model's second moment is nothing to keep
        captions = Path(folder) / "captions.txt"
        captions.write_text("\n".join(generate_captions()[:CAPTIONS]), "utf-8")
        config = TrainingConfig(
            superclass=SUPERCLASS, steps=steps, batch_size=case.batch_size, masks="none", crops=2, captions=captions,
            device=case.device, precision="bf16" if half_precision(case.device) else "fp32",
        )  # fmt: skip
        if case.compiled:
            base.unet.compile()
        train_concept(PICTURES, config, model=base, report=lambda step, loss: after())


def step_times(case: Case) -> dict[str, list[float]]:
    """Seconds of every counted step of each contender, taken in turns: theirs run between two of ours."""
    base = case.build()
    loops = {name: loop(copy.deepcopy(base), case) for name, loop in LOOPS.items()}
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}

    def clock() -> float:
        if case.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    began = clock()

    def after() -> None:
        nonlocal began
        times["perfusion"].append(clock() - began)
        for name, loop in loops.items():
            began = clock()
            loop.step()
            times[name].append(clock() - began)
        began = clock()

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
        loop = LOOPS[name](base, case)
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
        "precision": "bf16 autocast" if half_precision(case.device) else "fp32",
        "threads": torch.get_num_threads(), "rounds": len(ours),
        "lora": "peft" if importlib.util.find_spec("peft") else "written out, peft is not installed",
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
