"""Training of pocket's autoencoder, on 64-pixel crops of the world's scenes.

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

from perfusion.pocket.optim import Average, Muon, load_checkpoint, rate, save_checkpoint, set_rate
from perfusion.pocket.world import Taste, World

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """How the autoencoder is trained."""

    steps: int = 9000
    batch: int = 8
    crop: int = 64
    adam_lr: float = 1e-3
    muon_lr: float = 0.018
    kl: float = 3e-3
    """Weight of the latents' divergence from a unit Gaussian; at 2e-4 they spread to a deviation of 15."""
    decoder_only: bool = False
    """Train the decoder alone, on the latents of a finished encoder: pictures get sharper and the latents, hence a
    UNet trained on them, stay as they are."""
    latent_noise: float = 0.08
    """With `decoder_only`: noise on the latents, in deviations, since a UNet's latents are never quite clean."""
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
        if not param.requires_grad:
            continue
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


def encode_noisily(
    vae: torch.nn.Module, crops: torch.Tensor, config: VaeConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents for the decoder, and their divergence from a unit Gaussian per number of the picture."""
    if config.decoder_only:
        with torch.no_grad():
            mean = vae.encode(crops).latent_dist.mode().float()  # type: ignore[operator]
        return mean + config.latent_noise * mean.std() * torch.randn_like(mean), torch.zeros(())
    latent = vae.encode(crops).latent_dist  # type: ignore[operator]
    mean, logvar = latent.mean.float(), latent.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / crops.numel()
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean), divergence


def loss_of(
    vae: torch.nn.Module, crops: torch.Tensor, config: VaeConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss and, for the log, the mean absolute error."""
    with torch.autocast(crops.device.type, torch.bfloat16):
        latents, divergence = encode_noisily(vae, crops, config)
        output = vae.decode(latents).sample.float()  # type: ignore[operator]
    error = output - crops
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    edges = across.abs().mean() + down.abs().mean()
    absolute = error.abs().mean()
    return absolute + 0.5 * error.square().mean() + 0.5 * edges + config.kl * divergence, absolute.detach()


def draw_crops(world: World, rng: random.Random, batch: int, crop: int) -> torch.Tensor:
    """Random crops of fresh scenes, four from each. (batch, 3, crop, crop) in [−1, 1], channels last."""
    pictures = world.render([world.sample(rng, SCENES) for _ in range(max(1, batch // 4))])[0] * 2 - 1
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
    if config.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
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
    elif not config.decoder_only:
        with torch.no_grad():
            vae.quant_conv.bias[4:] = -5.0  # type: ignore[operator, union-attr]  # start with little latent noise
    held_out = world.render([world.sample(random.Random(7), SCENES) for _ in range(32)])[0] * 2 - 1
    started = saved = time.monotonic()
    first, shown = step, 0.0
    while step < config.steps and time.monotonic() - started < 60 * minutes:
        set_rate(optimisers, rate(step, config.steps, decay_from=0.3))
        loss, absolute = loss_of(vae, draw_crops(world, rng, config.batch, config.crop), config)
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
            with average.applied(), torch.autocast(held_out.device.type, torch.bfloat16):
                quality = psnr(reconstruct(vae, held_out).float(), held_out)
            speed = (step - first) / (saved - started)
            logger.info("step %d of %d, %.1f steps/s, %.0f min left, error %.4f, %.2f dB", step, config.steps, speed,
                        (config.steps - step) / speed / 60, shown, quality)  # fmt: skip
    vae.load_state_dict(average.state, strict=False)
    vae.eval()
    return step >= config.steps
