"""Looks: the same drawing in thousands of coats. Whole objects or single parts of them are repainted or patterned.

A part is a region of like colours within one drawing: a belly, a roof, the windows. Captions name some looks and leave
the rest unnamed, so that the model's range is wider than its words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from perfusion.pocket.vocabulary import COLOURS
from recipes.pocket.world import rotate_hue

__all__ = ["PARTS", "WHOLE", "Coat", "find_parts", "paint", "sample_look"]

PARTS = 4
"""Regions told apart in a drawing, the largest first."""
WHOLE = -1
"""In place of a part: all of the drawing."""
LUMINANCE = (0.3, 0.59, 0.11)
COLOUR_NAMES = tuple(COLOURS)
PATTERN_NAMES = {"stripes": "striped", "spots": "spotted", "halves": "two-tone", "patches": "patched",
                 "checks": "checked"}  # fmt: skip
"""Pattern → the word for it; the patterns besides these are never named."""


@dataclass(frozen=True, kw_only=True)
class Coat:
    """One layer of paint on an object."""

    colour: tuple[float, float, float] | None = None
    """sRGB in [0, 1]; None turns the hue instead."""
    hue: float = 0.0
    """Turn of the hue, in turns, where there is no colour."""
    part: int = WHOLE
    """Which of the object's regions."""
    pattern: str = ""
    """Where on it: a key of PATTERNS, or everywhere."""
    angle: float = 0.0
    scale: float = 1.0
    phase: float = 0.0
    """Of the pattern."""


def sample_look(rng: random.Random) -> tuple[str, tuple[Coat, ...]]:
    """Coats for one object, and the adjectives that its caption names (often none)."""
    kind = rng.random()
    name, other = rng.sample(COLOUR_NAMES, 2)
    first, second = Coat(colour=_near(rng, name)), Coat(colour=_near(rng, other))
    if kind < 0.36:
        extra = (_on_a_part(rng),) if rng.random() < 0.2 else ()
        return name, (first, *extra)
    if kind < 0.48:
        return "", (Coat(hue=rng.uniform(0.08, 0.92)),)
    if kind < 0.66:
        return "", tuple(_on_a_part(rng) for _ in range(rng.choice((1, 1, 2))))
    pattern = rng.choice(tuple(PATTERNS))
    patterned = _patterned(rng, second, pattern)
    if kind < 0.84:
        return (f"{name} and {other}" if rng.random() < 0.6 else ""), (first, patterned)
    return (PATTERN_NAMES.get(pattern, "") if rng.random() < 0.6 else ""), (patterned,)


def _near(rng: random.Random, name: str) -> tuple[float, float, float]:
    red, green, blue = (min(1.0, max(0.0, value + rng.gauss(0, 0.035))) for value in COLOURS[name])
    return red, green, blue


def _on_a_part(rng: random.Random) -> Coat:
    colour = (rng.random(), rng.random(), rng.random())
    if rng.random() < 0.5:
        colour = _near(rng, rng.choice(COLOUR_NAMES))
    coat = Coat(colour=colour, part=rng.randrange(PARTS))
    return _patterned(rng, coat, rng.choice(tuple(PATTERNS))) if rng.random() < 0.25 else coat


def _patterned(rng: random.Random, coat: Coat, pattern: str) -> Coat:
    return Coat(
        colour=coat.colour,
        part=coat.part,
        pattern=pattern,
        angle=rng.uniform(0, np.pi),
        scale=rng.uniform(0.6, 1.5),
        phase=rng.uniform(0, 2 * np.pi),
    )


