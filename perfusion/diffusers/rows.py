"""Which prompt a row of the UNet's batch belongs to: told by its encodings, whatever a pipeline did to the batch."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfusion.concept.conditioning import PromptState, conditioned, readings_joined, unet_feeds
from perfusion.concept.phases import in_force
from perfusion.errors import RequestError

__all__ = ["Phase", "PromptRows", "prompt_rows"]

_log = logging.getLogger(__name__)

_MOST_KEPT = 256  # prompts; one of SDXL's takes up to 1.3 MB

Size = tuple[int, int]
"""Height and width of latents."""

Texts = tuple[str, ...]
"""One prompt as it is given to each text encoder."""


def prompt_rows(arguments: Mapping[str, Any], encoders: int) -> tuple[list[Texts], list[Texts]]:
    """The prompts and the negative prompts that a call of `encode_prompt` is to encode, by its arguments.

    What comes as finished encodings is not among them, nor are negative prompts without guidance. What is no text is
    left to the pipeline to refuse.
    """
    prompts: list[Texts] = []
    negatives: list[Texts] = []
    if arguments.get("prompt_embeds") is None:
        prompts = _side(arguments.get("prompt"), arguments.get("prompt_2"), encoders, 1)
    if arguments.get("negative_prompt_embeds") is None and arguments.get("do_classifier_free_guidance", True):
        # where the prompts come as encodings, one negative text still may serve them all
        embeds = arguments.get("prompt_embeds")
        count = len(prompts) if embeds is None else len(embeds)
        negatives = _side(
            arguments.get("negative_prompt"), arguments.get("negative_prompt_2"), encoders, count
        )
    return prompts, negatives


def _side(first: Any, second: Any, encoders: int, count: int) -> list[Texts]:
    """One entry a prompt; a single text stands for `count` of them."""
    if not (first or second):
        return []
    columns = [first or "", second or first][:encoders]
    lists = [[column] * count if isinstance(column, str) else column for column in columns]
    if not all(
        isinstance(column, list | tuple) and all(isinstance(text, str) for text in column) for column in lists
    ):
        return []
    if len({len(column) for column in lists}) != 1:
        return []
    return [tuple(texts) for texts in zip(*lists, strict=True)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Phase:
    """What a prompt's row reads from a share of the noise levels on."""

    start: float
    state: PromptState
    readings: tuple[
        PromptState, ...
    ] = ()  # where the things of the prompt have regions, in the place of `state`
    maps: Callable[[Size], np.ndarray] | None = None  # (readings, height, width) for latents of a size
    pooled: np.ndarray | None = None  # (pooled_dim,), where it is not what the pipeline gives


@dataclass(frozen=True, kw_only=True, eq=False)
class Feeds:
    """What the UNet reads in one call."""

    inputs: dict[str, Tensor]  # as `perfusion.concept.conditioning.unet_feeds` names them
    regions: Tensor | None  # (batch, readings, height, width); None: each row has one reading
    pooled: dict[int, Tensor]  # of the rows whose pooled state is not what the pipeline gives

    def with_pooled(self, states: Tensor) -> Tensor:
        """(batch, pooled_dim) with the rows' own in their places."""
        changed = states.clone()
        for row, pooled in self.pooled.items():
            changed[row] = pooled.to(states)
        return changed


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """A pipeline's encodings, and the phases of its rows; what the UNet is fed of them by the phases' starts."""

    states: Tensor
    version: int
    rows: list[tuple[Phase, ...] | None] | None  # None: all the base model's
    feeds: dict[tuple[Any, ...], Feeds]


