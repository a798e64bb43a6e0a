"""What a pipeline makes of its prompts once it can read the concepts' words: encodings, and the edit of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perfusion.concept.bank import ConceptBank
from perfusion.concept.conditioning import PromptState, conditioned, weighed
from perfusion.concept.layout import Regions, lay_out
from perfusion.concept.notices import PromptNotices
from perfusion.concept.prompt_syntax import DEFAULT_SYNTAX, parse_prompt
from perfusion.concept.reading import Encoding, ReadPrompt, joined, read_parts
from perfusion.concept.weighted_text import WeightedText
from perfusion.concept.words import TokenizedPrompt, Word, named, unknown
from perfusion.diffusers.calls import Call
from perfusion.diffusers.placeholders import Reader, reading_words
from perfusion.diffusers.rows import Phase, PromptRows, Size, Texts, prompt_rows
from perfusion.errors import RequestError

__all__ = ["PromptReader"]

_log = logging.getLogger("perfusion.diffusers")

Array = NDArray[np.float32]

_ANY_SIZE = (64, 64)  # of latents: how many readings a prompt has does not depend on it

_Output = tuple[Any, ...]
"""Encodings of prompts and of negative prompts, and with two text encoders both pooled states."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prompt:
    """One prompt of a call."""

    texts: tuple[WeightedText, ...]  # one a text encoder, without syntax and marks
    bank: ConceptBank  # with the strengths that the prompt writes itself
    readings: tuple[WeightedText, ...] = ()  # of its things, where they have regions
    maps: Callable[[Size], Array] | None = None  # where in the picture they are read

    @property
    def parts(self) -> int:
        """How many parts its breaks make of it."""
        return max(len(text.parts()) for text in self.texts)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The concepts in force in it at some time; it may say different things to two text encoders."""
        known = self.bank.words()
        return self.bank.active(
            dict.fromkeys(token for text in self.texts for token in named(text.text, known))
        )

    def part(self, at: int) -> tuple[WeightedText, ...]:
        """Its text number `at`, empty behind the last."""
        return tuple(_part(text, at) for text in self.texts)


@dataclass(frozen=True, kw_only=True, eq=False)
class _PipelineText:
    """A part of one prompt among those of a call, as the pipeline has read it.

    It is a `perfusion.concept.reading.PromptText`.
    """

    texts: tuple[WeightedText, ...]  # one a text encoder, which may say different things
    readers: Sequence[Reader]
    concepts: frozenset[str]  # all that are in force in it at some time
    outputs: Mapping[frozenset[str], _Output]  # the call's, by the concepts that were words in it
    side: int
    row: int

    @property
    def is_weighted(self) -> bool:
        """Whether some of its words count more or less than 1."""
        return any(text.weights for text in self.texts)

    @property
    def widths(self) -> list[int]:
        return [int(reader.text_encoder.config.hidden_size) for reader in self.readers]

    def tokenize(self, words: Mapping[str, Word]) -> tuple[TokenizedPrompt, ...]:
        return tuple(
            reader.tokenize(text, words) for reader, text in zip(self.readers, self.texts, strict=True)
        )

    def encode(self, prompt: tuple[TokenizedPrompt, ...]) -> Encoding:
        """The call as a whole may name more concepts than this prompt, so several of its outputs may be alike here."""
        active = {token for text in prompt for token in text.concepts}
        output = next(output for words, output in self.outputs.items() if words & self.concepts == active)
        pooled = _numbers(output[self.side + 2][self.row]) if len(output) > 2 else None
        return Encoding(hidden=_numbers(output[self.side][self.row]), pooled=pooled)


class PromptReader:
    """Encodes prompts with the concepts of a bank as words, and keeps the edits of their encodings in `rows`."""

    def __init__(self, readers: Sequence[Reader], bank: ConceptBank, rows: PromptRows) -> None:
        self._readers, self._bank, self._rows = readers, bank, rows
        self._notices = PromptNotices(_log)

    def encode(
        self, call: Call, lock: str | None, gates: str, regions: Regions = None, syntax: str = DEFAULT_SYNTAX
    ) -> Any:
        """The pipeline's encodings of a call's prompts. `lock` None: what the concepts' files say."""
        written = prompt_rows(call.arguments(), len(self._readers))
        prompts, negatives = ([self._parsed(texts, call, syntax) for texts in side] for side in written)
        if regions is not None:
            prompts = self._laid_out(prompts, regions)
        both = [*prompts, *negatives]
        self._warn([text.text for prompt in both for text in prompt.texts])
        calls = _calls(call, written, (prompts, negatives))
        known = self._bank.words()
        is_plain = not any(prompt.readings or any(text.weights for text in prompt.texts) for prompt in both)
        if is_plain and not any(named(text.text, known) for prompt in both for text in prompt.texts):
            return self._plain(calls, written)
        outputs = self._outputs(calls, both, lock)
        encodings = _joined([next(iter(output.values())) for output in outputs])
        for index, side in enumerate((prompts, negatives)):
            for number, prompt in enumerate(side):
                count = len(encodings[index]) // len(side)  # each prompt has its pictures in a row
                span = slice(number * count, (number + 1) * count)
                tokens = prompt.tokens
                # a prompt of plain things has no concept, and so no lock of its own
                its_lock = lock or (prompt.bank.common_lock(tokens) if tokens else "local")
                texts = self._texts(prompt, tokens, outputs, index, span.start)
                phases, last = self._phases(prompt, tokens, texts, its_lock, gates)
                if last.factor is not None or len(prompt.bank.readings(tokens)) > 1:
                    _put(encodings, index, span, last.weighted(self._widths))
                if prompt.readings:
                    phases = self._in_regions(phases, call, prompt, len(calls), its_lock, gates)
                if tokens or prompt.readings:
                    self._rows.keep(encodings[index][span.start], phases)
                else:
                    self._rows.drop(encodings[index][span.start][None])
        return tuple(encodings)

    @property
    def _widths(self) -> list[int]:
        return [int(reader.text_encoder.config.hidden_size) for reader in self._readers]

    def _parsed(self, texts: Texts, call: Call, syntax: str) -> _Prompt:
        """A prompt without its syntax; a pipeline by others may have one of its own."""
        if not call.reads_plainly:
            return _Prompt(texts=tuple(map(WeightedText, texts)), bank=self._bank)
        bank = self._bank
        prompts = {text: parse_prompt(text, self._bank.concepts, syntax) for text in texts}
        for text, parsed in prompts.items():
            self._notices.syntax(text, parsed)
            bank = bank.adjusted(parsed.changes) if parsed.changes else bank
        return _Prompt(texts=tuple(prompts[text].text for text in texts), bank=bank)

    def _laid_out(self, prompts: Sequence[_Prompt], regions: Regions) -> list[_Prompt]:
        """The prompts without their marks, with the readings of their things. Raises RequestError."""
        if any(len(set(prompt.texts)) > 1 for prompt in prompts):
            raise RequestError(
                "The two text encoders are given different prompts, whose things have no common regions. Give both the "
                "same prompt, or draw with regions=None."
            )
        words = self._bank.words()
        laid_out: list[_Prompt] = []
        known: dict[WeightedText, tuple[WeightedText, ...]] = {}
        for prompt in prompts:
            marked = prompt.texts[0]
            layout = lay_out(marked, regions, words, 0.0, _ANY_SIZE)
            if known.setdefault(layout.text, layout.readings) != layout.readings:
                raise RequestError(
                    f"The batch has {layout.text.text!r} with marks and without, and the pipeline's encodings of both "
                    "are the same. Draw them one after another."
                )
            texts = (layout.text,) * len(prompt.texts)
            maps = partial(_maps, marked, regions, words) if layout.readings else None
            laid_out.append(replace(prompt, texts=texts, readings=layout.readings, maps=maps))
        return laid_out

    def _outputs(
        self, calls: Sequence[Call], prompts: Sequence[_Prompt], lock: str | None
    ) -> list[dict[frozenset[str], _Output]]:
        """What each call gives with some concepts as words, by which they are; the most of them first."""
        every = [prompt.tokens for prompt in prompts]
        tokens = tuple(dict.fromkeys(token for own in every for token in own))
        locks = {
            lock or prompt.bank.common_lock(own) for prompt, own in zip(prompts, every, strict=True) if own
        }
        banks = {id(prompt.bank): prompt.bank for prompt in prompts}
        actives = [
            reading.active
            for strengths in banks.values()
            for _, bank in reversed(strengths.phases(tokens))
            for reading in bank.readings(bank.active(tokens))
        ]
        if "global" in locks:
            actives.append(frozenset())
        return [{active: self._output(call, active) for active in dict.fromkeys(actives)} for call in calls]

    def _output(self, call: Call, active: Container[str]) -> _Output:
        if not self._bank.concepts:
            return tuple(call.make())
        with ExitStack() as stack:
            for index, reader in enumerate(self._readers):
                table = torch.from_numpy(self._bank.embeddings(list(self._bank.concepts), index).copy())
                words = reader.numbered(self._bank.words(active))
                stack.enter_context(reading_words(call.pipeline, reader, words, table))
            return tuple(call.make())

    def _texts(
        self, prompt: _Prompt, tokens: Collection[str], outputs: Sequence[Mapping[frozenset[str], _Output]], side: int,
        row: int,
    ) -> list[_PipelineText]:  # fmt: skip
        """The parts of a prompt, for the outputs of the calls that read them."""
        texts: list[_PipelineText] = []
        for at, output in enumerate(outputs):
            part = prompt.part(at)
            own = frozenset(token for text in part for token in named(text.text, tokens))
            texts.append(
                _PipelineText(
                    texts=part, readers=self._readers, concepts=own, outputs=output, side=side, row=row
                )
            )
        return texts

    def _phases(
        self, prompt: _Prompt, tokens: tuple[str, ...], texts: Sequence[_PipelineText], lock: str, gates: str
    ) -> tuple[list[Phase], ReadPrompt]:
        """The edits of one prompt's encodings, start after start, and what the last of them read."""
        phases: list[Phase] = []
        for start, bank in prompt.bank.phases(tokens):
            active = bank.active(tokens)
            state, reading = self._state(texts, bank, active, lock, gates)
            pooled = reading.encoding.pooled if len(active) < len(tokens) else None
            phases.append(Phase(start=start, state=state, pooled=pooled))
        return phases, reading

    def _plain(self, calls: Sequence[Call], sides: Sequence[Sequence[Texts]]) -> Any:
        """The encodings of calls without concepts, weights and regions, which an earlier one may have had."""
        outputs = [call.make() for call in calls]
        output = outputs[0] if len(outputs) == 1 else tuple(_joined(outputs))
        for encodings, texts in zip(output[:2], sides, strict=False):
            if texts:  # what comes as finished encodings keeps what it had
                self._rows.drop(encodings)
        return output

    def _in_regions(
        self, phases: Sequence[Phase], call: Call, prompt: _Prompt, parts: int, lock: str, gates: str
    ) -> list[Phase]:
        """The phases of a prompt with the readings of its things."""
        banks = [bank for _, bank in prompt.bank.phases(prompt.tokens)]
        return [
            replace(
                phase,
                readings=tuple(
                    self._reading(
                        call, replace(prompt, texts=(text,) * len(self._readers)), parts, bank, lock, gates
                    )
                    for text in prompt.readings
                ),
                maps=prompt.maps,
            )
            for phase, bank in zip(phases, banks, strict=True)
        ]

    def _reading(
        self, call: Call, prompt: _Prompt, parts: int, bank: ConceptBank, lock: str, gates: str
    ) -> PromptState:
        """One reading of a prompt with the edit of the concepts that it names."""
        calls = [call.alone(_part(prompt.texts[0], at).apart()) for at in range(parts)]
        texts = self._texts(prompt, prompt.tokens, self._outputs(calls, [prompt], lock), 0, 0)
        state, _ = self._state(texts, bank, bank.active(prompt.tokens), lock, gates)
        return state

    def _state(
        self,
        texts: Sequence[_PipelineText],
        bank: ConceptBank,
        active: tuple[str, ...],
        lock: str,
        gates: str,
    ) -> tuple[PromptState, ReadPrompt]:
        """The parts of a prompt with the edit of some concepts, and what it was made of."""
        lock = lock if active else "local"
        if active or any(text.is_weighted for text in texts):
            reading = read_parts(texts, bank, active, lock)
        else:  # a pipeline cuts what is too long
            reading = ReadPrompt(encoding=joined([text.encode(()) for text in texts]), keys=None, factor=None)
        state = conditioned(
            reading.encoding.hidden, bank.rows(active), lock if active else "local", reading.keys, gates
        )
        return weighed(state, reading.factor, self._widths), reading

    def _warn(self, texts: Sequence[str]) -> None:
        known, knows = self._bank.words(), self._readers[0].knows
        self._notices.unnamed(texts, self._bank.concepts)
        self._notices.unknown((word for text in texts for word in unknown(text, known, knows)), known)


