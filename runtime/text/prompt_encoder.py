"""From a request's prompts to the rows of the UNet's batch: tokens, encodings, edit."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.concept.bank import Changes, EditRows
from perfusion.concept.concept_file import Concept
from perfusion.concept.conditioning import PromptState, conditioned, readings_joined, reopened, weighed
from perfusion.concept.emphasis import weighted
from perfusion.concept.layout import AUTO, Layout, Regions, lay_out
from perfusion.concept.learned_words import LearnedWords
from perfusion.concept.notices import WORD_END, PromptNotices, unseen_words
from perfusion.concept.prompt_syntax import ParsedPrompt, parse_prompt
from perfusion.concept.reading import Encoding, joined, read_parts, weights_of
from perfusion.concept.weighted_text import WeightedText
from perfusion.concept.words import Word, check_text, named
from perfusion.embedded import EDITIONS, is_embedded
from perfusion.errors import RequestError
from perfusion.pocket.vocabulary import UNUSED
from perfusion.runtime.cache import Cache
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.concepts import Bank
from perfusion.runtime.request import Request
from perfusion.runtime.text.prompt_spec import Parts, PromptSpec, Row
from perfusion.runtime.text.text_encoders import TextEncoders, TokenizedTexts

__all__ = ["EncodedPrompt", "PromptEncoder"]

Array = NDArray[np.float32]

_MOST_BYTES = 32 << 20
_MOST_PLAIN_BYTES = 8 << 20
_MOST_SPLIT_BYTES = 4 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPrompt:
    """A prompt with its concepts taken out, as long as their strengths stay; biases and temperatures come later."""

    texts: tuple[TokenizedTexts, ...]  # the parts of the prompt
    active: tuple[str, ...]  # the concepts whose edit it has
    lock: str
    state: PromptState
    pooled: Array | None

    def row(self, rows: EditRows) -> Row:
        """With the gates that biases and temperatures now open."""
        return Row(state=reopened(self.state, rows, self.lock), pooled=self.pooled)


@dataclass(frozen=True, kw_only=True, eq=False)
class _PromptParts:
    """A prompt in parts, and what is in them."""

    parts: Parts
    named: tuple[str, ...]  # the concepts in them
    unknown: tuple[str, ...]  # what looks like a concept's word and is none
    unseen: tuple[str, ...]  # words that a small model was never trained with
    words: int  # of concepts that were loaded

    @property
    def nbytes(self) -> int:
        """About what keeping it takes, with the prompt and the words it is kept under."""
        return 500 + 200 * self.words + sum(len(part) * (16 if part.weights else 8) for part in self.parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class _BundleText:
    """One part of a prompt, for a bundle's text encoders to read; a `perfusion.concept.reading.PromptText`."""

    text: WeightedText
    encoders: TextEncoders
    bank: Bank

    @property
    def widths(self) -> tuple[int, ...]:
        return self.encoders.widths

    def tokenize(self, words: Mapping[str, Word]) -> TokenizedTexts:
        return self.encoders.tokenize(self.text, words, self.bank.learned)

    def encode(self, prompt: TokenizedTexts) -> Encoding:
        return self.encoders.encode(prompt, self.bank)


