"""Training of the scorer on the world's scenes, some of them blurred and noisy as a model's drawings are."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perfusion.judging.pocket_scorer import AS_IT_IS, COLOUR_NAMES, NOUN_NAMES, PLACE_NAMES
from recipes.pocket.optim import (
    Average,
    Muon,
    load_checkpoint,
    mixed_precision,
    rate,
    save_checkpoint,
    set_rate,
)
from recipes.pocket.pool import tokenise
from recipes.pocket.scorer import MAX_COUNT, Answers, Scorer, ScorerSize
from recipes.pocket.wide_world import WideWorld
from recipes.pocket.world import Scene, Taste, World

__all__ = ["Labels", "ScorerConfig", "accuracies", "label", "spoil", "texture", "train_scorer"]

logger = logging.getLogger(__name__)

TASTE = Taste(size=(0.45, 0.88), pairs=0.2, counts=0.15, spread=0.15, recoloured=0.45)
SIZE = ScorerSize()


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """How the scorer is trained."""

    steps: int = 4000
    batch: int = 48
    textures: int = 6
    """Pictures of nothing in every batch."""
    adam_lr: float = 1e-3
    muon_lr: float = 0.01
    average: float = 0.998
    seed: int = 0
    save_every: int = 60
    taste: Taste = TASTE
    """The scenes that it sees."""
    size: ScorerSize = SIZE


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """What is true of a batch of scenes."""

    nouns: Tensor
    """(batch, nouns) in {0, 1}"""
    where: Tensor
    """(batch, nouns): the middle of each noun's object, 0 the left end … 1 the right; −1 where nothing is said."""
    place: Tensor
    colour: Tensor
    count: Tensor
    """(batch,) indices, −1 where nothing is said: a colour of single plain objects only, a count of one kind only."""


def label(scenes: Sequence[Scene], counts: int = MAX_COUNT) -> Labels:
    """The labels of scenes for a scorer that counts to `counts`."""
    nouns = torch.zeros(len(scenes), len(NOUN_NAMES))
    where = torch.full_like(nouns, -1)
    colour, count = [], []
    for row, scene in enumerate(scenes):
        for noun in scene.nouns:
            nouns[row, NOUN_NAMES.index(noun)] = 1
        for noun, middle in scene.middles().items():
            where[row, NOUN_NAMES.index(noun)] = middle
        painted = scene.colour()
        colour.append(-1 if painted is None else COLOUR_NAMES.index(painted or AS_IT_IS))
        count.append(min(len(scene.items), counts) - 1 if len(scene.nouns) == 1 else -1)
    place = [PLACE_NAMES.index(scene.place) for scene in scenes]
    return Labels(
        nouns=nouns, where=where, place=torch.tensor(place), colour=torch.tensor(colour), count=torch.tensor(count)
    )  # fmt: skip


