"""Train one concept: pictures in, a `Concept` out."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perfusion import __version__
from perfusion.attention import installed, key_projections, value_projections
from perfusion.base import BaseModel, encode, load_base, token_embedding
from perfusion.concept import Concept
from perfusion.errors import DeviceError, TrainingError
from perfusion.training.config import TrainingConfig
from perfusion.training.covariance import cached_second_moment, inverse, load_captions
from perfusion.training.pictures import find_pictures, load_picture, prepare
from perfusion.training.prompts import TEMPLATES, as_tensor, check_superclass, check_token, input_ids
from perfusion.training.rank_one import RankOneEdit

__all__ = ["masked_error", "superclass_encoding", "train_concept"]

logger = logging.getLogger(__name__)

Report = Callable[[int, float], None]
"""Called after every step with the number of steps done and the loss."""


def train_concept(
    images: str | Path,
    config: TrainingConfig,
    *,
    model: str | Path | BaseModel | None = None,
    report: Report | None = None,
    say: Callable[[str], None] = logger.info,
) -> Concept:
    """Teach the base model what the pictures show.

    Args:
        images: folder with a few pictures of one object.
        config: how to train; its superclass says what kind of thing the object is.
        model: diffusers folder or an opened base model; None: the embedded pocket model.
        report: called after every step.
        say: called with a line about what is done before the first step.

    Returns:
        The concept, in memory. The base model is as it was, and so is torch's own random generator.

    Raises:
        TrainingError: the pictures, the superclass or the options cannot be used, or the memory does not suffice.
        ModelError: the base model cannot be used.
        DeviceError: the device asked for is not there.
    """
    pictures = [load_picture(path, config.masks) for path in find_pictures(Path(images))]
    base = model if isinstance(model, BaseModel) else load_base(Path(model) if model else None)
    check_token(base, config.token)
    subject = check_superclass(base, config.superclass)
    device = pick_device(config.device)
    if config.rows > 2:
        logger.warning("%d rows wrecked the backgrounds of small models; one is usually best", config.rows)
    facts = {
        "steps": str(config.steps), "seed": str(config.seed), "pictures": str(len(pictures)),
        "batch_size": str(config.batch_size),
    }  # fmt: skip
    try:
        with borrowed(base, device):
            edit, super_encoding = start_edit(base, subject, config, say)
            say(f"encoding {len(pictures)} pictures in {config.crops} variants each")
            latents, masks = encode_pictures(base, pictures, config)
            with installed(base.unet):
                optimise(base, edit.to(device).train(), latents, masks, config, report)
            return finish(base, edit.eval(), super_encoding, config, facts)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device has not enough memory for {config.batch_size} samples a step; give a smaller --batch-size"
        ) from error


@contextmanager
def borrowed(base: BaseModel, device: torch.device) -> Iterator[None]:
    """The base model on `device`, frozen and in evaluation mode; afterwards it is where and as it was."""
    parts: tuple[Any, ...] = (base.unet, base.text_encoder, base.vae)
    homes = [(next(part.parameters()).device, part.training) for part in parts]
    trainable = [param for part in parts for param in part.parameters() if param.requires_grad]
    try:
        for part in parts:
            part.to(device).requires_grad_(False).eval()
        yield
    finally:
        for part, (home, training) in zip(parts, homes, strict=True):
            part.to(home).train(training)
        for param in trainable:
            param.requires_grad_(True)


def pick_device(asked: str) -> torch.device:
    """The device to train on; asking for one that is not there is an error, not a slow surprise."""
    if asked not in ("auto", "cpu", "cuda"):
        raise TrainingError(f"the device is {asked!r}, expected auto, cpu or cuda")
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise DeviceError(
            "no CUDA device was found; use --device cpu, or install a CUDA build of torch and its driver"
        )
    return torch.device("cuda" if available and asked != "cpu" else "cpu")


def autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """bfloat16 where it is asked for, or with `auto` where the hardware computes in it; else None."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else None
    # emulated bfloat16 is slower than float32, and torch counts it as supported when not told otherwise
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # the library with the kernels is missing on some platforms
        native = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else None


@torch.no_grad()
def superclass_encoding(base: BaseModel, subject: list[int]) -> Tensor:
    """ē_super: the encoding of the superclass's last token, the mean over all templates. (text_dim,)."""
    rows = [input_ids(base, template, subject) for template in TEMPLATES]
    device = next(base.text_encoder.parameters()).device
    encodings = encode(base.text_encoder, as_tensor([ids for ids, _ in rows], device))
    return torch.stack([encoding[last] for encoding, (_, last) in zip(encodings, rows, strict=True)]).mean(0)


