"""From a request's prompts to the rows of the UNet's batch: tokens, encodings, edit."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.description import Bundle
from perfusion.concept.bank import EditRows
from perfusion.concept.concept_file import Concept
from perfusion.concept.conditioning import PromptState, conditioned
from perfusion.concept.edit import Conditioning, coordinates, gate, similarity
from perfusion.concept.phases import in_force
from perfusion.concept.words import Word, aligned, check_text, named
from perfusion.errors import RequestError
from perfusion.runtime.cache import Cache
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.concepts import Bank
from perfusion.runtime.request import Request
from perfusion.runtime.text.encoder import Encoding, Text, TextReader, blend, joined

__all__ = ["Asked", "Prepared", "PromptEncoder", "Row"]

Array = NDArray[np.float32]

_MOST_BYTES = 32 << 20
_MOST_PLAIN_BYTES = 8 << 20
_MOST_SPLIT_BYTES = 4 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One row of the UNet's batch."""

    state: PromptState
    pooled: Array | None = None  # (width,) where the UNet reads pooled encodings


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A prompt with its concepts taken out, as long as their strengths stay; biases and temperatures come later."""

    texts: tuple[Text, ...]  # the parts of the prompt
    active: tuple[str, ...]  # the concepts whose edit it has
    lock: str
    read: NDArray[np.float64]  # (tokens, J) what the gates read
    conditioning: Conditioning
    pooled: Array | None

    def row(self, rows: EditRows) -> Row:
        """With the gates that biases and temperatures now open."""
        opened = np.asarray(gate(self.read, rows.bias, rows.temperature) * rows.strength, np.float32)
        conditioning = Conditioning(
            key_states=self.conditioning.key_states,
            value_states=self.conditioning.value_states,
            key_gate=opened if self.lock == "local" else np.zeros_like(opened),
            value_gate=opened,
        )
        return Row(state=PromptState(conditioning=conditioning, rows=rows), pooled=self.pooled)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Split:
    """A prompt in parts that the text encoder can read."""

    parts: tuple[str, ...]
    named: tuple[str, ...]  # the concepts in them
    unknown: tuple[str, ...]  # what looks like a concept's word and is none
    words: int  # of concepts that were loaded

    @property
    def nbytes(self) -> int:
        """About what keeping it takes, with the prompt and the words it is kept under."""
        return 500 + 200 * self.words + 8 * sum(map(len, self.parts))


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What one picture asks for, in parts that the text encoder can read."""

    parts: tuple[str, ...]
    negative_parts: tuple[str, ...] | None  # None without guidance
    active: tuple[str, ...]  # the concepts that its prompt names and that are not off
    bank: Bank  # with the settings of this picture
    tokens: int  # that cross-attention reads
    start: float = 0.0  # the share of the noise levels, from pure noise on, after which this is asked for
    earlier: tuple[Asked, ...] = ()  # what is asked for until then, by their starts

    @property
    def phases(self) -> tuple[Asked, ...]:
        """What is asked for one after another, this the last."""
        return (*self.earlier, self)

    def at(self, share: float) -> Asked:
        """What is asked for at a share of the noise levels."""
        return in_force(self.phases, share)

    @property
    def slots(self) -> dict[str, int]:
        """How many rows each of its concepts has."""
        return {one.token: one.rows for one in self.bank.identity(self.active)}


