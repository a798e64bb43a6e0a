"""A pipeline's own tokenizers and text encoders, made to read concepts' words for as long as a prompt is encoded.

Nothing is added to a vocabulary or a table: the tokenizer gives ids behind the vocabulary, and the text encoder, which
runs in its own way and through its own forward, finds learned words where these ids stood.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from perfusion.base.encoding import token_embedding
from perfusion.concept.weighted_text import WeightedText
from perfusion.concept.words import (
    Encode,
    Frame,
    TokenizedPrompt,
    Word,
    named,
    tokenize,
)

__all__ = ["Reader", "reading_words"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """One tokenizer of a pipeline and the text encoder that it belongs to."""

    name: str  # the tokenizer's attribute of the pipeline: "tokenizer", "tokenizer_2"
    tokenizer: Any
    text_encoder: Any

    @property
    def frame(self) -> Frame:
        tokenizer = self.tokenizer
        return Frame(
            vocab_size=token_embedding(self.text_encoder).num_embeddings,
            context_length=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    def knows(self, word: str) -> bool:
        """Whether `word` is a token of the model's own, or of a textual inversion that was loaded into it."""
        return word in self.tokenizer.get_vocab()

    def tokenize(self, prompt: str | WeightedText, words: Mapping[str, Word]) -> TokenizedPrompt:
        """See `perfusion.concept.words.tokenize`."""
        return tokenize(prompt, words, _encode_with(self.tokenizer), self.frame, self.knows)

    def numbered(self, words: Mapping[str, Word]) -> dict[str, Word]:
        """The words with ids of their own, from behind the vocabulary on."""
        following, numbered = self.frame.vocab_size, {}
        for token, word in words.items():
            numbered[token] = replace(word, first_id=following)
            following += word.rows
        return numbered


@contextmanager
def reading_words(pipeline: Any, reader: Reader, words: Mapping[str, Word], table: Tensor) -> Iterator[None]:
    """For the length of a with block the pipeline reads concepts' words; afterwards nothing is left of it.

    Args:
        words: their `first_id`s count the rows of `table` from the text encoder's vocabulary size on.
        table: (rows, hidden) learned words.
    """
    attributes, original = vars(pipeline), reader.tokenizer
    substitution = _Substitution(token_embedding(reader.text_encoder), table)
    handles = (
        reader.text_encoder.register_forward_pre_hook(substitution.before, with_kwargs=True),
        substitution.words.register_forward_hook(substitution.after),
    )
    # not by setattr, which a pipeline turns into a change of its configuration
    attributes[reader.name] = _WordTokenizer(reader, words)
    try:
        yield
    finally:
        attributes[reader.name] = original
        for handle in handles:
            handle.remove()


class _Substitution:
    """Hooks that put learned words in the place of ids that the text encoder's table does not have."""

    def __init__(self, words: torch.nn.Embedding, table: Tensor) -> None:
        self.words, self.table = words, table
        self.rows: Tensor | None = None  # (batch, tokens): a row of the table, or less than 0

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the ids out: the start token in their place is never taken for the end, where outputs are pooled."""
        input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.rows = input_ids - self.words.num_embeddings
        plain = torch.where(self.rows < 0, input_ids, input_ids[:, :1])
        if "input_ids" in kwargs:
            return args, {**kwargs, "input_ids": plain}
        return (plain, *args[1:]), kwargs

    def after(self, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Put the learned words in."""
        if self.rows is None:
            return output
        rows = self.rows.to(output.device)
        learned = self.table.to(output.device, output.dtype)[rows.clamp(min=0)]
        return torch.where(rows[..., None] < 0, output, learned)


class _WordTokenizer:
    """A tokenizer as a pipeline calls it, in everything else the one it stands for."""

    def __init__(self, reader: Reader, words: Mapping[str, Word]) -> None:
        self._reader, self._words = reader, words

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader.tokenizer, name)

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """Raises RequestError for a prompt with a concept that is longer than the text encoder reads."""
        texts = [text] if isinstance(text, str) else list(text)
        if not any(named(prompt, self._words) for prompt in texts):
            return self._reader.tokenizer(text, **options)
        rows = [self._ids(prompt, options) for prompt in texts]
        width = max(map(len, rows))
        if options.get("padding") == "max_length":
            width = max(width, options.get("max_length") or self._reader.frame.context_length)
        pad = self._reader.tokenizer.pad_token_id
        from transformers import BatchEncoding

        return BatchEncoding(
            {
                "input_ids": [ids + [pad] * (width - len(ids)) for ids in rows],
                "attention_mask": [[1] * len(ids) + [0] * (width - len(ids)) for ids in rows],
            },
            tensor_type=options.get("return_tensors"),
        )

    def _ids(self, text: str, options: Mapping[str, Any]) -> list[int]:
        """One prompt with its frame and without padding."""
        if not named(text, self._words):
            cut = {name: options[name] for name in ("max_length", "truncation") if name in options}
            return list(self._reader.tokenizer(text, **cut).input_ids)
        prompt = self._reader.tokenize(text, self._words)
        return [int(token) for token in prompt.input_ids[: prompt.length]]


def _encode_with(tokenizer: Any) -> Encode:
    """Ids of a text and where each begins, by a tokenizer of transformers; those in Python do not know where."""

    def encode(text: str) -> tuple[list[int], list[int]]:
        if not tokenizer.is_fast:
            ids = list(tokenizer(text, add_special_tokens=False).input_ids)
            return ids, [0] * len(ids)
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoding.input_ids), [start for start, _ in encoding.offset_mapping]

    return encode