class PromptRows:
    """The edits of the prompts that were encoded last, found again by their encodings."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Know nothing."""
        self._states: OrderedDict[bytes, tuple[Phase, ...]] = OrderedDict()
        self._forgotten: set[bytes] = set()
        self._awaited = False  # a prompt with a concept was encoded, and no row of the UNet's was it yet
        self._seen: _Seen | None = None

    def keep(self, encodings: Tensor, phases: Sequence[Phase]) -> None:
        """Know the rows with these encodings (tokens, text_dim) from now on; what was kept last for them counts.

        Args:
            phases: in the order of their starts, the first of which is 0.
        """
        (digest,) = _digests(encodings[None])
        self._states[digest] = tuple(phases)
        self._states.move_to_end(digest)
        self._forgotten.discard(digest)
        while len(self._states) > _MOST_KEPT:
            forgotten, _ = self._states.popitem(last=False)
            self._forgotten.add(forgotten)
        self._awaited, self._seen = True, None

    def drop(self, encodings: Tensor) -> None:
        """Know rows (batch, tokens, text_dim) no more: the same text was read again, without marks or regions."""
        known = [digest for digest in _digests(encodings) if digest in self._states] if self._states else []
        for digest in known:
            self._states.pop(digest, None)
        if known:
            self._seen = None

    def feeds(self, states: Tensor, share: Callable[[], float], size: Size) -> Feeds | None:
        """What the UNet reads for a batch of encodings (batch, tokens, text_dim), on their device.

        None where no row is known, which is then the base model's.

        Args:
            share: of the noise levels, how many lie behind; asked where a concept starts late, since reading it waits
                for the device.
            size: of the latents.

        Raises:
            RequestError: a row of a prompt that was encoded too long ago.
        """
        version = -1 if states.is_inference() else states._version
        seen = self._seen
        if seen is None or seen.states is not states or seen.version != version:
            # found once a picture: a pipeline hands the same tensor to the UNet in every step
            seen = self._seen = _Seen(states=states, version=version, rows=self._phases(states), feeds={})
        if seen.rows is None:
            return None
        late = any(phases is not None and len(phases) > 1 for phases in seen.rows)
        now = share() if late else 0.0
        chosen = [None if phases is None else in_force(phases, now) for phases in seen.rows]
        key = (size, *(None if phase is None else phase.start for phase in chosen))
        if key not in seen.feeds:
            seen.feeds[key] = _feeds(states, chosen, size)
        return seen.feeds[key]

    def _phases(self, states: Tensor) -> list[tuple[Phase, ...] | None] | None:
        digests = _digests(states) if self._states and states.ndim == 3 else []
        if any(digest in self._forgotten for digest in digests):
            raise RequestError(
                f"These encodings are of a prompt with a concept, encoded more than {_MOST_KEPT} such prompts ago. "
                "Encode the prompt again."
            )
        known = [self._states.get(digest) for digest in digests]
        if not any(known):
            if self._awaited:
                _log.warning(
                    "a prompt with a concept was encoded, and the UNet was then given other encodings: it draws "
                    "without the concept"
                )
            self._awaited = False
            return None
        self._awaited = False
        return known


def _feeds(states: Tensor, chosen: Sequence[Phase | None], size: Size) -> Feeds:
    """The UNet's inputs of a batch whose rows stand in these phases; None: the base model's row."""
    without = next(phase.state.rows for phase in chosen if phase is not None).none()
    pairs = zip(_numbers(states), chosen, strict=True)
    rows = [conditioned(row, without) if phase is None else phase.state for row, phase in pairs]
    count = max(len(phase.readings) for phase in chosen if phase is not None)
    if count:
        rows = [_joined(row, phase, count) for row, phase in zip(rows, chosen, strict=True)]
        maps = np.stack([_maps(phase, count, size) for phase in chosen])
    inputs = {name: torch.from_numpy(array).to(states.device) for name, array in unet_feeds(rows).items()}
    return Feeds(
        regions=torch.from_numpy(maps).to(states.device) if count else None,
        inputs={
            name: tensor.to(states.dtype) if "hidden" in name else tensor for name, tensor in inputs.items()
        },
        pooled={
            row: torch.from_numpy(phase.pooled).to(states.device)
            for row, phase in enumerate(chosen)
            if phase is not None and phase.pooled is not None
        },
    )


def _joined(row: PromptState, phase: Phase | None, count: int) -> PromptState:
    """A row with `count` readings one after another; those that it lacks repeat its first."""
    readings = phase.readings if phase is not None and phase.readings else (row,)
    return readings_joined([*readings, *readings[:1] * (count - len(readings))], row.rows)


def _maps(phase: Phase | None, count: int, size: Size) -> np.ndarray:
    """Where a row's readings are read, (count, height, width): its only one everywhere."""
    maps = np.zeros((count, *size), np.float32)
    if phase is None or phase.maps is None:
        maps[0] = 1
    else:
        own = phase.maps(size)
        maps[: len(own)] = own
    return maps


def _digests(states: Tensor) -> list[bytes]:
    """A name for each row of encodings (batch, tokens, text_dim), by their bits in half precision: a pipeline may
    encode in float32 and draw in float16."""
    rows = states.detach().to("cpu", torch.float16).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _numbers(states: Tensor) -> np.ndarray:
    array: np.ndarray = states.detach().to("cpu", torch.float32).numpy()
    return array