def find_parts(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Number the regions of like colours in each drawing, 0 the largest. (n, h, w, 4) → (n, h, w), PARTS where clear.

    Few steps of k-means from fixed starts; lightness counts less than hue, so that shading does not make a part.
    """
    weights = np.array([[0.4, 0.4, 0.4], [1.2, -1.2, 0.0], [0.6, 0.6, -1.2]]) / 255
    labels = np.full(pixels.shape[:3], PARTS, np.uint8)
    for tile, row in zip(pixels, labels, strict=True):
        seen = tile[..., 3] > 127
        colours = tile[..., :3][seen].astype(np.float32) @ weights.T.astype(np.float32)
        row[seen] = _clusters(colours)
    return labels


def _clusters(colours: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """K-means into PARTS clusters, numbered by size; starts lie far apart (each the farthest from those before)."""
    sample = colours[:: max(1, len(colours) // 600)]
    centres = [sample.mean(0)]
    for _ in range(PARTS - 1):
        gaps = np.min([((sample - centre) ** 2).sum(1) for centre in centres], axis=0)
        centres.append(sample[gaps.argmax()])
    means = np.stack(centres)
    for _ in range(6):
        nearest = _nearest(sample, means)
        means = np.stack(
            [sample[nearest == k].mean(0) if (nearest == k).any() else means[k] for k in range(PARTS)]
        )
    labels = _nearest(colours, means)
    order = np.argsort(-np.bincount(labels, minlength=PARTS))
    return np.asarray(np.argsort(order)[labels], np.uint8)


def _nearest(colours: npt.NDArray[np.float32], means: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    return np.asarray(((colours[:, None] - means) ** 2).sum(-1).argmin(1))


Field = torch.Tensor
Pattern = Callable[[Field, Field, Field, Field], Field]
"""Takes coordinates along and across the pattern's direction (about ±1), the height (0 top … 1 bottom) and the phase,
(n, h, w) or (n, 1, 1); returns a number that is positive where the pattern is."""

PATTERNS: dict[str, Pattern] = {
    "stripes": lambda along, across, height, phase: torch.sin(14 * along + phase),
    "spots": lambda along, across, height, phase: torch.sin(12 * along + phase) * torch.sin(12 * across + phase) - 0.3,
    "halves": lambda along, across, height, phase: height - 0.5 - 0.1 * torch.sin(phase + 2 * along),
    "patches": lambda along, across, height, phase: (
        torch.sin(4 * along + phase) + torch.sin(5 * across + 2 * phase)
        + torch.sin(3 * (along - across) + 3 * phase) - 0.5
    ),
    "checks": lambda along, across, height, phase: torch.sin(11 * along + phase) * torch.sin(11 * across + phase),
    "belly": lambda along, across, height, phase: (
        0.2 - along.square() - across.square() - 0.5 * (height - 0.65).square() + 0.05 * torch.sin(phase)
    ),
    "socks": lambda along, across, height, phase: height - 0.84 - 0.04 * torch.sin(phase),
    "cap": lambda along, across, height, phase: 0.3 - height + 0.05 * torch.sin(phase + 3 * along),
    "side": lambda along, across, height, phase: along + 0.2 * torch.sin(phase),
}  # fmt: skip


def paint(rgb: torch.Tensor, parts: torch.Tensor, looks: Sequence[tuple[Coat, ...]]) -> torch.Tensor:
    """Put each object's coats on, in order, keeping its shading.

    Args:
        rgb: (n, 3, h, w) in [0, 1].
        parts: (n, h, w), from `find_parts`.
        looks: one tuple of coats an object.
    """
    for layer in range(max((len(look) for look in looks), default=0)):
        rows = [row for row, look in enumerate(looks) if layer < len(look)]
        index = torch.tensor(rows, device=rgb.device)
        coats = [looks[row][layer] for row in rows]
        below, where = rgb[index], _where(coats, parts[index])
        cover = 0.88 * where
        painted = _colours(coats, below, where * (parts[index] != PARTS)[:, None])
        rgb = rgb.index_copy(0, index, below * (1 - cover) + painted * cover)
    return rgb


def _numbers(coats: Sequence[Coat], read: Callable[[Coat], float], device: torch.device) -> torch.Tensor:
    return torch.tensor([float(read(coat)) for coat in coats], device=device).view(-1, 1, 1)


def _colours(coats: Sequence[Coat], rgb: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """What each coat makes of the picture if it covers all of it. (n, 3, h, w).

    Dark drawings are lifted to a middling lightness first, or a pink coat on them would be purple.
    """
    device = rgb.device
    luminance = (rgb * torch.tensor(LUMINANCE, device=device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    mean = (luminance * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp(min=1)
    luminance = (luminance * (0.62 / mean.clamp(min=0.1)).clamp(0.8, 4)).clamp(max=1)
    base = torch.tensor([coat.colour or (0.0, 0.0, 0.0) for coat in coats], device=device)[:, :, None, None]
    painted = (base * (0.35 + 1.05 * luminance) + 0.35 * (luminance - 0.75).clamp(min=0)).clamp(0, 1)
    coloured = torch.tensor([coat.colour is not None for coat in coats], device=device).view(-1, 1, 1, 1)
    return torch.where(coloured, painted, rotate_hue(rgb, _numbers(coats, lambda c: c.hue, device)[:, 0, 0]))


def _where(coats: Sequence[Coat], parts: torch.Tensor) -> torch.Tensor:
    """How much of each pixel a coat covers. (n, 1, h, w) in [0, 1], with soft edges."""
    device, size = parts.device, parts.shape[-1]
    part = torch.tensor([coat.part for coat in coats], device=device).view(-1, 1, 1)
    cover = ((part == WHOLE) | (parts == part)).float()
    if any(coat.pattern for coat in coats):
        cover = cover * _pattern(coats, size, device)
    if any(coat.pattern or coat.part != WHOLE for coat in coats):
        cover = F.avg_pool2d(cover[:, None], 3, stride=1, padding=1, count_include_pad=False)[:, 0]
    return cover[:, None]


def _pattern(coats: Sequence[Coat], size: int, device: torch.device) -> torch.Tensor:
    steps = torch.arange(size, device=device) / size
    number = lambda read: _numbers(coats, read, device)  # noqa: E731
    x, y = 2 * steps.view(1, 1, -1) - 1, 2 * steps.view(1, -1, 1) - 1
    cos, sin = torch.cos(number(lambda c: c.angle)), torch.sin(number(lambda c: c.angle))
    scale, phase = number(lambda c: c.scale), number(lambda c: c.phase)
    along, across = scale * (cos * x + sin * y), scale * (cos * y - sin * x)
    height = steps.view(1, -1, 1).expand_as(along)
    cover = torch.ones_like(along)
    for name in {coat.pattern for coat in coats if coat.pattern}:
        rows = torch.tensor([row for row, coat in enumerate(coats) if coat.pattern == name], device=device)
        field = PATTERNS[name](along[rows], across[rows], height[rows], phase[rows])
        cover[rows] = (field > 0).float()
    return cover
