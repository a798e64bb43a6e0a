"""Training of pocket's UNet and text encoder on encoded scenes of the world.

What made nouns appear (plain training drew only backgrounds): the error weighs more inside the object's mask, most
timesteps are noisy ones, objects start large and centred, and cross-attention and text learn at twice the rate.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recipes.pocket.gauge import wrong_noun_gap
from recipes.pocket.optim import (
    Average,
    Muon,
    load_checkpoint,
    mixed_precision,
    rate,
    save_checkpoint,
    set_rate,
)
from recipes.pocket.pool import Batch, Pool, Rows, encode_scenes
from recipes.pocket.schedule import alphas, squared_error
from recipes.pocket.slices import learn_in_slices, slices
from recipes.pocket.world import Taste, World

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UnetConfig:
    """How the UNet and the text encoder are trained."""

    steps: int = 12_000
    batch: int = 32
    adam_lr: float = 8e-4
    muon_lr: float = 0.01
    muon: bool = True
    average: float = 0.998
    pool: int = 40_000
    """Encoded scenes kept; 0.5 KB each … 3 KB with captions."""
    fresh: int = 8
    """New scenes a step."""
    first: int = 1_500
    """Scenes encoded before the first step."""
    seed: int = 0
    save_every: int = 240
    """Seconds between checkpoints, gauges and sample sheets."""


def taste_at(progress: float) -> Taste:
    """The curriculum: large centred single objects, then every size and many looks, then pairs and counts."""
    if progress < 0.25:
        return Taste(size=(0.6, 0.88), spread=0.08, recoloured=0.3, empty_caption=0.1)
    if progress < 0.45:
        return Taste(size=(0.5, 0.88), spread=0.12, recoloured=0.45, empty_caption=0.1)
    return Taste(size=(0.45, 0.88), spread=0.15, recoloured=0.5, pairs=0.3, counts=0.12, empty_caption=0.1)


def draw_timesteps(count: int, device: torch.device) -> torch.Tensor:
    """Four in five of them noisy ones. (count,)."""
    noisy = torch.randint(250, 1000, (count,), device=device)
    return torch.where(
        torch.rand(count, device=device) < 0.8, noisy, torch.randint(0, 1000, (count,), device=device)
    )


def weigh(error: torch.Tensor, batch: Batch, alpha: torch.Tensor, object_weight: float) -> torch.Tensor:
    """The mean of a squared velocity error, more inside the objects, less where there is hardly noise."""
    inside = 1 + object_weight * batch.masks
    inside = inside / inside.mean()
    signal = alpha / (1 - alpha)
    # min-SNR weighting (Hang et al., 2023) for a velocity, with a floor so that no timestep is forgotten
    weight = (1.6 * signal.clamp(max=5) / (signal + 1) + 0.15).view(-1, 1, 1, 1)
    return (weight * inside * error).mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class Chance(Rows):
    """What is drawn for each sample of a batch: timesteps (batch,) and noise of the latents' shape."""

    steps: torch.Tensor
    noise: torch.Tensor
    padded: torch.Tensor
    """(batch, 1) bool: whose cross-attention sees the padding."""
    portrayed: torch.Tensor
    """(batch, 1) bool: whose first thing's portrait is seen."""


