"""Training of pocket's autoencoder, on 64-pixel crops of the world's scenes and then on whole ones.

Loss: absolute error, half the squared error, half the error of the edges, and a light pull of the latents towards a
unit Gaussian. Hidden convolutions learn by Muon, the rest by AdamW.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from recipes.pocket.optim import (
    Average,
    Muon,
    load_checkpoint,
    mixed_precision,
    rate,
    save_checkpoint,
    set_rate,
)
from recipes.pocket.world import Taste, World

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """How the autoencoder is trained."""

    steps: int = 13_500
    batch: int = 8
    crop: int = 64
    whole_from: float = 0.96
    """From this share of the steps on it sees whole pictures, a quarter as many: normalisation by groups has other
    statistics over a crop, and an autoencoder that never saw more shifts the colours of a picture."""
    adam_lr: float = 1e-3
    muon_lr: float = 0.018
    kl: float = 3e-3
    """Weight of the latents' divergence from a unit Gaussian; at 2e-4 they spread to a deviation of 15."""
    average: float = 0.998
    seed: int = 0
    save_every: int = 60
    """Seconds between checkpoints."""


SCENES = Taste(pairs=0.25, counts=0.15, recoloured=0.6)


def split_parameters(
    module: torch.nn.Module, outer: tuple[str, ...]
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Weight matrices for Muon and everything else for AdamW; names containing one of `outer` go to AdamW."""
    hidden: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, param in module.named_parameters():
        inner = param.ndim >= 2 and min(param.shape[:2]) >= 8 and not any(part in name for part in outer)
        (hidden if inner else rest).append(param)
    return hidden, rest


def psnr(picture: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over pictures in [−1, 1]."""
    error = ((picture.clamp(-1, 1) - reference) / 2).square().mean((1, 2, 3))
    return float((-10 * torch.log10(error)).mean())


@torch.no_grad()
def reconstruct(vae: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Encode (to the mode) and decode pictures in [−1, 1]."""
    return vae.decode(vae.encode(pictures).latent_dist.mode()).sample  # type: ignore[operator]


def loss_of(
    vae: torch.nn.Module, crops: torch.Tensor, config: VaeConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss and, for the log, the mean absolute error."""
    with mixed_precision(crops.device):
        latent = vae.encode(crops).latent_dist  # type: ignore[operator]
        mean, logvar = latent.mean.float(), latent.logvar.float()
        output = vae.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)).sample.float()  # type: ignore[operator]
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / crops.numel()
    error = output - crops
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    edges = across.abs().mean() + down.abs().mean()
    absolute = error.abs().mean()
    return absolute + 0.5 * error.square().mean() + 0.5 * edges + config.kl * divergence, absolute.detach()


def draw_pictures(world: World, rng: random.Random, config: VaeConfig, step: int) -> torch.Tensor:
    """Random crops of fresh scenes, four from each, or towards the end whole scenes: channels last, in [−1, 1]."""
    batch, crop = config.batch, config.crop
    pictures = world.render([world.sample(rng, SCENES) for _ in range(max(1, batch // 4))])[0] * 2 - 1
    if step >= config.whole_from * config.steps:
        return pictures.contiguous(memory_format=torch.channels_last)
    corners = [
        (rng.randrange(world.size - crop + 1), rng.randrange(world.size - crop + 1)) for _ in range(batch)
    ]
    crops = [pictures[i % len(pictures), :, y : y + crop, x : x + crop] for i, (y, x) in enumerate(corners)]
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def train_vae(
    vae: torch.nn.Module, world: World, config: VaeConfig, checkpoint: Path, minutes: float
) -> bool:
    """Train until the steps are done (True) or the minutes are over (False); the module ends with averaged weights.

    Resumes from `checkpoint` when it exists, at exactly the state it was left in.
    """
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    vae.train().to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    hidden, rest = split_parameters(vae, ("conv_in", "decoder.conv_out", "post_quant_conv"))
    optimisers: list[torch.optim.Optimizer] = [
        Muon(hidden, config.muon_lr),
        torch.optim.AdamW(rest, config.adam_lr, betas=(0.9, 0.99), weight_decay=0),
    ]
    average = Average(vae, config.average)
    step = 0
    if checkpoint.exists():
        groups, facts = load_checkpoint(checkpoint, optimisers, rng)
        vae.load_state_dict(groups["live"])
        average.restore(groups["average"], facts["average_steps"])
        step = facts["step"]
    else:
        with torch.no_grad():
            vae.quant_conv.bias[4:] = -5.0  # type: ignore[operator, union-attr]  # start with little latent noise
    held_out = world.render([world.sample(random.Random(7), SCENES) for _ in range(32)])[0] * 2 - 1
    started = saved = time.monotonic()
    first, shown = step, 0.0
    while step < config.steps and time.monotonic() - started < 60 * minutes:
        set_rate(optimisers, rate(step, config.steps, decay_from=0.3))
        loss, absolute = loss_of(vae, draw_pictures(world, rng, config, step), config)
        vae.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        average.update()
        step += 1
        shown = 0.98 * shown + 0.02 * float(absolute) if step > first + 1 else float(absolute)
        if time.monotonic() - saved > config.save_every or step == config.steps:
            saved = time.monotonic()
            facts = {"step": step, "average_steps": average.steps}
            save_checkpoint(
                checkpoint, {"live": vae.state_dict(), "average": average.state}, optimisers, rng, facts
            )
            with average.applied(), mixed_precision(held_out.device):
                quality = psnr(reconstruct(vae, held_out).float(), held_out)
            speed = (step - first) / (saved - started)
            logger.info("step %d of %d, %.1f steps/s, %.0f min left, error %.4f, %.2f dB", step, config.steps, speed,
                        (config.steps - step) / speed / 60, shown, quality)  # fmt: skip
    vae.load_state_dict(average.state, strict=False)
    vae.eval()
    return step >= config.steps
