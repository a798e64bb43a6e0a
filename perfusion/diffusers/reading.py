"""What a pipeline makes of its prompts once it can read the concepts' words: encodings, and the edit of each."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perfusion.concept.bank import ConceptBank
from perfusion.concept.blending import blended
from perfusion.concept.conditioning import conditioned
from perfusion.concept.words import TokenizedPrompt, Word, aligned, named, superclass_version, unknown
from perfusion.diffusers.placeholders import Reader, reading_words
from perfusion.diffusers.rows import Phase, PromptRows, Texts, prompt_rows

__all__ = ["Call", "PromptReading"]

_log = logging.getLogger("perfusion.diffusers")

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """A call of a pipeline's own `encode_prompt`, which can be made again."""

    pipeline: Any
    method: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def make(self) -> Any:
        """Encodings of prompts and of negative prompts; of two text encoders then both pooled states."""
        return self.method(*self.args, **self.kwargs)

    def arguments(self) -> Mapping[str, Any]:
        """All of them by their names, with the defaults."""
        bound = inspect.signature(self.method).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments


class _Prompt:
    """One prompt among those of a call, in all the ways that the strengths of its concepts ask for.

    `tokens`: those of its concepts that are on; `off`: those that start later, and are their superclass.
    """

    def __init__(
        self, texts: Texts, tokens: tuple[str, ...], off: frozenset[str], readers: Sequence[Reader], bank: ConceptBank,
        encoded: Mapping[frozenset[str], tuple[Any, ...]], place: tuple[int, int],
    ) -> None:  # fmt: skip
        self.tokens, self.off = tokens, off
        self._side, self._row = place
        self._readers, self._encoded = readers, encoded
        readings = bank.readings(tokens)
        self.weights = [one.weight for one in readings]
        # the call as a whole may name more concepts than this prompt, so several of its readings may be alike here
        self._calls = [
            next(made for on, made in encoded.items() if on.intersection({*tokens, *off}) == one.active)
            for one in readings
        ]
        whole = self._tokenized(texts, bank.words(tokens))
        self._read = [self._tokenized(texts, bank.words(one.active)) for one in readings]
        # by the first text encoder for both, whose tokens stand side by side: they are of one text as a rule
        self._places = [aligned(whole[0], one[0]) for one in self._read]

    def encodings(self) -> Array:
        """(tokens, text_dim), as the strengths blend them."""
        made = [_numbers(call[self._side][self._row]) for call in self._calls]
        return blended([one[at] for one, at in zip(made, self._places, strict=True)], self.weights)

    def pooled(self) -> Array:
        """(pooled_dim,), of a pipeline with two text encoders."""
        return blended([_numbers(call[self._side + 2][self._row]) for call in self._calls], self.weights)

    def superclass(self) -> Array:
        """(tokens, text_dim): the prompt with superclasses, each token's counterpart in its place."""
        plain = _numbers(self._encoded[frozenset()][self._side][self._row])
        parts = []
        for read, at in zip(self._read, self._places, strict=True):
            columns, start = [], 0
            for reader, one in zip(self._readers, read, strict=True):
                width = int(reader.text_encoder.config.hidden_size)
                columns.append(plain[superclass_version(one, reader.frame)[1], start : start + width])
                start += width
            parts.append(np.concatenate(columns, axis=1)[at])
        return blended(parts, self.weights)

    def _tokenized(self, texts: Texts, words: Mapping[str, Word]) -> list[TokenizedPrompt]:
        return [reader.tokenize(text, words) for reader, text in zip(self._readers, texts, strict=True)]