@torch.no_grad()
def start_edit(
    base: BaseModel, subject: list[int], config: TrainingConfig, say: Callable[[str], None]
) -> tuple[RankOneEdit, Tensor]:
    """The edit before the first step: the word, the direction and the targets are the superclass's.

    Returns:
        The edit and ē_super, (rows, text_dim).
    """
    table = token_embedding(base.text_encoder).weight
    # one placeholder stands for the superclass's last word; more stand for its last words, the first one repeated
    words = [subject[max(0, len(subject) - config.rows + row)] for row in range(config.rows)]
    embeddings = table[torch.tensor(words, device=table.device)].float().clone()
    if config.rows > len(subject):
        extra = config.rows - len(subject)
        noise = torch.randn(extra, table.shape[1], generator=torch.Generator().manual_seed(config.seed))
        embeddings[:extra] += 0.5 * table.float().std() * noise.to(table.device)
    encoding = superclass_encoding(base, subject).float()
    super_encoding = encoding.repeat(config.rows, 1)
    direction = encoding[None] if config.rows == 1 else placeholder_encodings(base, embeddings)
    moment = cached_second_moment(base, load_captions(base, config.captions), say)
    edit = RankOneEdit(
        embeddings=embeddings,
        direction=direction,
        target_keys=super_encoding @ key_projections(base.unet).float().T,
        target_values=super_encoding @ value_projections(base.unet).float().T,
        inverse_moment=inverse(moment),
        bias=config.bias,
        temperature=config.temperature,
        decay=config.direction_decay,
        gradient=config.direction_gradient,
    )
    return edit, super_encoding


def concept_prompt(base: BaseModel, template: str, rows: int) -> tuple[list[int], int]:
    """A template with the concept's placeholders: its ids and the position of the last placeholder."""
    return input_ids(base, template, [base.vocab_size + row for row in range(rows)])


@torch.no_grad()
def placeholder_encodings(base: BaseModel, embeddings: Tensor) -> Tensor:
    """The mean encoding of each placeholder token over all templates. (rows, text_dim)."""
    rows = len(embeddings)
    prompts = [concept_prompt(base, template, rows) for template in TEMPLATES]
    encodings = encode(
        base.text_encoder, as_tensor([ids for ids, _ in prompts], embeddings.device), embeddings
    ).float()
    return torch.stack(
        [e[last - rows + 1 : last + 1] for e, (_, last) in zip(encodings, prompts, strict=True)]
    ).mean(0)


