"""Which prompt a row of the UNet's batch belongs to: told by its encodings, whatever a pipeline did to the batch."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfusion.conditioning import PromptState, conditioned, unet_feeds
from perfusion.errors import RequestError

__all__ = ["PromptRows", "prompt_rows"]

_log = logging.getLogger(__name__)

_MOST_KEPT = 256  # prompts; one of SDXL's takes up to 1.3 MB

Texts = tuple[str, ...]
"""One prompt as it is given to each text encoder."""


def prompt_rows(given: Mapping[str, Any], encoders: int) -> tuple[list[Texts], list[Texts]]:
    """The prompts and the negative prompts that a call of `encode_prompt` is to encode, by its arguments.

    What comes as finished encodings is not among them, nor are negative prompts without guidance. What is no text is
    left to the pipeline to refuse.
    """
    prompts: list[Texts] = []
    negatives: list[Texts] = []
    if given.get("prompt_embeds") is None:
        prompts = _side(given.get("prompt"), given.get("prompt_2"), encoders, 1)
    if given.get("negative_prompt_embeds") is None and given.get("do_classifier_free_guidance", True):
        # where the prompts come as encodings, one negative text still may serve them all
        embeds = given.get("prompt_embeds")
        count = len(prompts) if embeds is None else len(embeds)
        negatives = _side(given.get("negative_prompt"), given.get("negative_prompt_2"), encoders, count)
    return prompts, negatives


def _side(first: Any, second: Any, encoders: int, count: int) -> list[Texts]:
    """One entry a prompt; a single text stands for `count` of them."""
    if not (first or second):
        return []
    columns = [first or "", second or first][:encoders]
    lists = [[column] * count if isinstance(column, str) else column for column in columns]
    if not all(isinstance(one, list | tuple) and all(isinstance(text, str) for text in one) for one in lists):
        return []
    if len({len(one) for one in lists}) != 1:
        return []
    return [tuple(texts) for texts in zip(*lists, strict=True)]


class PromptRows:
    """The edits of the prompts that were encoded last, found again by their encodings."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Know nothing."""
        self._states: OrderedDict[bytes, PromptState] = OrderedDict()
        self._forgotten: set[bytes] = set()
        self._awaited = False  # a prompt with a concept was encoded, and no row of the UNet's was it yet
        self._seen: tuple[Tensor, int, dict[str, Tensor] | None] | None = None

    def keep(self, encodings: Tensor, state: PromptState) -> None:
        """Know the rows with these encodings (tokens, text_dim) from now on; the state kept last for them counts."""
        (digest,) = _digests(encodings[None])
        self._states[digest] = state
        self._states.move_to_end(digest)
        self._forgotten.discard(digest)
        while len(self._states) > _MOST_KEPT:
            forgotten, _ = self._states.popitem(last=False)
            self._forgotten.add(forgotten)
        self._awaited, self._seen = True, None

    def feeds(self, states: Tensor) -> dict[str, Tensor] | None:
        """What the UNet's attention reads for a batch of encodings (batch, tokens, text_dim), on their device.

        As `perfusion.conditioning.unet_feeds` names it; None where no row is known, which is then the base model's.

        Raises:
            RequestError: a row of a prompt that was encoded too long ago.
        """
        version = -1 if states.is_inference() else states._version
        if self._seen is None or self._seen[0] is not states or self._seen[1] != version:
            # found once a picture: a pipeline hands the same tensor to the UNet in every step
            self._seen = (states, version, self._found(states))
        return self._seen[2]

    def _found(self, states: Tensor) -> dict[str, Tensor] | None:
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
        without = next(one.rows for one in known if one is not None).none()
        pairs = zip(_numbers(states), known, strict=True)
        rows = [conditioned(row, without) if one is None else one for row, one in pairs]
        made = {name: torch.from_numpy(array).to(states.device) for name, array in unet_feeds(rows).items()}
        return {name: one.to(states.dtype) if "hidden" in name else one for name, one in made.items()}


def _digests(states: Tensor) -> list[bytes]:
    """A name for each row of encodings (batch, tokens, text_dim), by their bits in half precision: a pipeline may
    encode in float32 and draw in float16."""
    rows = states.detach().to("cpu", torch.float16).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _numbers(states: Tensor) -> np.ndarray:
    array: np.ndarray = states.detach().to("cpu", torch.float32).numpy()
    return array