def spoil(pictures: Tensor, rng: random.Random) -> Tensor:
    """Half of the pictures blurred, shifted in colour or noisy: drawings of a small model are all of it."""
    size = pictures.shape[-1]
    spoiled = pictures.clone()
    for row in range(len(pictures)):
        if rng.random() < 0.5:
            continue
        picture = spoiled[row : row + 1]
        factor = rng.choice((1, 2, 3, 4))
        if factor > 1:
            small = F.interpolate(picture, size=size // factor, mode="area")
            picture = F.interpolate(small, size=size, mode="bicubic")
        picture = picture + rng.uniform(0, 0.15) * torch.randn_like(picture)
        spoiled[row] = (picture + 0.1 * torch.randn(1, 3, 1, 1, device=picture.device))[0].clamp(-1, 1)
    return spoiled


def texture(count: int, size: int, rng: random.Random, pictures: Tensor) -> Tensor:
    """Pictures of nothing: noise of every scale, and scenes cut up and shuffled. (count, 3, size, size)."""
    pieces = []
    for _ in range(count):
        if rng.random() < 0.5:
            cells = rng.choice((2, 4, 8, 16, 32, size))
            noise = torch.randn(1, 3, cells, cells, device=pictures.device)
            pieces.append(F.interpolate(0.6 * noise, size=size, mode="bicubic")[0].clamp(-1, 1))
            continue
        grid = rng.choice((4, 8, 16))
        tiles = F.unfold(pictures[rng.randrange(len(pictures))][None], size // grid, stride=size // grid)
        order = torch.randperm(tiles.shape[-1], device=pictures.device)
        pieces.append(F.fold(tiles[..., order], size, size // grid, stride=size // grid)[0])
    return torch.stack(pieces)


def coverage(scenes: Sequence[Scene], masks: Tensor, cells: int) -> Tensor:
    """How much of each noun there is in each cell of a picture: the masks of the scenes' things, (batch, things, size,
    size), as (batch, nouns, cells, cells)."""
    small = F.adaptive_avg_pool2d(masks, cells)
    covered = small.new_zeros(len(scenes), len(NOUN_NAMES), cells, cells)
    for row, scene in enumerate(scenes):
        for thing, noun in enumerate(scene.nouns):
            index = NOUN_NAMES.index(noun)
            covered[row, index] = torch.maximum(covered[row, index], small[row, thing])
    return covered


def loss_of(
    scorer: Scorer, answers: Answers, text: Tensor, labels: Labels, real: int, covered: Tensor | None = None
) -> Tensor:
    """Contrastive loss between pictures and captions, and the probes' losses.

    Args:
        real: the first rows that are scenes.
        covered: of the scenes, see `coverage`; None where the world does not tell its things apart.
    """
    logits = answers.embeddings[:real] @ text.T * scorer.log_scale.exp().clamp(max=50)
    target = torch.arange(real, device=logits.device)
    contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    nouns = F.binary_cross_entropy_with_logits(answers.nouns[:real], labels.nouns) * 8
    # the same as a choice between them: yes or no alone stays long at "none of them is likely"
    nouns = nouns + F.cross_entropy(answers.nouns[:real], labels.nouns / labels.nouns.sum(1, keepdim=True))
    place = F.cross_entropy(answers.place[:real], labels.place)
    colour = F.cross_entropy(answers.colour[:real], labels.colour, ignore_index=-1)
    count = F.cross_entropy(answers.count[:real], labels.count, ignore_index=-1)
    is_scene = (torch.arange(len(answers.scene), device=logits.device) < real).float()
    scene = F.binary_cross_entropy_with_logits(answers.scene, is_scene)
    told = labels.where >= 0
    where = ((answers.where[:real] - labels.where).square() * told).sum() / told.sum().clamp(min=1)
    loss = contrastive + nouns + 0.5 * place + 0.5 * colour + 0.3 * count + 0.3 * scene + 5 * where
    if covered is not None:
        signs = F.binary_cross_entropy_with_logits(answers.signs[:real], covered, reduction="none")
        loss = loss + 0.5 * signs.sum(1).mean()
    return loss


@torch.no_grad()
def accuracies(
    scorer: Scorer, world: World, *, taste: Taste = TASTE, count: int = 512, seed: int = 77
) -> dict[str, float]:
    """Shares of right answers on clean scenes: noun (single objects, the best of all), pair (the best two), side (which
    of two things stands left, 0.1 of the picture apart or more), place, colour, count, and scene (against half as
    many textures)."""
    rng = random.Random(seed)
    right: dict[str, list[Tensor]] = {}
    with world.seeded(seed):
        for _ in range(0, count, 64):
            scenes = [world.sample(rng, taste) for _ in range(64)]
            pictures = world.render(scenes)[0] * 2 - 1
            answers, labels = scorer.answer(pictures), label(scenes, scorer.size.counts)
            kinds = labels.nouns.sum(1)
            hits = answers.nouns.cpu().argmax(1) == labels.nouns.argmax(1)
            right.setdefault("noun", []).append(hits[kinds == 1])
            best = torch.zeros_like(labels.nouns).scatter(1, answers.nouns.cpu().topk(2).indices, 1)
            right.setdefault("pair", []).append((best == labels.nouns).all(1)[kinds == 2])
            right.setdefault("side", []).append(_sides(answers.where.cpu(), labels))
            for name in ("place", "colour", "count"):
                truth = getattr(labels, name)
                hits = getattr(answers, name).cpu().argmax(1) == truth
                right.setdefault(name, []).append(hits[truth >= 0])
            nothing = scorer.answer(texture(32, world.size, rng, pictures)).scene.cpu() < 0
            right.setdefault("scene", []).append(torch.cat([answers.scene.cpu() > 0, nothing]))
    return {name: float(torch.cat(parts).float().mean()) for name, parts in right.items()}


def _sides(where: Tensor, labels: Labels) -> Tensor:
    """For each scene of two things that stand apart, whether they are seen in their order."""
    hits = []
    for seen, truth in zip(where, labels.where, strict=True):
        told = (truth >= 0).nonzero()[:, 0]
        if len(told) == 2 and abs(float(truth[told[0]] - truth[told[1]])) >= 0.1:
            hits.append(bool((seen[told[0]] < seen[told[1]]) == (truth[told[0]] < truth[told[1]])))
    return torch.tensor(hits, dtype=torch.bool)


def train_scorer(
    scorer: Scorer, world: World, tokenizer: Any, config: ScorerConfig, checkpoint: Path, minutes: float
) -> bool:
    """Train until the steps are done (True) or the minutes are over (False); ends with averaged weights."""
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    scorer.train().to(world.device)
    if world.device.type == "cpu":
        # torch's fused attention is slow backward on CPUs
        scorer.text.set_attn_implementation("eager")
    hidden = [p for n, p in scorer.named_parameters() if p.ndim == 2 and "embedding" not in n and "text" in n]
    hidden += [
        p for p in scorer.tower.parameters() if p.ndim == 4 and min(p.shape[:2]) > 8 and p.shape[1] > 1
    ]
    chosen = {id(param) for param in hidden}
    rest = [param for param in scorer.parameters() if id(param) not in chosen]
    optimisers: list[torch.optim.Optimizer] = [
        Muon(hidden, config.muon_lr),
        torch.optim.AdamW(rest, config.adam_lr, betas=(0.9, 0.99), weight_decay=0.02),
    ]
    average, step = Average(scorer, config.average), 0
    if checkpoint.exists():
        groups, facts = load_checkpoint(checkpoint, optimisers, rng)
        scorer.load_state_dict(groups["live"])
        average.restore(groups["average"], facts["average_steps"])
        step = facts["step"]
    started = saved = time.monotonic()
    first, shown = step, 0.0
    over = minutes <= 0
    while step < config.steps and not over:
        set_rate(optimisers, rate(step, config.steps))
        loss = scorer_step(scorer, world, tokenizer, config, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        average.update()
        step += 1
        shown = 0.98 * shown + 0.02 * float(loss.detach()) if step > first + 1 else float(loss.detach())
        over = time.monotonic() - started >= 60 * minutes
        if over or time.monotonic() - saved > config.save_every or step == config.steps:
            save_checkpoint(
                checkpoint, {"live": scorer.state_dict(), "average": average.state}, optimisers, rng,
                {"step": step, "average_steps": average.steps},
            )  # fmt: skip
            with average.applied():
                shares = accuracies(scorer, world, taste=config.taste, count=192)
            said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            saved = time.monotonic()
            speed = (step - first) / (saved - started)
            logger.info("step %d of %d, %.0f samples/s, %.0f min left, loss %.3f; %s", step, config.steps,
                        speed * config.batch, (config.steps - step) / speed / 60, shown, said)  # fmt: skip
    scorer.load_state_dict(average.state, strict=False)
    scorer.eval()
    return step >= config.steps


def scorer_step(
    scorer: Scorer, world: World, tokenizer: Any, config: ScorerConfig, rng: random.Random
) -> Tensor:
    """The loss of one fresh batch."""
    scenes = [world.sample(rng, config.taste) for _ in range(config.batch)]
    pictures, masks = world.compose(scenes) if isinstance(world, WideWorld) else world.render(scenes)
    pictures = spoil(pictures * 2 - 1, rng)
    nothing = texture(config.textures, world.size, rng, pictures)
    input_ids = tokenise(tokenizer, [scene.caption for scene in scenes]).to(world.device)
    labels = label(scenes, scorer.size.counts)
    with mixed_precision(world.device):
        answers, text = scorer.answer(torch.cat([pictures, nothing])), scorer.embed_text(input_ids)
    on_device = Labels(**{name: value.to(world.device) for name, value in vars(labels).items()})
    covered = coverage(scenes, masks, answers.signs.shape[-1]) if isinstance(world, WideWorld) else None
    return loss_of(scorer, answers, text, on_device, len(scenes), covered)
