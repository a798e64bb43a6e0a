"""From a request's prompts to what the UNet reads of them: tokens, encodings, edit."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perfusion.conditioning import PromptState, conditioned
from perfusion.errors import RequestError
from perfusion.runtime.bank import Bank
from perfusion.runtime.graphs import Graphs
from perfusion.runtime.request import Request
from perfusion.runtime.tokenizer import PromptTokenizer, TokenizedPrompt, Word

__all__ = ["PromptEncoder"]

Array = NDArray[np.float32]

_log = logging.getLogger(__name__)


class PromptEncoder:
    """Prompts in the light of the concepts loaded now. Each is encoded alone: none depends on its batch."""

    def __init__(self, tokenizer: PromptTokenizer, bank: Bank, graphs: Graphs) -> None:
        self._graphs = graphs
        self._tokenizer = tokenizer
        self._bank = bank

    def states(self, request: Request) -> list[list[PromptState]]:
        """The UNet's rows for each picture: the unconditional one, when there is guidance, and its prompt's.

        Raises:
            RequestError: a prompt that cannot be served.
        """
        words = {
            token: Word(rows=one.rows, superclass=one.superclass, active=bool(self._bank.active([token])))
            for token, one in self._bank.concepts.items()
        }
        prompts = [self._tokenizer.tokenize(prompt, words) for prompt in request.prompts]
        negatives = [self._tokenizer.tokenize(prompt, words) for prompt in request.negative_prompts]
        for negative in negatives:
            if negative.concepts:
                raise RequestError(
                    f"The negative prompt names {negative.concepts[0]}, and the unconditional row is always "
                    f"the base model's. Write {words[negative.concepts[0]].superclass!r} instead."
                )
        _warn(request, [*prompts, *negatives])
        return [
            [
                *([self._plain(negative)] if request.guided else []),
                self._edited(prompt, request),
            ]
            for prompt, negative in zip(prompts, negatives, strict=True)
        ]

    def _plain(self, prompt: TokenizedPrompt) -> PromptState:
        """A prompt as the base model reads it."""
        encodings = self._encode(prompt.input_ids, prompt.concepts)
        return conditioned(encodings, self._bank.rows(()))

    def _edited(self, prompt: TokenizedPrompt, request: Request) -> PromptState:
        """A prompt with the edit of the concepts it names; those of strength 0 are read as their superclass."""
        active = self._bank.active(prompt.concepts)
        if not active:
            return self._plain(prompt)
        encodings = self._encode(prompt.input_ids, prompt.concepts)
        lock = request.lock or self._bank.common_lock(active)
        rows = self._bank.rows(active)
        if lock == "local":
            return conditioned(encodings, rows, gates=request.gates)
        superclass_ids, counterparts = self._tokenizer.superclass_version(prompt)
        superclass = self._encode(superclass_ids, ())[counterparts]
        return conditioned(encodings, rows, lock, superclass, request.gates)

    def _encode(self, input_ids: NDArray[np.int64], tokens: Sequence[str]) -> Array:
        """(tokens, text_dim) encodings of one prompt; placeholders read the learned words of `tokens`."""
        embeddings = self._bank.embeddings(tokens)
        outputs = self._graphs.run("text_encoder", input_ids=input_ids[None], concept_embeddings=embeddings)
        encodings = outputs["last_hidden_state"]
        return encodings.reshape(encodings.shape[1:])


def _warn(request: Request, prompts: Sequence[TokenizedPrompt]) -> None:
    """Say what will be drawn otherwise than its author may expect."""
    for word in dict.fromkeys(word for prompt in prompts for word in prompt.unknown):
        _log.warning("no concept named %s is loaded, so it is read as plain text", word)
    if not request.guided and any(request.negative_prompts):
        _log.warning("the negative prompt has no effect at a guidance scale of 1")
