"""What a pipeline makes of its prompts once it can read the concepts' words: encodings, and the edit of each."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perfusion.concept.bank import ConceptBank
from perfusion.concept.conditioning import PromptState, conditioned
from perfusion.concept.layout import Layout, Regions, lay_out
from perfusion.concept.notices import PromptNotices
from perfusion.concept.reading import Encoding, read_prompt
from perfusion.concept.weighted_text import WeightedText
from perfusion.concept.words import TokenizedPrompt, Word, named, unknown
from perfusion.diffusers.placeholders import Reader, reading_words
from perfusion.diffusers.rows import Phase, PromptRows, Size, Texts, prompt_rows
from perfusion.errors import RequestError

__all__ = ["Call", "PromptReader"]

_log = logging.getLogger("perfusion.diffusers")

Array = NDArray[np.float32]

_ANY_SIZE = (64, 64)  # of latents: how many readings a prompt has does not depend on it


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

    @property
    def reads_plainly(self) -> bool:
        """Whether it is diffusers' own: a pipeline by others may read weights in a prompt."""
        return str(getattr(self.method, "__module__", "")).startswith("diffusers.pipelines.")

    def arguments(self) -> Mapping[str, Any]:
        """All of them by their names, with the defaults."""
        bound = inspect.signature(self.method).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments

    def saying(self, prompts: Sequence[str]) -> Call:
        """The call with other prompts, as many as it has."""
        arguments = self.arguments()
        changes = {
            name: prompts[0] if isinstance(arguments[name], str) else list(prompts)
            for name in ("prompt", "prompt_2")
            if arguments.get(name)
        }
        return self._changed(changes)

    def alone(self, prompt: str) -> Call:
        """The call for one prompt, once and without guidance."""
        return self._changed(
            {
                "prompt": prompt, "prompt_2": None, "num_images_per_prompt": 1, "do_classifier_free_guidance": False,
                "negative_prompt": None, "negative_prompt_2": None,
            }
        )  # fmt: skip

    def _changed(self, changes: Mapping[str, Any]) -> Call:
        signature = inspect.signature(self.method)
        bound = signature.bind(*self.args, **self.kwargs)
        bound.arguments.update(
            {name: change for name, change in changes.items() if name in signature.parameters}
        )
        return replace(self, args=bound.args, kwargs=bound.kwargs)