def _calls(
    call: Call, written: Sequence[Sequence[Texts]], sides: tuple[Sequence[_Prompt], Sequence[_Prompt]]
) -> list[Call]:
    """The call with the prompts as they are to be tokenized; several where breaks make parts of them."""
    count = max((prompt.parts for side in sides for prompt in side), default=1)
    if count > 1 and call.has_encodings:
        raise RequestError(
            "The prompt has a BREAK, and some of the pipeline's prompts come as encodings, which are of one part. Give "
            "all of them as texts."
        )
    said = [
        [[tuple(text.apart() for text in prompt.part(at)) for prompt in side] for side in sides]
        for at in range(count)
    ]
    return [call if list(written) == each else call.saying(*each) for each in said]


def _part(text: WeightedText, at: int) -> WeightedText:
    parts = text.parts()
    return parts[at] if at < len(parts) else WeightedText("")


def _joined(outputs: Sequence[_Output]) -> list[Any]:
    """The encodings of the parts of prompts one after another; what is pooled is the first's."""
    encodings = list(outputs[0])
    if len(outputs) > 1:
        for index in (0, 1):
            if encodings[index] is not None:
                encodings[index] = torch.cat([output[index] for output in outputs], dim=1)
    return encodings


def _maps(prompt: WeightedText, regions: Regions, words: Mapping[str, Word], size: Size) -> Array:
    maps = lay_out(prompt, regions, words, 0.0, size).maps
    assert maps is not None
    return maps


def _put(encodings: list[Any], side: int, span: slice, encoding: Encoding) -> None:
    """Blended encodings in the place of one prompt's, in copies: what a pipeline returned is not ours to change."""
    arrays = {side: encoding.hidden}
    if encoding.pooled is not None:
        arrays[side + 2] = encoding.pooled
    for index, array in arrays.items():
        copy = encodings[index].clone()
        copy[span] = torch.from_numpy(array).to(copy.device, copy.dtype)
        encodings[index] = copy


def _numbers(encodings: Any) -> Array:
    """A tensor as float32 numbers on the host."""
    array: Array = encodings.detach().to("cpu", torch.float32).numpy()
    return array
