"""What others train, on the same pictures, noise and prompts, in the same number of steps.

The optimiser is diffusers' examples' own (AdamW with its decay, gradients cut to a length of 1), and so is what each
method saves. The error counts inside the object's mask for every method, as Perfusion has it, unless its tuning found
that it does better without, as in their papers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from benchmarks.evaluation.models import base_model, own_copy, samples_of
from benchmarks.evaluation.plan import Plan
from benchmarks.evaluation.prior import prior_latents
from perfusion.base.attention import installed
from perfusion.base.base_model import BaseModel, token_embedding
from perfusion.errors import TrainingError
from perfusion.files import writing
from perfusion.training.objective import Noising, masked_error
from perfusion.training.placement import Placement
from perfusion.training.templates import TEMPLATES, as_tensors, input_ids, word_ids
from recipes.pocket.subjects import Subject

__all__ = ["IDENTIFIER", "LEARNERS", "Learner", "train_baseline"]

IDENTIFIER = "sks"
"""A word that means nothing to the base model, as DreamBooth's users write it."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CROSS = (".attn2.to_k.weight", ".attn2.to_v.weight")

Save = Callable[[Path], None]
Keep = Callable[[int, Save], None]


class Learner:
    """What one method trains: `parameters`, how prompts are encoded, and what is saved."""

    prior = False
    """Whether half of every batch is the base model's own pictures of the superclass."""

    def __init__(self, base: BaseModel, subject: Subject) -> None:
        self.base, self.subject = base, subject
        self.unet: Any = own_copy(base.unet)
        self.noun = word_ids(base.tokenizer, subject.noun)
        self.words = [*word_ids(base.tokenizer, IDENTIFIER), *self.noun]
        self.parameters: list[nn.Parameter] = self.prepare()
        ids = [self.words] if not self.prior else [self.words, self.noun]
        self.prompts = [[input_ids(base, text, [words]) for text in TEMPLATES] for words in ids]
        self._encoded: dict[tuple[bool, int], Tensor] = {}

    def prepare(self) -> list[nn.Parameter]:
        """Make trainable what is trained, and return it."""
        raise NotImplementedError

    def saving(self) -> Save:
        """Writes what the method's users keep, as it is now, in float16."""
        raise NotImplementedError

    def encode(self, templates: Sequence[int], prior: bool = False) -> Tensor:
        """(len(chosen), tokens, text_dim) of templates with the subject's words, or the superclass's. Frozen."""
        for index in set(templates) - {index for known, index in self._encoded if known == prior}:
            with torch.no_grad():
                ids = as_tensors([self.prompts[int(prior)][index]], torch.device("cpu"))
                self._encoded[prior, index] = self.base.encode(ids).hidden[0].float()
        return torch.stack([self._encoded[prior, index] for index in templates])


class TextualInversion(Learner):
    """One word embedding (arXiv 2208.01618)."""

    def prepare(self) -> list[nn.Parameter]:
        self.words = [self.base.vocab_size]
        start = token_embedding(self.base.text_encoder).weight[self.noun[-1]]
        self.embedding = nn.Parameter(start.detach().clone()[None])
        return [self.embedding]

    def saving(self) -> Save:
        tensors = {self.subject.token: self.embedding.detach().half()[0].clone()}
        return lambda folder: _write(folder / "learned_embeds.safetensors", tensors)

    def encode(self, templates: Sequence[int], prior: bool = False) -> Tensor:
        return _with_word(self, templates) if not prior else super().encode(templates, prior)


class Lora(Learner):
    """Low-rank additions to every attention projection (arXiv 2106.09685), by peft."""

    rank = 4
    targets: str | tuple[str, ...] = ATTENTION

    def prepare(self) -> list[nn.Parameter]:
        """Adapters in `targets`. Raises `TrainingError` without peft."""
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise TrainingError("the LoRA baselines are peft's; pip install peft") from error
        torch.manual_seed(0)
        self.unet.add_adapter(
            LoraConfig(
                r=self.rank,
                lora_alpha=self.rank,
                init_lora_weights="gaussian",
                target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            )
        )
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def saving(self) -> Save:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
        layers = {name: value.detach().half().clone() for name, value in state.items()}
        return lambda folder: StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)


class LoraValues(Lora):
    """Rank 1 on the values of cross-attention alone: as few numbers as there can be in the same place as ours."""

    rank = 1
    targets = r".*\.attn2\.to_v"


