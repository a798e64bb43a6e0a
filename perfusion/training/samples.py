"""The training pictures as the loop needs them: latents of a few variants of each, and where the object is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perfusion.base.base_model import BaseModel
from perfusion.training.config import TrainingConfig
from perfusion.training.crops import prepare
from perfusion.training.masks import attention_maps, soft_threshold, trusted
from perfusion.training.objective import Noising
from perfusion.training.placement import Placement, on_device
from perfusion.training.segment import segment
from perfusion.training.templates import as_tensors, input_ids
from perfusion.training.training_pictures import Picture

__all__ = ["Samples", "as_masks", "encode_pictures", "encode_windows", "find_objects", "object_maps"]

TEMPLATE = "a photo of a {}"
"""What the UNet is told when it is asked where the object is."""
NAMED = 6
"""More pictures than this are not listed one by one."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Every prepared variant of every picture, encoded once; the variants of a picture follow each other."""

    latents: Tensor
    """(n, channels, h, w), scaled."""
    masks: Tensor
    """(n, 1, h, w) in [0, 1]; ones where nothing is known."""
    images: Tensor
    """(n, 3, height, width) in [−1, 1], on the CPU."""


@torch.no_grad()
def encode_pictures(
    base: BaseModel, pictures: Sequence[Picture], config: TrainingConfig, placement: Placement
) -> Samples:
    """Prepare the pictures and encode them, with the masks that they came with."""
    images, masks = prepare(pictures, base.resolution, config.crops, config.flip, config.seed)
    pixels = torch.from_numpy(images)
    latents = encode_windows(base, pixels, config, placement)
    size = (latents.shape[-2], latents.shape[-1])
    pooled = F.adaptive_avg_pool2d(torch.from_numpy(masks), size).to(placement.device)
    return Samples(latents=latents, masks=pooled, images=pixels)


@torch.no_grad()
def encode_windows(base: BaseModel, pixels: Tensor, config: TrainingConfig, placement: Placement) -> Tensor:
    """Latents (n, channels, h, w), scaled, on the device, of square pictures (n, 3, height, width) in [−1, 1]."""
    vae: Any = base.vae
    with on_device(vae, placement.device):
        latents = [
            vae.encode(batch.to(placement.device, vae.dtype)).latent_dist.mode()
            for batch in pixels.split(1 if config.checkpointing else 4)
        ]
    scaled: Tensor = torch.cat(latents).float() * vae.config.scaling_factor
    return scaled


def find_objects(
    base: BaseModel, pictures: Sequence[Picture], samples: Samples, subject: Sequence[Sequence[int]],
    config: TrainingConfig, placement: Placement, say: Say,
) -> Samples:  # fmt: skip
    """The samples with masks for the pictures that came without one, where the options ask for it.

    What the masks cover is said of all, also of those that came with the pictures: a wrong one is seen by its share.

    Args:
        subject: the superclass's token ids for each text encoder.
        say: told how they were found, and what part of each picture they cover.
    """
    names = [picture.path.name for picture in pictures for _ in range(config.crops)]
    lacking = [at for at in range(len(names)) if pictures[at // config.crops].mask is None]
    brought = [at for at in range(len(names)) if at not in lacking]
    if brought:
        source = "transparency" if config.masks in ("alpha", "auto", "clipseg") else str(config.masks)
        covers = _covers([names[at] for at in brought], samples.masks[brought])
        say(f"masks from {source}: {covers}")
    if config.masks not in ("auto", "clipseg") or not lacking:
        return samples
    rows = torch.tensor(lacking, device=samples.latents.device)
    maps = object_maps(base, samples.latents[rows], samples.images[lacking], subject, config, placement)
    source = "the segmenter, for" if config.segmenter else "the base model's attention to"
    source = f"from {source} {config.superclass!r}"
    named = [names[at] for at in lacking]
    masks = samples.masks.clone()
    masks[rows] = trusted(as_masks(maps, config).to(masks), named)
    say(f"masks {source}: {_covers(named, masks[rows])}")
    return Samples(latents=samples.latents, masks=masks, images=samples.images)


def object_maps(
    base: BaseModel, latents: Tensor, pixels: Tensor, subject: Sequence[Sequence[int]], config: TrainingConfig,
    placement: Placement,
) -> Tensor:  # fmt: skip
    """How much of the superclass there is at each position, (n, 1, h, w): the segmenter's probability where there is
    one, else the base model's attention, of any scale."""
    if config.segmenter is None:
        return _by_attention(base, latents, subject, config, placement)
    size = (latents.shape[-2], latents.shape[-1])
    return segment(config.segmenter, pixels, config.superclass, size, latents.device)


def as_masks(maps: Tensor, config: TrainingConfig) -> Tensor:
    """What `object_maps` says as soft masks in [0, 1], half where object and background meet."""
    return soft_threshold(maps) if config.segmenter is None else maps


@torch.no_grad()
def _by_attention(
    base: BaseModel, latents: Tensor, subject: Sequence[Sequence[int]], config: TrainingConfig, placement: Placement
) -> Tensor:  # fmt: skip
    """(n, 1, h, w): each variant is asked for itself, so that its window and its mirroring need no undoing."""
    prompt = input_ids(base, TEMPLATE, subject)
    encoded = base.encode(as_tensors([prompt], latents.device))
    # a UNet whose weights are held in 16 bits takes float32 latents only under autocast; the others need none
    narrow = base.unet.conv_in.weight.dtype != torch.float32
    reading = replace(placement, dtype=(placement.dtype or torch.bfloat16) if narrow else None)
    with reading.autocast():
        return attention_maps(
            base.unet,
            latents,
            encoded.hidden.float(),
            subject=range(prompt.last - len(subject[0]) + 1, prompt.last + 1),
            words=range(
                1, prompt.last + 2
            ),  # the template ends with the superclass, then comes the end token
            alphas=Noising.of(base).scheduler.alphas_cumprod,
            conditions=base.unet_conditions(encoded.pooled, 1),
            seed=config.seed,
        )


def _covers(names: Sequence[str], masks: Tensor) -> str:
    """ "1.png 38 %, 2.png 41 %": the mean share of each picture that its masks cover."""
    cover = (masks > 0.5).float().flatten(1).mean(1).tolist()
    shares: dict[str, list[float]] = {}
    for name, share in zip(names, cover, strict=True):
        shares.setdefault(name, []).append(share)
    means = {name: sum(covers) / len(covers) for name, covers in shares.items()}
    if len(means) > NAMED:
        return f"{min(means.values()):.0%} to {max(means.values()):.0%} of {len(means)} pictures"
    return ", ".join(f"{name} {mean:.0%}" for name, mean in means.items())
