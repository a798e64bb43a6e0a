"""Where the object is, by the base model's own account: its attention to the superclass's word.

A picture is noised a little and a lot, the UNet reads it under "a photo of a cat", and every position of its
cross-attention layers says how much of what it takes from the prompt it takes from "cat" (the heat maps of DAAM, Tang
et al., arXiv 2210.04885). Self-attention of the same block then carries the answer to positions that look alike
(DiffSegmenter, Wang et al., arXiv 2309.02773), and Otsu's threshold tells object from background. No second model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perfusion.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["attention_maps", "soft_threshold", "trusted"]

logger = logging.getLogger(__name__)

LEVELS = (0.1, 0.3)
"""Shares of the noise schedule. Light noise: under heavy noise the map shows what the model expects where."""
SIDES = (16, 32)
"""Maps of so many positions on their shorter side are read. Below, objects fall between the positions; above (the
outermost layers of large models) attention goes to texture. A model without such layers is read at its finest."""
SPREADS = 4
"""How often self-attention carries the answer on."""
FLAT = 0.05
"""A map whose two groups differ by less than this share shows nothing; the embedded model's differ by 0.2 to 0.85."""
LOW, HIGH = 0.02, 0.95
"""Masks that cover less or more of the picture than this are not believed."""
PIECE = 8
"""Pictures that go through the UNet at once."""

Speak = Callable[[str], None]


@torch.no_grad()
def attention_maps(
    unet: UNet2DConditionModel,
    latents: Tensor,
    encoding: Tensor,
    *,
    subject: Sequence[int],
    words: Sequence[int],
    alphas: Tensor,
    conditions: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Tensor:
    """Where each picture draws the UNet's attention to the superclass; `soft_threshold` makes masks of it.

    Args:
        unet: frozen, in evaluation mode; its attention processors are the same objects afterwards.
        latents: (n, channels, h, w), scaled, without noise.
        encoding: (1, tokens, text_dim), of a prompt with the superclass.
        subject: positions of the superclass's tokens in that prompt.
        words: positions of all its words and of the end token, `subject` among them; neither start nor padding, which
            attention falls on where it wants nothing.
        alphas: (timesteps,), the cumulative ᾱ of the noise schedule.
        conditions: further arguments of the UNet, tensors of batch 1, such as SDXL's ``added_cond_kwargs``.
        seed: of the noise. The caller's random generators are left alone.

    Returns:
        (n, 1, h, w) float32, 1 on a picture's average.

    Raises:
        ModelError: the UNet has no cross-attention layer.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = [min(len(alphas) - 1, round(level * len(alphas))) for level in LEVELS]
    noises = [torch.randn(latents.shape, generator=generator) for _ in steps]
    maps: list[Tensor] = []
    with _reading(unet, tuple(subject), tuple(words)) as reader:
        for start in range(0, len(latents), PIECE):
            piece = latents[start : start + PIECE]
            reader.begin(piece.shape[-2:])
            for step, noise in zip(steps, noises, strict=True):
                alpha = alphas[step].to(piece.device, piece.dtype)
                mixed = alpha.sqrt() * piece + (1 - alpha).sqrt() * noise[start : start + PIECE].to(piece)
                unet(
                    mixed,
                    step,
                    encoding.expand(len(piece), -1, -1),
                    **_repeated(conditions or {}, len(piece)),
                )
            maps.append(reader.result())
    return torch.cat(maps)


def soft_threshold(maps: Tensor) -> Tensor:
    """Maps (n, 1, h, w) of any scale as masks in [0, 1]: 0.5 at the threshold that parts each map's values into two
    groups with the least variance inside (Otsu, 1979), 0 and 1 at the means of the groups. A flat map
    becomes ones."""
    masks = torch.ones_like(maps, dtype=torch.float32)
    for mask, values in zip(masks.flatten(1), maps.float().flatten(1), strict=True):
        ordered = values.double().sort().values
        lower = torch.arange(1, len(ordered), device=maps.device)  # how many values are below the threshold
        upper = len(ordered) - lower
        below = ordered.cumsum(0)[:-1]
        low, high = below / lower, (ordered.sum() - below) / upper
        cut = int((lower * upper * (high - low).square()).argmax())
        bottom, top = float(low[cut]), float(high[cut])
        middle = float(ordered[cut] + ordered[cut + 1]) / 2
        if top - bottom <= FLAT * abs(top):
            continue
        under = 0.5 * (values - bottom) / max(middle - bottom, 1e-12)
        over = 0.5 + 0.5 * (values - middle) / max(top - middle, 1e-12)
        mask.copy_(torch.where(values < middle, under, over).clamp(0, 1))
    return masks


def trusted(masks: Tensor, names: Sequence[str], say: Speak = logger.warning) -> Tensor:
    """The masks (n, 1, h, w), with ones in place of those that cover nearly nothing or everything.

    Args:
        masks: in [0, 1].
        names: of the pictures, one a mask; a name may come more than once, for several variants of a picture.
        say: called with a line for each picture of which any mask is not believed.
    """
    cover = (masks > 0.5).float().flatten(1).mean(1)
    doubted = (cover < LOW) | (cover > HIGH)
    for name in dict.fromkeys(name for name, doubt in zip(names, doubted.tolist(), strict=True) if doubt):
        shares = [
            float(share)
            for other, share, doubt in zip(names, cover, doubted, strict=True)
            if doubt and other == name
        ]
        say(
            f"{name}: the mask found for it covers {min(shares):.0%} of the picture, expected {LOW:.0%} to {HIGH:.0%}; "
            "all of the picture counts instead (give a mask with --masks DIR if the background gets learned)"
        )
    return torch.where(doubted.view(-1, 1, 1, 1), torch.ones_like(masks), masks)


class _Reader:
    """Collects what the processors see: a running sum of maps for each layer, and nothing of a forward pass longer
    than its block lasts."""

    def __init__(self, subject: tuple[int, ...], words: tuple[int, ...]) -> None:
        self.subject, self.words = list(subject), list(words)
        self.size = (1, 1)
        self.sums: dict[str, Tensor] = {}
        self.looks: dict[str, tuple[Tensor, Tensor]] = {}  # queries and keys of a block's self-attention

    def begin(self, size: Sequence[int]) -> None:
        """Start over for pictures of (h, w) latents."""
        self.size = (int(size[0]), int(size[1]))
        self.sums.clear()

    def side(self, positions: int) -> int:
        """The shorter side of a layer's map."""
        height, width = self.grid(positions)
        return min(height, width)

    def grid(self, positions: int) -> tuple[int, int]:
        """Height and width of a layer with so many positions: those of the latents, halved a few times."""
        height, width = self.size
        while height * width > positions:
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def see_self(self, block: str, query: Tensor, key: Tensor) -> None:
        if self.side(query.shape[2]) <= SIDES[1]:  # (batch, heads, positions, dim)
            self.looks[block] = (query, key)

    def see_words(self, block: str, query: Tensor, key: Tensor) -> None:
        """Add one cross-attention layer's share of the attention that goes to the subject.

        Args:
            query, key: (batch, heads, positions, head_dim) and (batch, heads, tokens, head_dim).
        """
        if self.side(query.shape[2]) > SIDES[1]:
            return
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        attention = scores.softmax(-1)
        total = attention[..., self.words].sum(-1).clamp_min(torch.finfo(attention.dtype).tiny)
        share = (attention[..., self.subject].sum(-1) / total).mean(1)  # (batch, positions)
        look = self.looks.pop(block, None)
        for _ in range(SPREADS if look else 0):
            share = _carried(share, *look)  # type: ignore[misc]
        self.sums[block] = self.sums[block] + share if block in self.sums else share

    def result(self) -> Tensor:
        """The mean over the layers, each of the same weight, on the latents' grid. (batch, 1, h, w)"""
        if not self.sums:
            raise ModelError(
                "This UNet showed no attention to the prompt that a mask could be read from; use --masks none, alpha "
                "or a folder."
            )
        sides = {block: self.side(total.shape[1]) for block, total in self.sums.items()}
        least = min(SIDES[0], max(sides.values()))
        maps = []
        for block, total in self.sums.items():
            if sides[block] >= least:
                grid = total.view(-1, 1, *self.grid(total.shape[1]))
                even = grid / grid.mean((2, 3), keepdim=True).clamp_min(torch.finfo(grid.dtype).tiny)
                maps.append(F.interpolate(even, self.size, mode="bilinear", align_corners=False))
        return torch.stack(maps).mean(0)


class _ReadingProcessor:
    """Shows a reader the queries and keys, then does what the processor does that it stands in for."""

    def __init__(self, reader: _Reader, block: str, original: Any) -> None:
        self.reader, self.block, self.original = reader, block, original

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, **options: Any,
    ) -> Tensor:  # fmt: skip
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _heads(attn.to_q(hidden_states), attn.heads)
        key = _heads(attn.to_k(states), attn.heads)
        see = self.reader.see_self if encoder_hidden_states is None else self.reader.see_words
        see(self.block, query, key)
        out: Tensor = self.original(
            attn, hidden_states, encoder_hidden_states, attention_mask, temb, **options
        )
        return out