class CustomDiffusion(Learner):
    """The keys and values of cross-attention, and a word before the noun (arXiv 2212.04488), with its prior."""

    prior = True

    def prepare(self) -> list[nn.Parameter]:
        self.words = [self.base.vocab_size, *self.noun]
        rare = word_ids(self.base.tokenizer, IDENTIFIER)[0]
        start = token_embedding(self.base.text_encoder).weight[rare]
        self.embedding = nn.Parameter(start.detach().clone()[None])
        self.matrices = {name: p for name, p in self.unet.named_parameters() if name.endswith(CROSS)}
        for parameter in self.matrices.values():
            parameter.requires_grad_(True)
        return [self.embedding, *self.matrices.values()]

    def saving(self) -> Save:
        tensors = {name: value.detach().half().clone() for name, value in self.matrices.items()}
        tensors["modifier_token"] = self.embedding.detach().half()[0].clone()
        return lambda folder: _write(folder / "custom_diffusion.safetensors", tensors)

    def encode(self, templates: Sequence[int], prior: bool = False) -> Tensor:
        return _with_word(self, templates) if not prior else super().encode(templates, prior)


class DreamBooth(Learner):
    """The whole UNet (arXiv 2208.12242)."""

    def prepare(self) -> list[nn.Parameter]:
        self.unet.requires_grad_(True)
        return list(self.unet.parameters())

    def saving(self) -> Save:
        tensors = {name: value.detach().half().clone() for name, value in self.unet.state_dict().items()}
        return lambda folder: _write(folder / "diffusion_pytorch_model.fp16.safetensors", tensors)


class DreamBoothPrior(DreamBooth):
    """With the base model's own pictures of the superclass against forgetting it."""

    prior = True


LEARNERS: dict[str, type[Learner]] = {
    "textual-inversion": TextualInversion, "lora-4": Lora, "lora-values-1": LoraValues,
    "custom-diffusion": CustomDiffusion, "dreambooth": DreamBooth, "dreambooth-prior": DreamBoothPrior,
}  # fmt: skip


def train_baseline(
    plan: Plan, work: Path, subject: Subject, name: str, rate: float, steps: int, keep: Keep, masks: bool = True,
    seed: int = 0,
) -> None:  # fmt: skip
    """Train one method on one subject; `keep` gets the step and what saves the state, at each checkpoint."""
    base = base_model()
    samples = samples_of(plan, work, subject)
    weights = samples.masks if masks else torch.ones_like(samples.masks)
    learner = LEARNERS[name](base, subject)
    own_count = plan.batch_size // 2 if learner.prior else plan.batch_size
    prior = prior_latents(plan, work, subject.noun) if learner.prior else samples.latents[:0]
    noising, placement = Noising.of(base), Placement.pick("cpu")
    optimiser = torch.optim.AdamW(learner.parameters, lr=rate, weight_decay=1e-2)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    with installed(learner.unet):
        for step in range(1, steps + 1):
            picked = [rng.randrange(len(samples.latents)) for _ in range(own_count)]
            prior_rows = [rng.randrange(len(prior)) for _ in range(plan.batch_size - own_count)]
            latents = torch.cat([samples.latents[picked], prior[prior_rows]])
            error_weights = torch.cat([weights[picked], torch.ones(len(prior_rows), *weights.shape[1:])])
            templates = [rng.randrange(len(TEMPLATES)) for _ in range(plan.batch_size)]
            noise = torch.randn(latents.shape, generator=generator)
            count = noising.scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, count, (plan.batch_size,), generator=generator)
            noisy, target = noising(latents, noise, timesteps)
            states = learner.encode(templates[:own_count])
            if prior_rows:
                states = torch.cat([states, learner.encode(templates[own_count:], prior=True)])
            with placement.autocast():
                output = learner.unet(noisy, timesteps, states).sample.float()
            loss = masked_error(output[:own_count], target[:own_count], error_weights[:own_count])
            if prior_rows:
                loss = loss + (output[own_count:] - target[own_count:]).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learner.parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            if not np.isfinite(float(loss.detach())):
                raise TrainingError(f"{name} at a rate of {rate}: the loss is no number at step {step}")
            if step in plan.checkpoints or step == steps:
                keep(step, learner.saving())


def _with_word(learner: Any, templates: Sequence[int]) -> Tensor:
    """Templates with the word that is being learned, each encoded once."""
    used = sorted(set(templates))
    ids = as_tensors([learner.prompts[0][index] for index in used], torch.device("cpu"))
    encoded: Tensor = learner.base.encode(ids, [learner.embedding]).hidden.float()
    return encoded[torch.tensor([used.index(index) for index in templates])]


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with writing(path) as file:
        file.write(serialise(tensors))
