"""Pictures of a concept that is being trained, drawn by the base model itself.

The algebra of `perfusion.concept.edit`, diffusers' DDIM (for LCM models their own sampler), and the UNet that is in
memory anyway: for choosing among snapshots and for a concept's card. Drawing for its own sake is the runtime's work,
or `perfusion.diffusers`'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perfusion.base.attention import installed, key_projections
from perfusion.base.base_model import BaseModel
from perfusion.base.encoding import Encodings
from perfusion.bundle.guidance import is_guided
from perfusion.concept.blending import blended, readings
from perfusion.concept.concept_file import Concept
from perfusion.concept.edit import condition, locked_keys
from perfusion.concept.words import Frame, TokenizedPrompt, Word, aligned, tokenize
from perfusion.errors import TrainingError
from perfusion.training.placement import Placement, on_device
from perfusion.training.templates import as_tensors, input_ids, word_ids

__all__ = ["draw"]

_SETTINGS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": False,
    "clip_sample": False, "clip_sample_range": 1.0, "trained_betas": None, "rescale_betas_zero_snr": False,
}  # fmt: skip
"""What the sampler is told of the base's scheduler; the value is for schedulers that do not know the setting."""
_LCM_SETTINGS = ("original_inference_steps", "timestep_scaling")
"""What only a consistency model's scheduler has; its weights are not made for DDIM's steps."""