class PromptReading:
    """Encodes prompts with the concepts of a bank as words, and keeps the edits of their encodings in `rows`."""

    def __init__(self, readers: Sequence[Reader], bank: ConceptBank, rows: PromptRows) -> None:
        self._readers, self._bank, self._rows = readers, bank, rows

    def encode(self, call: Call, lock: str | None, gates: str) -> Any:
        """The pipeline's encodings of a call's prompts. `lock` None: what the concepts' files say."""
        sides = prompt_rows(call.arguments(), len(self._readers))
        prompts = [texts for side in sides for texts in side]
        self._warn(text for texts in prompts for text in texts)
        known = self._bank.words()
        if not any(named(text, known) for texts in prompts for text in texts):
            return call.make()
        active = [self._active(texts) for texts in prompts]
        locks = {lock or self._bank.common_lock(tokens) for tokens in active if tokens}
        encoded = self._readings(call, [token for tokens in active for token in tokens], "global" in locks)
        made = list(next(iter(encoded.values())))
        for index, side in enumerate(sides):
            for row, texts in enumerate(side):
                if not (tokens := self._active(texts)):
                    continue
                count = len(made[index]) // len(side)  # each prompt has its pictures in a row
                mode, phases = lock or self._bank.common_lock(tokens), list[Phase]()
                for start in self._bank.starts(tokens):
                    on = self._bank.started(tokens, start)
                    off = frozenset(tokens).difference(on)
                    prompt = _Prompt(texts, on, off, self._readers, self._bank, encoded, (index, row * count))
                    phases.append(self._phase(prompt, start, mode, gates, len(made) > 2))
                if len(prompt.weights) > 1:  # the last, with all of its concepts
                    _put(made, index, slice(row * count, (row + 1) * count), prompt)
                self._rows.keep(made[index][row * count], phases)
        return tuple(made)

    def _readings(
        self, call: Call, tokens: Iterable[str], superclasses: bool
    ) -> dict[frozenset[str], tuple[Any, ...]]:
        """What the call gives with some concepts as words, by which they are; the most of them first."""
        tokens = tuple(dict.fromkeys(tokens))
        wanted = [
            one.active
            for start in reversed(self._bank.starts(tokens))
            for one in self._bank.readings(self._bank.started(tokens, start))
        ]
        if superclasses:
            wanted.append(frozenset())
        return {active: self._read(call, active) for active in dict.fromkeys(wanted)}

    def _read(self, call: Call, active: Container[str]) -> tuple[Any, ...]:
        with ExitStack() as stack:
            for index, reader in enumerate(self._readers):
                table = torch.from_numpy(self._bank.embeddings(list(self._bank.concepts), index).copy())
                words = reader.numbered(self._bank.words(active))
                stack.enter_context(reading_words(call.pipeline, reader, words, table))
            return tuple(call.make())

    def _phase(self, prompt: _Prompt, start: float, lock: str, gates: str, pooled: bool) -> Phase:
        """The edit of one prompt's encodings with those of its concepts that have started."""
        rows = self._bank.rows(prompt.tokens)
        keys = prompt.superclass() if lock == "global" else None
        return Phase(
            start=start,
            state=conditioned(prompt.encodings(), rows, lock, keys, gates),
            pooled=prompt.pooled() if pooled and prompt.off else None,
        )

    def _active(self, texts: Texts) -> tuple[str, ...]:
        """The concepts in force in a prompt, which may say different things to two text encoders."""
        known = self._bank.words()
        return self._bank.active(dict.fromkeys(token for text in texts for token in named(text, known)))

    def _warn(self, texts: Iterable[str]) -> None:
        known = self._bank.words()
        found = dict.fromkeys(word for text in texts for word in unknown(text, known, self._readers[0].knows))
        for word in found:
            _log.warning("no concept named %s is loaded, so it is read as plain text", word)


def _put(made: list[Any], side: int, span: slice, prompt: _Prompt) -> None:
    """Blended encodings in the place of one prompt's, in copies: what a pipeline returned is not ours to change."""
    wanted = {side: prompt.encodings()}
    if len(made) > 2:
        wanted[side + 2] = prompt.pooled()
    for index, array in wanted.items():
        copy = made[index].clone()
        copy[span] = torch.from_numpy(array).to(copy.device, copy.dtype)
        made[index] = copy


def _numbers(encodings: Any) -> Array:
    """A tensor as float32 numbers on the host."""
    array: Array = encodings.detach().to("cpu", torch.float32).numpy()
    return array
