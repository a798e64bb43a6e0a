"""Training of pocket's autoencoder, on 64-pixel crops of the world's scenes and then on whole ones.

Loss: absolute error, half the squared error, half the error of the edges, and a light pull of the latents towards a
unit Gaussian. Hidden convolutions learn by Muon, the rest by AdamW.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

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


SCENES = Taste(pairs=0.25, counts=0.15, recoloured=0.6)


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """How the autoencoder is trained."""

    steps: int = 13_500
    batch: int = 8
    crop: int = 64
    whole_from: float = 0.96
    """From this share of the steps on it sees whole pictures, a quarter as many: normalisation by groups has other
    statistics over a crop, and an autoencoder that never saw more shifts the colours of a picture."""
    whole_every: int = 0
    """Before that, every how many steps there are whole pictures; never by default."""
    edges: float = 0.0
    """How much more an error weighs on the strongest edge of a picture than on a flat."""
    adam_lr: float = 1e-3
    muon_lr: float = 0.018
    kl: float = 3e-3
    """Weight of the latents' divergence from a unit Gaussian; at 2e-4 they spread to a deviation of 15."""
    average: float = 0.998
    seed: int = 0
    save_every: int = 60
    """Seconds between checkpoints."""
    taste: Taste = SCENES
    """The scenes that it sees."""


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
    error = (output - crops) * edge_weights(crops, config.edges)
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    edges = across.abs().mean() + down.abs().mean()
    absolute = error.abs().mean()
    return absolute + 0.5 * error.square().mean() + 0.5 * edges + config.kl * divergence, absolute.detach()


def edge_weights(pictures: torch.Tensor, extra: float) -> torch.Tensor:
    """1 on flats … 1 + extra on strong edges, each picture's mean 1. (batch, 1, height, width)."""
    grey = F.pad(pictures.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
    down = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    weights = 1 + extra * (across.square() + down.square()).sqrt().clamp(max=1)
    return weights / weights.mean((1, 2, 3), keepdim=True)


def draw_pictures(world: World, rng: random.Random, config: VaeConfig, step: int) -> torch.Tensor:
    """Random crops of fresh scenes, four from each, or towards the end whole scenes: channels last, in [−1, 1]."""
    batch, crop = config.batch, config.crop
    pictures = world.render([world.sample(rng, config.taste) for _ in range(max(1, batch // 4))])[0] * 2 - 1
    regularly = config.whole_every and step % config.whole_every == 0
    if regularly or step >= config.whole_from * config.steps:
        return pictures.contiguous(memory_format=torch.channels_last)
    corners = [
        (rng.randrange(world.size - crop + 1), rng.randrange(world.size - crop + 1)) for _ in range(batch)
    ]
    crops = [pictures[i % len(pictures), :, y : y + crop, x : x + crop] for i, (y, x) in enumerate(corners)]
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


Pictures = Mapping[str, torch.Tensor]
"""Fixed pictures in [−1, 1] by what they show, which the quality is read from."""


def gauge_pictures(world: World, seed: int = 7, count: int = 32) -> Pictures:
    """The same scenes at every call."""
    with world.seeded(seed):
        rng = random.Random(seed)
        return {"scenes": world.render([world.sample(rng, SCENES) for _ in range(count)])[0] * 2 - 1}


def qualities(vae: torch.nn.Module, pictures: Pictures) -> dict[str, float]:
    """How well pictures come back, in dB."""
    return {name: psnr(reconstruct(vae, picture).float(), picture) for name, picture in pictures.items()}


def _optimisers_for(vae: torch.nn.Module, config: VaeConfig) -> list[torch.optim.Optimizer]:
    hidden, rest = split_parameters(vae, ("conv_in", "decoder.conv_out", "post_quant_conv"))
    adam = torch.optim.AdamW(rest, config.adam_lr, betas=(0.9, 0.99), weight_decay=0)
    return [Muon(hidden, config.muon_lr), adam]


def train_vae(
    vae: torch.nn.Module, world: World, config: VaeConfig, checkpoint: Path, minutes: float, *,
    weights: Mapping[str, torch.Tensor] | None = None, begin: int = 0, gauge: Pictures | None = None,
    stop: int | None = None,
) -> bool:  # fmt: skip
    """Train until the steps are done (True) or the minutes are over (False); the module ends with averaged weights.

    Resumes from `checkpoint` when it exists, at exactly the state it was left in.

    Args:
        vae: the autoencoder, changed in place.
        world: what it sees.
        config: how.
        checkpoint: where the state is kept.
        minutes: how long at most.
        weights: what to begin with, where there is no checkpoint yet.
        begin: the step that these weights have reached.
        gauge: pictures to read the quality from.
        stop: a step to stop at, before the last.
    """
    torch.manual_seed(config.seed + begin)
    rng = random.Random(config.seed + begin)
    vae.train().to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimisers = _optimisers_for(vae, config)
    if not checkpoint.exists() and weights is not None:
        vae.load_state_dict(weights)
    elif not checkpoint.exists():
        with torch.no_grad():
            channels = vae.config.latent_channels  # type: ignore[union-attr]
            vae.quant_conv.bias[channels:] = -5.0  # type: ignore[operator, union-attr]  # start with little latent noise
    average, step = Average(vae, config.average), begin
    average.steps = begin
    if checkpoint.exists():
        groups, facts = load_checkpoint(checkpoint, optimisers, rng)
        vae.load_state_dict(groups["live"])
        average.restore(groups["average"], facts["average_steps"])
        step, begin = facts["step"], facts.get("begun", 0)

    def keep_state() -> None:
        networks = {"live": vae.state_dict(), "average": average.state}
        facts = {"step": step, "average_steps": average.steps, "begun": begin}
        save_checkpoint(checkpoint, networks, optimisers, rng, facts)

    if not checkpoint.exists():
        keep_state()
    gauge = gauge or gauge_pictures(world)
    started = saved = time.monotonic()
    first, shown = step, 0.0
    last = min(config.steps, stop or config.steps)
    while step < last:
        set_rate(optimisers, rate(step, config.steps, decay_from=0.3, begun=begin))
        loss, absolute = loss_of(vae, draw_pictures(world, rng, config, step), config)
        vae.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        average.update()
        step += 1
        shown = 0.98 * shown + 0.02 * float(absolute) if step > first + 1 else float(absolute)
        over = time.monotonic() - started >= 60 * minutes
        if over or time.monotonic() - saved > config.save_every or step == last:
            saved = time.monotonic()
            keep_state()
            with average.applied(), mixed_precision(world.device):
                quality = ", ".join(f"{name} {value:.2f} dB" for name, value in qualities(vae, gauge).items())
            speed = (step - first) / (saved - started)
            logger.info("step %d of %d, %.2f steps/s, %.0f min left, error %.4f, %s", step, config.steps, speed,
                        (config.steps - step) / speed / 60, shown, quality)  # fmt: skip
        if over:
            break
    vae.load_state_dict(average.state, strict=False)
    vae.eval()
    return step >= config.steps
