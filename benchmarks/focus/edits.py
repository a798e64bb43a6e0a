"""How padding and the rest of a prompt are read beside a concept's word, in training and in drawing alike.

Kinds of reading:

- `product`: every token has the edit, as it ships.
- `padding-shut`: the end token and the padding do without the edit.
- `padding-plain`: they are those of the superclass's prompt; nothing of the learned word is in them.
- `context-lock`: every key and value is that of the superclass's prompt. The learned word decides the gates alone, and
  through them comes what is learned of the values, as a difference from the superclass's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perfusion.concept import conditioning, reading
from perfusion.concept.bank import ConceptBank, EditRows
from perfusion.concept.conditioning import PromptState
from perfusion.concept.reading import PromptText, ReadPrompt
from perfusion.runtime.text import prompt_encoder
from perfusion.training import training_loop as loop
from perfusion.training.rank_one import Edit, RankOneEdit
from perfusion.training.templates import TEMPLATES, as_tensors, input_ids, word_ids

__all__ = ["KINDS", "OtherReading", "padding_hidden", "prompts_known", "reading_as", "reread"]

KINDS = ("product", "padding-shut", "padding-plain", "context-lock")
Array = NDArray[Any]


class OtherReading(RankOneEdit):
    """The edit under another kind of reading."""

    kind = "product"
    padding: Tensor
    """(used, tokens): where the batch's prompts have ended."""
    superclass: Tensor
    """(used, tokens, text_dim): the encodings of the same prompts with the superclass's word."""

    def forward(self, encodings: Tensor, concept: Tensor) -> Edit:
        edit = super().forward(encodings, concept)
        if self.kind == "product":
            return edit
        if self.kind == "context-lock":
            # the sum that is zero ties the encodings to what is trained, which the loop expects of them
            return Edit(encodings=self.superclass + 0.0 * edit.encodings, gate=edit.gate)
        plain = encodings.float() if self.kind == "padding-shut" else self.superclass
        shut = self.padding[..., None]
        return Edit(encodings=torch.where(shut, plain, edit.encodings), gate=edit.gate.masked_fill(shut, 0.0))


def reread(kind: str, state: PromptState, learned: Array, superclass: Array, padding: Array) -> PromptState:
    """A prompt's state under another kind of reading.

    Args:
        state: as the product reads it.
        learned, superclass: (tokens, text_dim), the encodings of the prompt and of the one with the superclass's word.
        padding: (tokens,) bool, from the end token on.
    """
    own = state.conditioning
    if kind == "context-lock":
        return replace(state, conditioning=replace(own, key_states=superclass, value_states=superclass))
    plain = learned if kind == "padding-shut" else superclass
    shut = padding[:, None]
    states = np.where(shut, plain, own.value_states).astype(np.float32)
    # the gates are opened anew from the response whenever a bias changes: what resembles nothing stays shut
    response = np.where(shut, -np.inf, own.response)
    changed = replace(own, key_states=states, value_states=states, response=response)
    return replace(state, conditioning=changed)


@contextmanager
def reading_as(kind: str) -> Iterator[None]:
    """The runtime's prompts with a concept are read in this way. `context-lock` is drawn with the global lock, which
    leaves keys without the concept's."""
    if kind == "product":
        yield
        return
    read: dict[str, Array] = {}

    def read_parts(
        texts: Sequence[PromptText], bank: ConceptBank, active: Sequence[str], lock: str
    ) -> ReadPrompt:
        """As the runtime reads, noting the padding and how the superclass is read."""
        prompt = reading.read_parts(texts, bank, active, "global")
        assert prompt.keys is not None
        lengths = [text.tokenize(bank.words(active))[0] for text in texts]
        read["padding"] = np.concatenate(
            [np.arange(len(tokens.input_ids)) >= tokens.length - 1 for tokens in lengths]
        )
        read["superclass"] = prompt.keys
        return prompt if lock == "global" else replace(prompt, keys=None)

    def conditioned(encodings: Array, rows: EditRows, *rest: Any) -> PromptState:
        state = conditioning.conditioned(encodings, rows, *rest)
        return state if not rows.slots else reread(kind, state, encodings, **read)

    with (
        mock.patch.object(prompt_encoder, "read_parts", read_parts),
        mock.patch.object(prompt_encoder, "conditioned", conditioned),
    ):
        yield


@contextmanager
def prompts_known(edit: OtherReading, superclass: str) -> Iterator[None]:
    """Tell an edit, before each batch, where its prompts end and how the superclass would be read in them."""
    original, plain = loop.condition_batch, list[Tensor]()

    def condition_batch(base: Any, edit: Any, prompts: Any, chosen: Any, device: torch.device) -> Any:
        """As the training does, with the edit told of the batch before."""
        if not plain:
            words = [word_ids(tokenizer, superclass) for tokenizer in base.tokenizers]
            ids = as_tensors([input_ids(base, template, words) for template in TEMPLATES], device)
            with torch.no_grad():
                plain.append(base.encode(ids, pooled=False).hidden.float())
        used = sorted(set(chosen))
        places = torch.tensor([prompts[index].last for index in used])
        # every template ends with the concept's word
        edit.padding = torch.arange(plain[0].shape[1]) > places[:, None]
        edit.superclass = plain[0][used]
        return original(base, edit, prompts, chosen, device)

    with mock.patch.object(loop, "condition_batch", condition_batch):
        yield


@contextmanager
def padding_hidden(share: int) -> Iterator[None]:
    """While training, every `share`-th sample of a batch does not see the padding behind its prompt's end token;
    with 0 all do."""
    if not share:
        yield
        return
    original = loop.unet_output

    def unet_output(base: Any, edit: Any, conditions: Any, piece: slice, noisy: Tensor, times: Tensor) -> Any:
        where = conditions.where[piece]
        padding = edit.padding.index_select(0, where)
        visible = ~(padding & padding.roll(1, 1))  # the end token itself stays
        visible[torch.arange(len(where)) % share != 0] = True
        hiding = mock.patch.object(base.unet, "forward", _with(base.unet.forward, visible))
        with hiding:
            return original(base, edit, conditions, piece, noisy, times)

    with mock.patch.object(loop, "unet_output", unet_output):
        yield


def _with(forward: Any, visible: Tensor) -> Any:
    """A UNet's forward that does not look at some tokens, (batch, tokens) bool."""

    def masked(*inputs: Any, **options: Any) -> Any:
        return forward(*inputs, encoder_attention_mask=visible, **options)

    return masked