@torch.no_grad()
def encode_pictures(base: BaseModel, pictures: list[Any], config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """Every variant of every picture as scaled latents (n, 4, h, w), with soft masks (n, 1, h, w). Encoded once."""
    vae: Any = base.vae
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    resolution = int(base.unet.config.sample_size) * factor
    images, masks = prepare(pictures, resolution, config.crops, config.flip, config.seed)
    device = next(vae.parameters()).device
    latents = [vae.encode(batch.to(device)).latent_dist.mode() for batch in torch.from_numpy(images).split(4)]
    scaled = torch.cat(latents).float() * vae.config.scaling_factor
    return scaled, F.adaptive_avg_pool2d(torch.from_numpy(masks), scaled.shape[-2:]).to(device)


def masked_error(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Σ m (target − output)² / Σ m over a batch: (batch, channels, h, w) and a soft mask (batch, 1, h, w).

    A picture whose mask is empty counts everywhere. With m = 1 it is the mean squared error; scaling m changes nothing.
    """
    empty = mask.flatten(1).sum(1) <= 0
    mask = torch.where(empty.view(-1, 1, 1, 1), torch.ones_like(mask), mask)
    return (mask * (output - target).square()).sum() / (mask.sum() * output.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Noising:
    """The base model's forward process and what its UNet predicts."""

    scheduler: Any
    prediction: str

    @classmethod
    def of(cls, base: BaseModel) -> Noising:
        """The process that a base model's scheduler settings describe."""
        from diffusers import DDPMScheduler

        known = {key: value for key, value in base.scheduler.items() if key in _SCHEDULE_KEYS}
        scheduler = DDPMScheduler(**known)
        prediction = str(base.scheduler.get("prediction_type", "epsilon"))
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise TrainingError(
                f"the base model predicts {prediction!r}, expected epsilon, v_prediction or sample"
            )
        return cls(scheduler=scheduler, prediction=prediction)

    def __call__(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents and the target of the UNet."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        if self.prediction == "epsilon":
            return noisy, noise
        if self.prediction == "sample":
            return noisy, latents
        return noisy, self.scheduler.get_velocity(latents, noise, timesteps)


_SCHEDULE_KEYS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
)  # fmt: skip


def optimise(
    base: BaseModel,
    edit: RankOneEdit,
    latents: Tensor,
    masks: Tensor,
    config: TrainingConfig,
    report: Report | None,
) -> None:
    """The training loop. Adam at the paper's two rates; its weight decay would pull the values towards zero."""
    device = latents.device
    optimiser = torch.optim.Adam(
        [
            {"params": [edit.embeddings], "lr": config.lr_embedding},
            {"params": [edit.target_values], "lr": config.lr_values},
        ]
    )
    rng, generator = random.Random(config.seed), torch.Generator().manual_seed(config.seed)
    noising, dtype = Noising.of(base), autocast_dtype(device, config.precision)
    prompts = [concept_prompt(base, template, config.rows) for template in TEMPLATES]
    for step in range(config.steps):
        picked = torch.tensor([rng.randrange(len(latents)) for _ in range(config.batch_size)], device=device)
        chosen = [rng.randrange(len(prompts)) for _ in range(config.batch_size)]
        noise = torch.randn(latents[picked].shape, generator=generator).to(device)
        timesteps = torch.randint(
            0, noising.scheduler.config.num_train_timesteps, (config.batch_size,), generator=generator
        )
        noisy, target = noising(latents[picked], noise, timesteps.to(device))
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            output = predict(base, edit, prompts, chosen, noisy, timesteps.to(device))
        loss = masked_error(output, target, masks[picked])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {step + 1}; use --precision fp32 or a lower rate"
            )
        if report:
            report(step + 1, value)


def predict(
    base: BaseModel, edit: RankOneEdit, prompts: list[tuple[list[int], int]], chosen: list[int],
    noisy: Tensor, timesteps: Tensor,
) -> Tensor:  # fmt: skip
    """The UNet's prediction for noisy latents under the chosen prompts, through the edit. float32."""
    used = sorted(set(chosen))  # a template drawn twice is encoded once
    ids = as_tensor([prompts[index][0] for index in used], noisy.device)
    # in float32 also under autocast: s is what is left after large parts cancel, and 16 bits move it by 0.05
    with torch.autocast(noisy.device.type, enabled=False):
        encodings = encode(base.text_encoder, ids, edit.embeddings).float()
    rows = len(edit.embeddings)
    spots = [
        encodings[row, prompts[index][1] - rows + 1 : prompts[index][1] + 1] for row, index in enumerate(used)
    ]
    weights = torch.tensor([chosen.count(index) for index in used], device=noisy.device, dtype=torch.float32)
    concept = (torch.stack(spots) * weights[:, None, None]).sum(0) / weights.sum()
    edited = edit(encodings, concept)
    where = torch.tensor([used.index(index) for index in chosen], device=noisy.device)
    states, gate = edited.encodings[where], edited.gate[where]
    unet: Any = base.unet
    output: Tensor = unet(
        noisy,
        timesteps,
        states,
        cross_attention_kwargs={
            "key_gate": gate,
            "value_gate": gate,
            "concept_keys": edit.target_keys,
            "concept_values": edit.target_values,
        },
    ).sample
    return output.float()


@torch.no_grad()
def finish(
    base: BaseModel, edit: RankOneEdit, super_encoding: Tensor, config: TrainingConfig, facts: dict[str, str]
) -> Concept:
    """The trained edit as a concept."""
    dual, energy = edit.dual(edit.direction)

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().cpu().float().numpy()

    return Concept(
        token=config.token,
        superclass=config.superclass,
        base=base.family,
        base_fingerprint=base.fingerprint,
        direction=array(edit.direction),
        dual=array(dual),
        energy=array(energy),
        superclass_encoding=array(super_encoding),
        embeddings=(array(edit.embeddings),),
        target_values=array(edit.target_values),
        target_keys=array(edit.target_keys),
        created_with=f"perfusion-edge {__version__}",
        training=facts,
    )