class PromptEncoder:
    """Prompts in the light of the concepts loaded now."""

    def __init__(self, bundle: Bundle, bank: Bank, graphs: Graphs) -> None:
        """Raises BundleError when a tokenizer cannot be read."""
        self._bank = bank
        self._reader = TextReader(bundle, graphs)
        self._context_length = bundle.text_encoder.context_length
        self._zeros = bundle.force_zeros_for_empty_prompt
        self._prepared: Cache[Prepared] = Cache(_MOST_BYTES, lambda one: _bytes(one.conditioning))
        self._plain_rows: Cache[Row] = Cache(_MOST_PLAIN_BYTES, lambda one: _bytes(one.state.conditioning))
        self._splits: Cache[_Split] = Cache(_MOST_SPLIT_BYTES, lambda one: one.nbytes)

    def knows(self, word: str) -> bool:
        """Whether `word` is a token of the base model's own."""
        return self._reader.tokenizer.knows(word)

    def forget(self) -> None:
        """Give the memory of all that is kept back."""
        self._reader.forget()
        for cache in (self._prepared, self._plain_rows, self._splits):
            cache.clear()

    def forget_concept(self, concept: Concept) -> None:
        """Give the memory back of what was read with a concept: loaded anew it will be another one."""
        self._reader.forget_concept(concept)
        self._prepared.drop(lambda key: concept in key[1])

    def read(self, request: Request) -> list[Asked]:
        """What each picture of a request asks for; nothing is encoded yet.

        Raises:
            RequestError: a prompt that cannot be served, or settings of a concept that is not loaded.
        """
        bank = self._bank.adjusted()
        wanted = zip(request.prompts, request.negative_prompts, request.settings, strict=True)
        if not request.guided and any(request.negative_prompts):
            _log.warning("the negative prompt has no effect without guidance")
        unknown: dict[str, None] = {}
        asked: list[Asked] = []
        for prompt, negative, changes in wanted:
            changed = bank.adjusted(changes) if changes else bank
            words = changed.words()
            split, other = self._split(prompt, words), self._split(negative, words)
            _refuse_concepts(other, words)
            unknown |= dict.fromkeys(split.unknown + other.unknown)
            others = other.parts if request.guided else None
            *before, last = changed.starts(changed.active(split.named))
            earlier = tuple(self._asked_at(start, prompt, others, changed) for start in before)
            asked.append(self._asked(split, others, changed, last, earlier))
        for word in unknown:
            _log.warning("no concept named %s is loaded, so it is read as plain text", word)
        return asked

    def _asked_at(self, start: float, prompt: str, others: tuple[str, ...] | None, bank: Bank) -> Asked:
        """What a picture asks for from a start on at which some of its concepts are still off."""
        now = bank.at(start)
        return self._asked(self._split(prompt, now.words()), others, now, start)

    def _asked(
        self, split: _Split, others: tuple[str, ...] | None, bank: Bank, start: float,
        earlier: tuple[Asked, ...] = (),
    ) -> Asked:  # fmt: skip
        """What a picture asks for from a start on; `others` the parts of the negative prompt, None without guidance."""
        parts = split.parts
        if others is not None and len(parts) != len(others):  # read side by side, the shorter one filled up
            length = max(len(parts), len(others))
            parts, others = (one + ("",) * (length - len(one)) for one in (parts, others))
        return Asked(
            parts=parts,
            negative_parts=others,
            active=bank.active(split.named),
            bank=bank,
            tokens=len(parts) * self._context_length,
            start=start,
            earlier=earlier,
        )

    def encode(self, asked: Asked, request: Request) -> tuple[Row, ...]:
        """The UNet's rows of a picture: the unconditional one, when there is guidance, and its prompt's."""
        conditional = self._edited(asked.parts, asked.active, asked.bank, request)
        if asked.negative_parts is None:
            return (conditional,)
        return self._negative(asked.negative_parts, asked.bank), conditional

    def rows(self, request: Request) -> list[tuple[Row, ...]]:
        """The UNet's rows of each picture of a request, with all its concepts. Raises as `read`."""
        return [self.encode(one, request) for one in self.read(request)]

    def prepare(self, prompt: str, bank: Bank, lock: str | None, gates: str) -> Prepared | None:
        """A prompt with the concepts it names, as `rows` reads it; None where it names none."""
        split = self._split(prompt, bank.words())
        active = bank.active(split.named)
        return (
            self._with_concepts(split.parts, bank.rows(active), active, bank, lock, gates) if active else None
        )

    def texts(self, prompt: str, bank: Bank) -> tuple[Text, ...]:
        """The parts of a prompt, tokenized."""
        words = bank.words()
        return tuple(self._reader.tokenize(part, words) for part in self._split(prompt, words).parts)

    def read_back(self, text: Text) -> tuple[str, ...]:
        """What each token of a text says; see `PromptTokenizer.read_back`."""
        return self._reader.tokenizer.read_back(text.tokens)

    def _split(self, prompt: str, words: dict[str, Word]) -> _Split:
        def split() -> _Split:
            parts = tokenizer.split(prompt, words)
            return _Split(
                parts=parts,
                named=tuple(dict.fromkeys(token for part in parts for token in named(part, words))),
                unknown=tuple(word for part in parts for word in tokenizer.unknown(part, words)),
                words=len(words),
            )

        tokenizer = self._reader.tokenizer
        check_text(prompt)
        return self._splits.get((prompt, *words.items()), split)

    def _negative(self, parts: tuple[str, ...], bank: Bank) -> Row:
        """A prompt as the base model reads it; with some bases an empty one is nothing at all."""
        nothing = self._zeros and not any(part.strip() for part in parts)
        return self._plain(parts, bank, nothing)

    def _plain(self, parts: tuple[str, ...], bank: Bank, nothing: bool = False) -> Row:
        """Parts without active concepts: those that are not active were replaced when the prompt was split."""

        def read() -> Row:
            encoding = joined([self._reader.encode(self._reader.tokenize(part, {}), bank) for part in parts])
            encoding = encoding.zeros() if nothing else encoding
            return Row(state=conditioned(encoding.hidden, bank.rows(())), pooled=encoding.pooled)

        return self._plain_rows.get((parts, nothing), read)

    def _edited(self, parts: tuple[str, ...], active: tuple[str, ...], bank: Bank, request: Request) -> Row:
        """A prompt with the edit of the concepts it names; those of strength 0 are read as their superclass."""
        if not active:
            return self._plain(parts, bank)
        rows = bank.rows(active)
        return self._with_concepts(parts, rows, active, bank, request.lock, request.gates).row(rows)

    def _with_concepts(
        self,
        parts: tuple[str, ...],
        rows: EditRows,
        active: tuple[str, ...],
        bank: Bank,
        lock: str | None,
        gates: str,
    ) -> Prepared:
        lock = lock or bank.common_lock(active)
        key = (parts, bank.identity(active), rows.strength.tobytes(), lock, gates)
        return self._prepared.get(key, lambda: self._prepare(parts, active, bank, lock, gates))

    def _prepare(
        self, parts: tuple[str, ...], active: tuple[str, ...], bank: Bank, lock: str, gates: str
    ) -> Prepared:
        words = bank.words()
        texts = tuple(self._reader.tokenize(part, words) for part in parts)
        read = [self._read(text, active, bank, lock) for text in texts]
        encoding, rows = joined([one for one, _ in read]), bank.rows(active)
        superclass = (
            None if lock == "local" else np.concatenate([keys for _, keys in read if keys is not None])
        )
        state = conditioned(encoding.hidden, rows, lock, superclass, gates)
        columns = (rows.direction, rows.dual, rows.energy, rows.strength)
        return Prepared(
            texts=texts,
            active=active,
            lock=lock,
            read=similarity(encoding.hidden, rows.dual)
            if gates == "similarity"
            else coordinates(encoding.hidden, *columns),
            conditioning=state.conditioning,
            pooled=encoding.pooled,
        )

    def _read(
        self, text: Text, active: tuple[str, ...], bank: Bank, lock: str
    ) -> tuple[Encoding, Array | None]:
        """A part of a prompt at the strengths of its concepts, and with the superclasses in their places."""
        readings = bank.readings(active)
        weights = [one.weight for one in readings]
        texts = [self._reader.tokenize(text.tokens.text, bank.words(one.active)) for one in readings]
        places = [aligned(text.tokens, one.tokens) for one in texts]
        parts = [self._reader.encode(one, bank) for one in texts]
        moved = [
            Encoding(hidden=one.hidden[at], pooled=one.pooled) for one, at in zip(parts, places, strict=True)
        ]
        encoding = blend(moved, weights)
        if lock == "local":
            return encoding, None
        keys = self._reader.encode_superclass(text, bank).hidden
        counterparts = [self._reader.tokenizer.superclass_version(one.tokens)[1] for one in texts]
        superclass = [
            Encoding(hidden=keys[there[at]]) for there, at in zip(counterparts, places, strict=True)
        ]
        return encoding, blend(superclass, weights).hidden


def _bytes(conditioning: Conditioning) -> int:
    return conditioning.value_states.nbytes + conditioning.key_states.nbytes


def _refuse_concepts(split: _Split, words: dict[str, Word]) -> None:
    """The unconditional row is the base model's, so a negative prompt names no concept."""
    for token in split.named:
        raise RequestError(
            f"The negative prompt names {token}, and the unconditional row is always the base model's. "
            f"Write {words[token].superclass!r} instead."
        )