class PromptEncoder:
    """Prompts in the light of the concepts loaded now."""

    def __init__(self, bundle: Bundle, bank: Bank, graphs: Graphs) -> None:
        """Raises BundleError when a tokenizer cannot be read."""
        self._bank = bank
        self._encoders = TextEncoders(bundle, graphs)
        self._notices = PromptNotices(_log)
        self._context_length = bundle.text_encoder.context_length
        self._zeros = bundle.force_zeros_for_empty_prompt
        self._has_regions = bundle.has_regions
        self._has_few_words = is_embedded(bundle.base)
        self._unused = UNUSED if bundle.base == EDITIONS[-1] else frozenset()
        self._downscale = bundle.decoder.downscale
        self._encoded: Cache[EncodedPrompt] = Cache(_MOST_BYTES, lambda prompt: _bytes(prompt.state))
        self._plain_rows: Cache[Row] = Cache(_MOST_PLAIN_BYTES, lambda row: _bytes(row.state))
        self._splits: Cache[_PromptParts] = Cache(_MOST_SPLIT_BYTES, lambda split: split.nbytes)

    def knows(self, word: str) -> bool:
        """Whether `word` is a token of the base model's own."""
        return self._encoders.tokenizer.knows(word)

    def _has_seen(self, token: str) -> bool:
        """Whether the embedded model's training had this word, given as the token that ends with it."""
        return self.knows(token) and token.removesuffix(WORD_END) not in self._unused

    def length(self, prompt: str, syntax: str) -> int:
        """How many tokens of a prompt are read, without start, end and padding.

        Raises:
            RequestError: a prompt that cannot be served.
        """
        text = parse_prompt(prompt, self._bank.concepts, syntax).text
        return sum(part[0].length - 2 for part in self.texts(text, self._bank))

    def forget(self) -> None:
        """Give the memory of all that is kept back."""
        self._encoders.forget()
        for cache in (self._encoded, self._plain_rows, self._splits):
            cache.clear()

    def forget_concept(self, concept: Concept) -> None:
        """Give the memory back of what was read with a concept: loaded anew it will be another one."""
        self._encoders.forget_concept(concept)
        self._encoded.drop(lambda key: concept in key[1])

    def specs(self, request: Request) -> list[PromptSpec]:
        """What each picture of a request is drawn from; nothing is encoded yet.

        Raises:
            RequestError: a prompt that cannot be served, or settings of a concept that is not loaded.
        """
        for prompt in request.prompts:
            check_text(prompt)
        now = self._bank.adjusted()
        if not request.guided and any(request.negative_prompts):
            _log.warning("the negative prompt has no effect without guidance")
        self._notices.unnamed(request.prompts, now.concepts)
        splits: list[_PromptParts] = []
        specs: list[PromptSpec] = []
        for prompt, negative_prompt, changes, regions in zip(
            request.prompts, request.negative_prompts, request.settings, request.regions, strict=True
        ):
            bank, text = self.parse(prompt, changes, request.prompt_syntax, now)
            words = bank.words()
            layout = self.layout(text, regions, words, request)
            split = self._split(layout.text, words, bank.learned)
            negative_text = self._parsed(negative_prompt, words, request.prompt_syntax).text
            negative = self._split(negative_text, words, bank.learned)
            _refuse_concepts(negative, words)
            splits += [split, negative]
            negative_parts = negative.parts if request.guided else None
            earlier: tuple[PromptSpec, ...] = ()
            for start, phase in bank.phases(bank.active(split.named)):
                spec = self._spec(
                    layout, negative_parts, phase, start, earlier, controlled=request.controlled
                )
                earlier = spec.phases
            specs.append(spec)
        self._notices.unknown((word for split in splits for word in split.unknown), now.concepts)
        self._notices.unseen(word for split in splits for word in split.unseen)
        return specs

    def parse(
        self, prompt: str, changes: Changes | None, syntax: str, bank: Bank
    ) -> tuple[Bank, WeightedText]:
        """A prompt without its syntax, and the bank with the settings for it; what its author may not have meant is
        told of.

        Raises:
            RequestError: syntax or settings that cannot be served.
        """
        parsed = self._parsed(prompt, bank.concepts, syntax)
        for change in (changes, parsed.changes):
            bank = bank.adjusted(change) if change else bank
        return bank, parsed.text

    def _parsed(self, prompt: str, tokens: Collection[str], syntax: str) -> ParsedPrompt:
        parsed = parse_prompt(prompt, tokens, syntax)
        self._notices.syntax(self._bank.learned.plain(prompt), parsed)
        return parsed

    def layout(
        self, text: WeightedText, regions: Regions, words: Mapping[str, Word], request: Request
    ) -> Layout:
        """A prompt's readings; of a bundle that knows no regions only the whole."""
        size = request.height // self._downscale, request.width // self._downscale
        layout = lay_out(text, regions, words, request.whole, size)
        if layout.readings and not self._has_regions:
            if regions != AUTO:
                raise RequestError(
                    "This bundle is of format version 1, whose UNet knows no regions. Export the bundle again, or draw "
                    "without regions."
                )
            _log.warning(
                "the things of the prompt get no regions of their own, since this bundle is of format version 1; "
                "export it again"
            )
            return Layout(text=layout.text)
        return layout

    def _spec(
        self, layout: Layout, negative: Parts | None, bank: Bank, start: float,
        earlier: tuple[PromptSpec, ...], *, controlled: bool,
    ) -> PromptSpec:  # fmt: skip
        """What a picture is drawn from on a start; `negative`: the parts of its negative prompt."""
        words = bank.words()
        split = self._split(layout.text, words, bank.learned)
        readings = [self._split(reading, words, bank.learned).parts for reading in layout.readings]
        # all are read side by side, and the shorter ones filled up
        length = max(map(len, (split.parts, *readings, negative or ())))
        parts, *readings = (_filled(text, length) for text in (split.parts, *readings))
        # A ControlNet has no edit: it reads the superclasses that it was trained with.
        plain = self._split(layout.text, bank.words(()), bank.learned).parts if controlled else None
        return PromptSpec(
            parts=parts,
            negative_parts=None if negative is None else _filled(negative, length),
            active=bank.active(split.named),
            bank=bank,
            tokens=max(1, len(readings)) * length * self._context_length,
            readings=tuple(readings),
            maps=layout.maps,
            control_parts=None if plain is None else _filled(plain, length),
            start=start,
            earlier=earlier,
        )

    def encode(self, spec: PromptSpec, request: Request) -> tuple[Row, ...]:
        """The UNet's rows of a picture: the unconditional one, when there is guidance, and its prompt's."""
        conditional = self._in_regions(spec, request) if spec.readings else self._conditional(spec, request)
        if spec.control_parts is not None:
            conditional = _controlled(conditional, self._plain(spec.control_parts, spec.bank))
        if spec.negative_parts is None:
            return (conditional,)
        negative = self._negative(spec.negative_parts, spec.bank)
        row = _repeated(negative, conditional) if spec.readings else negative
        return (row if spec.control_parts is None else _controlled(row, negative)), conditional

    def rows(self, request: Request) -> list[tuple[Row, ...]]:
        """The UNet's rows of each picture of a request, with all its concepts. Raises as `specs`."""
        return [self.encode(spec, request) for spec in self.specs(request)]

    def encode_prompt(
        self, prompt: WeightedText, bank: Bank, lock: str | None, gates: str
    ) -> EncodedPrompt | None:
        """A prompt with the concepts it names, as `rows` reads it; None where it names none."""
        split = self._split(prompt, bank.words(), bank.learned)
        active = bank.active(split.named)
        return self._edited(split.parts, active, bank.rows(active), bank, lock, gates) if active else None

    def texts(self, prompt: WeightedText, bank: Bank) -> tuple[TokenizedTexts, ...]:
        """The parts of a prompt, tokenized."""
        words, learned = bank.words(), bank.learned
        parts = self._split(prompt, words, learned).parts
        return tuple(self._encoders.tokenize(part, words, learned) for part in parts)

    def read_back(self, text: TokenizedTexts, bank: Bank) -> tuple[str, ...]:
        """What each token of a text says; see `PromptTokenizer.read_back`."""
        return self._encoders.tokenizer.read_back(text[0], bank.learned)

    def _split(self, prompt: WeightedText, words: dict[str, Word], learned: LearnedWords) -> _PromptParts:
        def split() -> _PromptParts:
            """Where it is not kept from before."""
            parts = tokenizer.split(prompt, words, learned)
            texts = [part.text for part in parts]
            return _PromptParts(
                parts=parts,
                named=tuple(dict.fromkeys(token for text in texts for token in named(text, words))),
                unknown=tuple(word for text in texts for word in tokenizer.unknown(text, words, learned)),
                unseen=tuple(
                    word
                    for text in texts
                    for word in unseen_words(learned.plain(text), words, self._has_seen)
                )
                if self._has_few_words
                else (),
                words=len(words),
            )

        tokenizer = self._encoders.tokenizer
        return self._splits.get((prompt, learned, *words.items()), split)

    def _negative(self, parts: Parts, bank: Bank) -> Row:
        """A prompt as the base model reads it; with some bases an empty one is nothing at all."""
        nothing = self._zeros and not any(part.text.strip() for part in parts)
        return self._plain(parts, bank, nothing)

    def _plain(self, parts: Parts, bank: Bank, nothing: bool = False) -> Row:
        """Parts without active concepts: those that are not active were replaced when the prompt was split."""

        def encode() -> Row:
            """Where it is not kept from before."""
            encoding = joined([self._weighted(part, bank) for part in parts])
            encoding = encoding.zeros() if nothing else encoding
            return Row(state=conditioned(encoding.hidden, bank.rows(())), pooled=encoding.pooled)

        return self._plain_rows.get((parts, nothing, bank.learned), encode)

    def _weighted(self, part: WeightedText, bank: Bank) -> Encoding:
        text = self._encoders.tokenize(part, {}, bank.learned)
        encoding = self._encoders.encode(text, bank)
        hidden = weighted(encoding.hidden, weights_of(text), self._encoders.widths)
        return Encoding(hidden=hidden, pooled=encoding.pooled)

    def _in_regions(self, spec: PromptSpec, request: Request) -> Row:
        """The readings of a prompt, each with its own concepts, one after another."""
        rows = [self._conditional(spec.reading(parts), request) for parts in spec.readings]
        pooled = None if rows[0].pooled is None else self._conditional(spec, request).pooled
        state = readings_joined([row.state for row in rows], spec.bank.rows(spec.active))
        return Row(state=state, pooled=pooled, regions=spec.maps)

    def _conditional(self, spec: PromptSpec, request: Request) -> Row:
        """A prompt with the edit of the concepts it names; those of strength 0 are read as their superclass."""
        if not spec.active:
            return self._plain(spec.parts, spec.bank)
        rows = spec.bank.rows(spec.active)
        prompt = self._edited(spec.parts, spec.active, rows, spec.bank, request.lock, request.gates)
        return prompt.row(rows)

    def _edited(
        self,
        parts: Parts,
        active: tuple[str, ...],
        rows: EditRows,
        bank: Bank,
        lock: str | None,
        gates: str,
    ) -> EncodedPrompt:
        lock = lock or bank.common_lock(active)
        key = (parts, bank.identity(active), rows.strength.tobytes(), lock, gates, bank.learned)
        return self._encoded.get(key, partial(self._edit, parts, active, rows, bank, lock, gates))

    def _edit(
        self,
        parts: Parts,
        active: tuple[str, ...],
        rows: EditRows,
        bank: Bank,
        lock: str,
        gates: str,
    ) -> EncodedPrompt:
        texts = [_BundleText(text=part, encoders=self._encoders, bank=bank) for part in parts]
        reading = read_parts(texts, bank, active, lock)
        state = conditioned(reading.encoding.hidden, rows, lock, reading.keys, gates)
        state = weighed(state, reading.factor, self._encoders.widths)
        return EncodedPrompt(
            texts=tuple(text.tokenize(bank.words()) for text in texts),
            active=active,
            lock=lock,
            state=state,
            pooled=reading.encoding.pooled,
        )


def _filled(parts: Parts, length: int) -> Parts:
    """Parts of a text with as many empty ones behind them as are missing."""
    return parts + (WeightedText(""),) * (length - len(parts))


def _controlled(row: Row, plain: Row) -> Row:
    """A row whose ControlNet reads what the base model reads of `plain`."""
    return replace(row, control_states=plain.state.conditioning.value_states)


def _repeated(row: Row, other: Row) -> Row:
    """A row of one reading with as many as another has: copies of its own, of which only the first is read."""
    assert other.regions is not None
    count = len(other.regions)
    regions = np.zeros_like(other.regions)
    regions[0] = 1
    return Row(state=readings_joined([row.state] * count, row.state.rows), pooled=row.pooled, regions=regions)


def _bytes(state: PromptState) -> int:
    return state.conditioning.value_states.nbytes + state.conditioning.key_states.nbytes


def _refuse_concepts(split: _PromptParts, words: dict[str, Word]) -> None:
    """The unconditional row is the base model's, so a negative prompt names no concept."""
    for token in split.named:
        raise RequestError(
            f"The negative prompt names {token}, and the unconditional row is always the base model's. "
            f"Write {words[token].superclass!r} instead."
        )