def optimisers_for(
    unet: torch.nn.Module, text_encoder: torch.nn.Module, config: UnetConfig
) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for the rest; cross-attention and text at twice the rate."""
    outer = ("conv_in", "conv_out", "embedding", "time_emb")
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for module, text in ((unet, True), (text_encoder, False)):
        for name, param in module.named_parameters():
            inner = config.muon and param.ndim >= 2 and not any(part in name for part in outer)
            pace = 2.0 if not text or "attn2" in name else 1.0
            groups.setdefault((inner, pace), []).append(param)
    muon = [
        {"params": params, "lr": config.muon_lr * pace} for (inner, pace), params in groups.items() if inner
    ]
    adam = [
        {"params": params, "lr": config.adam_lr * pace}
        for (inner, pace), params in groups.items()
        if not inner
    ]
    chosen: list[torch.optim.Optimizer] = [torch.optim.AdamW(adam, betas=(0.9, 0.99), weight_decay=0.01)]
    return [Muon(muon, config.muon_lr), *chosen] if muon else chosen


class Trainer:
    """The state of one training: networks, averages, optimisers, the pool of scenes and the generators."""

    def __init__(self, pipeline: Any, world: World, config: UnetConfig) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        torch.manual_seed(config.seed)
        self.config, self.world, self.rng = config, world, random.Random(config.seed)
        self.step = self.begun = 0
        self.vae, self.tokenizer = pipeline.vae.to(world.device).eval(), pipeline.tokenizer
        self.unet = pipeline.unet.to(world.device).train()
        self.text_encoder = pipeline.text_encoder.to(world.device).train()
        if world.device.type == "cpu":
            # torch's fused attention is slow backward on CPUs
            self.unet.set_attn_processor(AttnProcessor())
            self.text_encoder.set_attn_implementation("eager")
        self.optimisers = optimisers_for(self.unet, self.text_encoder, config)
        self.networks: dict[str, torch.nn.Module] = {"unet": self.unet, "text": self.text_encoder}
        self.averages = {name: Average(part, config.average) for name, part in self.networks.items()}
        self.pool: Pool[Any] = self.new_pool()
        self.latents = _digest(self.vae)

    def new_pool(self) -> Pool[Any]:
        """An empty pool for the batches of `fresh`."""
        return Pool(self.config.pool, Batch)

    def fresh(self, count: int, progress: float) -> Batch:
        """New scenes, as the curriculum has them at this share of the steps."""
        scenes = [self.world.sample(self.rng, taste_at(progress)) for _ in range(count)]
        return encode_scenes(self.world, self.vae, self.tokenizer, scenes)

    def chance(self, batch: Batch) -> Chance:
        """Timesteps and noise for a batch."""
        count, device = len(batch.latents), batch.latents.device
        return Chance(
            steps=draw_timesteps(count, device),
            noise=torch.randn_like(batch.latents),
            padded=torch.ones(count, 1, dtype=torch.bool, device=device),
            portrayed=torch.zeros(count, 1, dtype=torch.bool, device=device),
        )

    def loss(self, batch: Any, chance: Chance, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised, the weighted velocity error, and, for the log, the plain one."""
        with mixed_precision(batch.latents.device):
            hidden = self.text_encoder(batch.input_ids).last_hidden_state
        error = squared_error(self.unet, batch.latents, chance.noise, chance.steps, hidden)
        alpha = alphas(batch.latents.device)[chance.steps]
        return weigh(error, batch, alpha, object_weight=4 - 2 * progress), error.detach().mean()

    def learn(self, batch: Any, progress: float) -> float:
        """Leave the gradients of a batch in the networks; returns the plain error."""
        chance, parts = self.chance(batch), slices(len(batch.latents), batch.latents.device)
        losses = [partial(self.loss, batch[part], chance[part], progress) for part in parts]
        return float(learn_in_slices(losses, [part.stop - part.start for part in parts], self.parameters()))

    def parameters(self) -> list[torch.nn.Parameter]:
        """All that learns."""
        return [param for network in self.networks.values() for param in network.parameters()]

    def gauges(self) -> str:
        """What the log says of the averaged networks."""
        gap = wrong_noun_gap(self.world, self.vae, self.text_encoder, self.unet, self.tokenizer)
        return f"wrong-noun gap {100 * gap:+.1f}%"

    def begin(self, step: int) -> None:
        """Go on at a step with the networks' present weights, and scenes other than those of the steps before."""
        self.step = self.begun = step
        self.rng.seed(self.config.seed + step)
        torch.manual_seed(self.config.seed + step)
        for average in self.averages.values():
            average.steps = step

    def advance(self) -> float:
        """One step: fresh scenes into the pool, a batch out of it, an update. Returns the plain error."""
        progress = self.step / self.config.steps
        missing = self.config.fresh if self.pool.count else self.config.first
        while missing > 0:
            count = min(missing, 64)
            self.pool.add(self.fresh(count, progress))
            missing -= count
        set_rate(self.optimisers, rate(self.step, self.config.steps, begun=self.begun))
        batch = self.pool.draw(self.rng, self.config.batch)
        error = self.learn(batch, progress)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for average in self.averages.values():
            average.update()
        self.step += 1
        return error

    def save(self, path: Path) -> None:
        """Write the whole state; `restore` continues as if nothing had happened."""
        tensors = {name: network.state_dict() for name, network in self.networks.items()}
        tensors["pool"] = self.pool.tensors
        tensors |= {f"average.{name}": average.state for name, average in self.averages.items()}
        facts = {
            "step": self.step,
            "begun": self.begun,
            "count": self.pool.count,
            "next": self.pool.next,
            "average_steps": self.averages["unet"].steps,
            "latents": self.latents,
        }
        save_checkpoint(path, tensors, self.optimisers, self.rng, facts)

    def restore(self, path: Path) -> None:
        """Read a state written by `save`."""
        groups, facts = load_checkpoint(path, self.optimisers, self.rng)
        for name, network in self.networks.items():
            network.load_state_dict(groups[name])
        if facts.get("latents") == self.latents:
            self.pool.tensors = {
                name: part.to(self.world.device) for name, part in groups.get("pool", {}).items()
            }
            self.pool.count, self.pool.next = facts["count"], facts["next"]
        else:
            logger.info("the autoencoder is another than this training's: scenes are encoded anew")
        for name, average in self.averages.items():
            average.restore(groups[f"average.{name}"], facts["average_steps"])
        self.step, self.begun = facts["step"], facts.get("begun", 0)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The networks with their averaged weights, for drawing and for the gauge."""
        with ExitStack() as stack:
            for average in self.averages.values():
                stack.enter_context(average.applied())
            yield


def _digest(vae: torch.nn.Module) -> str:
    """Tells autoencoders apart: encoded scenes of one are noise to a UNet that sees those of another."""
    digest = hashlib.sha256(str(vae.config.scaling_factor).encode())  # type: ignore[union-attr]
    for value in vae.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train_unet(
    trainer: Trainer, checkpoint: Path, minutes: float, show: Callable[[Trainer], None] | None = None
) -> bool:
    """Train until the steps are done (True) or the minutes are over (False); saves, gauges and shows on the way.

    `show` is called with averaged weights in place, to draw a sample sheet or to write the model out.
    """
    if checkpoint.exists():
        trainer.restore(checkpoint)
    config, first = trainer.config, trainer.step
    started = saved = time.monotonic()
    shown = 0.0
    while trainer.step < config.steps and time.monotonic() - started < 60 * minutes:
        error = trainer.advance()
        shown = 0.98 * shown + 0.02 * error if trainer.step > first + 1 else error
        if time.monotonic() - saved < config.save_every and trainer.step < config.steps:
            continue
        trainer.save(checkpoint)
        with trainer.averaged():
            gauges = trainer.gauges()
            if show:
                show(trainer)
        saved = time.monotonic()
        speed = (trainer.step - first) / (saved - started)
        logger.info(
            "step %d of %d, %.1f samples/s, %.0f min left, error %.4f, %s",
            trainer.step,
            config.steps,
            speed * config.batch,
            (config.steps - trainer.step) / speed / 60,
            shown,
            gauges,
        )
    if trainer.step < config.steps or not checkpoint.exists():
        trainer.save(checkpoint)
    return trainer.step >= config.steps