@torch.no_grad()
def draw(
    base: BaseModel,
    concept: Concept,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 20,
    guidance_scale: float | None = None,
    placement: Placement | None = None,
    batch_size: int = 4,
    report: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """Draw each prompt with the seed at the same place, under the local lock, in the base model's own size.

    A prompt that names the concept is edited with the concept's own bias, temperature and strength; one that does not
    is the base model's. The picture is the runtime's with `ddim` for the same prompt, seed and steps, up to rounding;
    of models that were distilled to consistency it is diffusers' own LCM sampler's.

    Args:
        guidance_scale: None: the base model's.
        placement: where the base model is, and what its UNet computes in; None: where it is, as its weights are.
        batch_size: pictures at once; guidance doubles that.
        report: called with the number of pictures that are done.

    Raises:
        TrainingError: the pictures are not finite.
    """
    placement = placement or Placement(next(base.unet.parameters()).device)
    scale = base.guidance_scale if guidance_scale is None else guidance_scale
    guided = is_guided(scale, reads_scale=base.unet.config.time_cond_proj_dim is not None)
    targets = _targets(base, concept)
    pictures: list[Image.Image] = []
    with installed(base.unet):
        for start in range(0, len(prompts), batch_size):
            rows = [_row(base, concept, prompt) for prompt in prompts[start : start + batch_size]]
            if guided:
                rows += [_plain(base, "")] * len(rows)
            latents = _denoise(
                base, rows, targets, seeds[start : start + batch_size], num_inference_steps,
                scale if guided else 1.0, placement,
            )  # fmt: skip
            pictures += _decode(base, latents)
            if report:
                report(len(pictures))
    return pictures


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """What the UNet reads of one prompt: (tokens, text_dim), (tokens, rows) and (pooled_dim,)."""

    states: Tensor
    gate: Tensor | None
    pooled: Tensor | None


def _row(base: BaseModel, concept: Concept, prompt: str) -> _Row:
    """A prompt with the edit of the concept, if it names it."""
    if concept.token not in prompt:
        return _plain(base, prompt)
    ways = readings({concept.token: concept.strength})
    weights = [way.weight for way in ways]
    whole = _tokenized(base, concept, prompt, active=True)
    states, pooled = [], []
    for way in ways:
        tokens = _tokenized(base, concept, prompt, active=bool(way.active))
        encoded = _encode(base, concept, tokens)
        # a superclass of several words has other places than the learned word
        states.append(encoded.hidden[0].float().cpu().numpy()[aligned(whole[0], tokens[0])])
        if encoded.pooled is not None:
            pooled.append(encoded.pooled[0].float().cpu().numpy())
    edited = condition(
        blended(states, weights), direction=concept.direction, dual=concept.dual, energy=concept.energy,
        bias=concept.bias, temperature=concept.temperature, strength=concept.strength,
    )  # fmt: skip
    return _Row(
        states=torch.from_numpy(edited.value_states),
        gate=torch.from_numpy(edited.value_gate),
        pooled=torch.from_numpy(blended(pooled, weights)) if pooled else None,
    )


def _tokenized(base: BaseModel, concept: Concept, prompt: str, *, active: bool) -> list[TokenizedPrompt]:
    """A prompt for each text encoder, with the learned word in it or with its superclass."""
    word = Word(rows=concept.rows, superclass=concept.superclass, active=active)

    def tokenized(tokenizer: Any, vocab_size: int) -> TokenizedPrompt:
        def encode(text: str) -> tuple[list[int], list[int]]:
            ids = word_ids(tokenizer, text)
            return ids, [0] * len(ids)  # where they begin only weights would ask

        frame = Frame(
            vocab_size=vocab_size, context_length=base.context_length, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return tokenize(prompt, {concept.token: word}, encode, frame, lambda _: True)

    return [
        tokenized(tokenizer, size) for tokenizer, size in zip(base.tokenizers, base.vocab_sizes, strict=True)
    ]


def _encode(base: BaseModel, concept: Concept, prompt: Sequence[TokenizedPrompt]) -> Encodings:
    """What the text encoders say of one prompt, without the edit."""
    device = next(base.text_encoder.parameters()).device
    tables = [torch.from_numpy(np.array(table)).to(device) for table in concept.embeddings]
    return base.encode([torch.from_numpy(tokens.input_ids[None]).to(device) for tokens in prompt], tables)


def _plain(base: BaseModel, prompt: str) -> _Row:
    """A prompt as the base model reads it. An empty one of SDXL is zeros, as diffusers' pipeline has it."""
    device = next(base.text_encoder.parameters()).device
    encoded = base.encode(as_tensors([input_ids(base, prompt + "{}", [[] for _ in base.tokenizers])], device))
    hidden, pooled = encoded.hidden[0].float().cpu(), encoded.pooled
    if pooled is not None and not prompt:
        return _Row(states=torch.zeros_like(hidden), gate=None, pooled=torch.zeros_like(pooled[0]).cpu())
    return _Row(states=hidden, gate=None, pooled=None if pooled is None else pooled[0].cpu())


def _targets(base: BaseModel, concept: Concept) -> dict[str, Tensor]:
    """The concept's targets for all layers, on the UNet's device."""
    device = next(base.unet.parameters()).device
    keys = concept.target_keys
    if keys is None or concept.base_fingerprint != base.fingerprint:
        keys = locked_keys(key_projections(base.unet).float().cpu().numpy(), concept.superclass_encoding)
    return {
        "concept_keys": torch.from_numpy(np.array(keys)).to(device),
        "concept_values": torch.from_numpy(np.array(concept.target_values)).to(device),
    }


def _denoise(
    base: BaseModel, rows: Sequence[_Row], targets: dict[str, Tensor], seeds: Sequence[int], steps: int, scale: float,
    placement: Placement,
) -> Tensor:  # fmt: skip
    """Latents (pictures, channels, h, w) of the first len(seeds) rows; the others, if any, are their unguided ones."""
    unet: Any = base.unet
    device = placement.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler, options = _sampler(base, generators)
    scheduler.set_timesteps(steps)
    shape = (1, int(unet.config.in_channels), *[base.resolution // base.downscale] * 2)
    latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    latents = latents.to(device) * scheduler.init_noise_sigma
    states = torch.stack([row.states for row in rows]).to(device)
    count = len(targets["concept_values"])
    gate = torch.stack(
        [states.new_zeros(len(row.states), count).cpu() if row.gate is None else row.gate for row in rows]
    ).to(device)
    pooled = [row.pooled for row in rows if row.pooled is not None]
    conditions = base.unet_conditions(torch.stack(pooled).to(device) if pooled else None, len(rows))
    edit = {"key_gate": gate, "value_gate": gate, **targets}
    for timestep in scheduler.timesteps:
        with placement.autocast():
            both = torch.cat([latents] * (len(rows) // len(seeds)))
            output = unet(both, timestep, states, cross_attention_kwargs=edit, **conditions).sample.float()
        prediction, *unguided = output.split(len(seeds))
        if unguided:
            prediction = unguided[0] + scale * (prediction - unguided[0])
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
    return torch.as_tensor(latents)


def _sampler(base: BaseModel, generators: list[torch.Generator]) -> tuple[Any, dict[str, Any]]:
    """The scheduler, and what its steps take besides: LCM's add noise anew, each picture's from its own generator."""
    from diffusers import DDIMScheduler, LCMScheduler

    settings = {name: base.scheduler.get(name, value) for name, value in _SETTINGS.items()}
    if not all(name in base.scheduler for name in _LCM_SETTINGS):
        return DDIMScheduler(**settings), {}
    own = {name: base.scheduler[name] for name in _LCM_SETTINGS}
    return LCMScheduler(**settings, **own), {"generator": generators}


def _decode(base: BaseModel, latents: Tensor) -> list[Image.Image]:
    """Latents to RGB pictures, one at a time: a decoder needs the most memory of all parts."""
    vae: Any = base.vae
    pictures = []
    with on_device(vae, latents.device):
        for latent in latents.split(1):
            sample = (
                vae.decode((latent / vae.config.scaling_factor).to(vae.dtype)).sample[0].float().cpu().numpy()
            )
            if not np.isfinite(sample).all():
                raise TrainingError(
                    "A validation picture came out as numbers that are not finite. Use --precision fp32, or --select "
                    "last to draw none."
                )
            levels = np.rint((sample / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)
            pictures.append(Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0))))
    return pictures
