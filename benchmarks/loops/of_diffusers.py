"""The steps of diffusers' textual-inversion and DreamBooth-LoRA examples, written out.

In their favour: their pictures are already decoded, cropped and on the device, and their prompts already tokenised.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from perfusion.base.base_model import BaseModel
from perfusion.training.crops import prepare
from perfusion.training.picture_folder import find_pictures
from perfusion.training.placement import Placement
from perfusion.training.templates import TEMPLATES, as_tensors, input_ids
from perfusion.training.training_pictures import load_picture

__all__ = ["LOOPS", "DreamBoothLora", "Loop", "Task", "TextualInversion", "has_peft"]

RANK, PROJECTIONS = 4, ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, and where."""

    pictures: Path
    superclass: str
    batch_size: int
    device: str = "cpu"
    compiled: bool = False


class Loop:
    """One training as diffusers' examples write it: `step` is what they repeat.

    Every step encodes its pictures and its prompts, noises the latents, asks the UNet, and takes one AdamW step.
    The base model is its own: one loop trains a table of the text encoder, the other adds layers to the UNet.
    """

    def __init__(self, base: BaseModel, task: Task) -> None:
        self.placement = Placement.pick(task.device)
        self.device = self.placement.device
        self.batch_size = task.batch_size
        parts: list[Any] = [part.to(self.device) for part in base.parts]
        self.unet, self.text_encoder, self.vae = parts
        self.unet.train(), self.text_encoder.train()
        known = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
        self.scheduler: Any = DDPMScheduler(**{name: base.scheduler[name] for name in known})
        loaded = [load_picture(path, "none") for path in find_pictures(task.pictures)]
        images, _ = prepare(loaded, base.resolution, 2, flip=True, seed=0)
        self.pixels = torch.from_numpy(images).to(self.device)
        self.prompts = self.tokenise(base, task.superclass).to(self.device)
        self.trained = self.prepare(base, task.superclass)
        self.optimiser = torch.optim.AdamW(self.trained, lr=5e-4, weight_decay=1e-2)
        if task.compiled:
            self.unet.compile()

    def tokenise(self, base: BaseModel, superclass: str) -> Tensor:
        """Token ids to draw from, (prompts, tokens)."""
        raise NotImplementedError

    def prepare(self, base: BaseModel, superclass: str) -> list[nn.Parameter]:
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
        with self.placement.autocast():
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

    def tokenise(self, base: BaseModel, superclass: str) -> Tensor:
        prompts = [input_ids(base, template, [[base.vocab_size]]) for template in TEMPLATES]
        return as_tensors(prompts, torch.device("cpu"))[0]

    def prepare(self, base: BaseModel, superclass: str) -> list[nn.Parameter]:
        self.text_encoder.resize_token_embeddings(base.vocab_size + 1, mean_resizing=False)
        self.table: Any = self.text_encoder.get_input_embeddings().weight
        word = base.tokenizer(superclass, add_special_tokens=False).input_ids[-1]
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

    def tokenise(self, base: BaseModel, superclass: str) -> Tensor:
        word = base.tokenizer(superclass, add_special_tokens=False).input_ids
        return as_tensors([input_ids(base, "a photo of my {}", [word])], torch.device("cpu"))[0]

    def prepare(self, base: BaseModel, superclass: str) -> list[nn.Parameter]:
        """Adapters of rank RANK by peft, or where it is missing by hand."""
        if has_peft():
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


def has_peft() -> bool:
    """Whether the adapters are peft's own, and not written out here."""
    return importlib.util.find_spec("peft") is not None