@contextmanager
def _reading(
    unet: UNet2DConditionModel, subject: tuple[int, ...], words: tuple[int, ...]
) -> Iterator[_Reader]:
    """Readers in the place of the attention processors, for the length of a with block."""
    from diffusers.models.attention_processor import Attention

    reader = _Reader(subject, words)
    layers: list[tuple[str, Any]] = [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith((".attn1", ".attn2"))
    ]
    originals = [module.processor for _, module in layers]
    try:
        for name, module in layers:
            module.set_processor(_ReadingProcessor(reader, name.rpartition(".")[0], module.processor))
        yield reader
    finally:
        for (_, module), original in zip(layers, originals, strict=True):
            module.set_processor(original)


def _carried(share: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Each position's share replaced by that of the positions it attends to, the mean over the heads. The shares go
    through attention as its values, as wide as the queries, which the kernels that keep no map ask for."""
    values = share[:, None, :, None].expand_as(key).contiguous()
    carried: Tensor = F.scaled_dot_product_attention(query, key, values)[..., 0].mean(1)
    return carried


def _heads(states: Tensor, heads: int) -> Tensor:
    """(batch, positions, channels) -> (batch, heads, positions, channels / heads), float32."""
    return torch.unflatten(states.float(), -1, (heads, -1)).transpose(1, 2)


def _repeated(conditions: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The conditions with every tensor of batch 1 repeated `count` times."""
    repeated: dict[str, Any] = {}
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            repeated[name] = _repeated(value, count)
        elif isinstance(value, Tensor) and value.dim() and len(value) == 1:
            repeated[name] = value.expand(count, *value.shape[1:])
        else:
            repeated[name] = value
    return repeated