@dataclass(frozen=True, kw_only=True, eq=False)
class _PipelineText:
    """One prompt among those of a call, as the pipeline has read it; a `perfusion.concept.reading.PromptText`."""

    texts: Texts  # one a text encoder, which may say different things
    readers: Sequence[Reader]
    concepts: frozenset[str]  # all that are in force in it at some time
    outputs: Mapping[frozenset[str], tuple[Any, ...]]  # the call's, by the concepts that were words in it
    side: int
    row: int

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

    def encode(self, call: Call, lock: str | None, gates: str, regions: Regions = None) -> Any:
        """The pipeline's encodings of a call's prompts. `lock` None: what the concepts' files say."""
        sides = prompt_rows(call.arguments(), len(self._readers))
        marked = sides[0]
        layouts = self._layouts(marked, regions)
        if layouts:
            call = call.saying([layout.text.text for layout in layouts])
            sides = prompt_rows(call.arguments(), len(self._readers))
        prompts = [texts for side in sides for texts in side]
        self._warn([text for texts in prompts for text in texts])
        known = self._bank.words()
        in_regions = any(layout.readings for layout in layouts)
        if not in_regions and not any(named(text, known) for texts in prompts for text in texts):
            return self._plain(call, sides)
        active = [self._active(texts) for texts in prompts]
        locks = {lock or self._bank.common_lock(tokens) for tokens in active if tokens}
        outputs = self._outputs(call, [token for tokens in active for token in tokens], "global" in locks)
        encodings = list(next(iter(outputs.values())))
        for index, side in enumerate(sides):
            for row, texts in enumerate(side):
                count = len(encodings[index]) // len(side)  # each prompt has its pictures in a row
                layout = layouts[row] if index == 0 and layouts else Layout(text=WeightedText(texts[0]))
                tokens = self._active(texts)
                if not tokens and not layout.readings:
                    self._rows.drop(encodings[index][row * count][None])
                    continue
                prompt = _PipelineText(
                    texts=texts, readers=self._readers, concepts=frozenset(tokens), outputs=outputs,
                    side=index, row=row * count,
                )  # fmt: skip
                # a prompt of plain things has no concept, and so no lock of its own
                its_lock = lock or (self._bank.common_lock(tokens) if tokens else "local")
                if tokens:
                    phases, last = self._phases(prompt, tokens, its_lock, gates)
                else:
                    phases, last = self._plain_phase(encodings[index][row * count])
                if layout.readings:
                    maps = partial(_maps, marked[row][0], regions, known)
                    phases = self._in_regions(phases, call, layout.readings, maps, tokens, its_lock, gates)
                if tokens and len(self._bank.readings(tokens)) > 1:
                    _put(encodings, index, slice(row * count, (row + 1) * count), last)
                self._rows.keep(encodings[index][row * count], phases)
        return tuple(encodings)

    def _outputs(
        self, call: Call, tokens: Iterable[str], superclasses: bool
    ) -> dict[frozenset[str], tuple[Any, ...]]:
        """What the call gives with some concepts as words, by which they are; the most of them first."""
        tokens = tuple(dict.fromkeys(tokens))
        actives = [
            reading.active
            for _, bank in reversed(self._bank.phases(tokens))
            for reading in bank.readings(bank.active(tokens))
        ]
        if superclasses:
            actives.append(frozenset())
        return {active: self._output(call, active) for active in dict.fromkeys(actives)}

    def _output(self, call: Call, active: Container[str]) -> tuple[Any, ...]:
        with ExitStack() as stack:
            for index, reader in enumerate(self._readers):
                table = torch.from_numpy(self._bank.embeddings(list(self._bank.concepts), index).copy())
                words = reader.numbered(self._bank.words(active))
                stack.enter_context(reading_words(call.pipeline, reader, words, table))
            return tuple(call.make())

    def _phases(
        self, prompt: _PipelineText, tokens: tuple[str, ...], lock: str, gates: str
    ) -> tuple[list[Phase], Encoding]:
        """The edits of one prompt's encodings, start after start, and the encodings of the last of them."""
        phases: list[Phase] = []
        for start, bank in self._bank.phases(tokens):
            active = bank.active(tokens)
            reading = read_prompt(prompt, bank, active, lock)
            encoding = reading.encoding
            state = conditioned(encoding.hidden, bank.rows(active), lock, reading.keys, gates)
            pooled = encoding.pooled if len(active) < len(tokens) else None
            phases.append(Phase(start=start, state=state, pooled=pooled))
        return phases, encoding

    def _plain(self, call: Call, sides: Sequence[Sequence[Texts]]) -> Any:
        """The encodings of a call without concepts and regions, which an earlier one may have had with regions."""
        output = call.make()
        for encodings, texts in zip(output[:2], sides, strict=False):
            if texts:  # what comes as finished encodings keeps what it had
                self._rows.drop(encodings)
        return output

    def _layouts(self, prompts: Sequence[Texts], regions: Regions) -> list[Layout]:
        """How each prompt is read; none where regions are not asked for. Raises RequestError."""
        if regions is None or not prompts:
            return []
        if any(len(set(texts)) > 1 for texts in prompts):
            raise RequestError(
                "The two text encoders are given different prompts, whose things have no common regions. Give both the "
                "same prompt, or draw with regions=None."
            )
        words = self._bank.words()
        layouts = [lay_out(texts[0], regions, words, 0.0, _ANY_SIZE) for texts in prompts]
        readings: dict[WeightedText, tuple[WeightedText, ...]] = {}
        for layout in layouts:
            if readings.setdefault(layout.text, layout.readings) != layout.readings:
                raise RequestError(
                    f"The batch has {layout.text.text!r} with marks and without, and the pipeline's encodings of both "
                    "are the same. Draw them one after another."
                )
        return layouts

    def _plain_phase(self, encodings: torch.Tensor) -> tuple[list[Phase], Encoding]:
        encoding = Encoding(hidden=_numbers(encodings), pooled=None)
        state = conditioned(encoding.hidden, self._bank.rows(()))
        return [Phase(start=0.0, state=state)], encoding

    def _in_regions(
        self,
        phases: Sequence[Phase],
        call: Call,
        readings: Sequence[WeightedText],
        maps: Callable[[Size], Array],
        tokens: tuple[str, ...],
        lock: str,
        gates: str,
    ) -> list[Phase]:
        """The phases of a prompt with the readings of its things."""
        banks = [bank for _, bank in self._bank.phases(tokens)]
        return [
            replace(
                phase,
                readings=tuple(
                    self._state(call.alone(text.text), text.text, bank, lock, gates) for text in readings
                ),
                maps=maps,
            )
            for phase, bank in zip(phases, banks, strict=True)
        ]

    def _state(self, call: Call, text: str, bank: ConceptBank, lock: str, gates: str) -> PromptState:
        """One reading of a prompt with the edit of the concepts that it names."""
        texts = (text,) * len(self._readers)
        every = self._active(texts)
        active = bank.active(every)
        if not active:
            return conditioned(_numbers(self._output(call, frozenset())[0][0]), bank.rows(()))
        prompt = _PipelineText(
            texts=texts, readers=self._readers, concepts=frozenset(every),
            outputs=self._outputs(call, every, lock == "global"), side=0, row=0,
        )  # fmt: skip
        reading = read_prompt(prompt, bank, active, lock)
        return conditioned(reading.encoding.hidden, bank.rows(active), lock, reading.keys, gates)

    def _active(self, texts: Texts) -> tuple[str, ...]:
        """The concepts in force in a prompt, which may say different things to two text encoders."""
        known = self._bank.words()
        return self._bank.active(dict.fromkeys(token for text in texts for token in named(text, known)))

    def _warn(self, texts: Sequence[str]) -> None:
        known, knows = self._bank.words(), self._readers[0].knows
        self._notices.unnamed(texts, self._bank.concepts)
        self._notices.unknown((word for text in texts for word in unknown(text, known, knows)), known)


def _maps(prompt: str, regions: Regions, words: Mapping[str, Word], size: Size) -> Array:
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
