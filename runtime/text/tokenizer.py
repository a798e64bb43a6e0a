"""Prompts to token ids with a bundle's tokenizer; how concepts become words is in `perfusion.concept.words`."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from perfusion.bundle.description import TextEncoder
from perfusion.concept.learned_words import FIRST_ID, NO_WORDS, LearnedWords
from perfusion.concept.weighted_text import WeightedText
from perfusion.concept.words import (
    Encode,
    Frame,
    TokenizedPrompt,
    Word,
    tokenize,
    unknown,
)
from perfusion.errors import BundleError
from perfusion.runtime.text.chunks import split_prompt

__all__ = ["PromptTokenizer", "TokenizedPrompt", "Word"]


class PromptTokenizer:
    """The bundle's tokenizer.json through the `tokenizers` library."""

    def __init__(self, path: Path, encoder: TextEncoder) -> None:
        """Raises BundleError when the file is not a tokenizer or not this text encoder's."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise BundleError(
                f"{path} is not a tokenizer ({str(error)[:300]}). Export the bundle again."
            ) from error
        if self._tokenizer.get_vocab_size() > encoder.vocab_size:
            raise BundleError(
                f"{path} has {self._tokenizer.get_vocab_size()} tokens and the text encoder knows "
                f"{encoder.vocab_size}. Export the bundle again."
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._frame = Frame(
            vocab_size=encoder.vocab_size,
            context_length=encoder.context_length,
            bos_token_id=encoder.bos_token_id,
            eos_token_id=encoder.eos_token_id,
            pad_token_id=encoder.pad_token_id,
        )

    def knows(self, word: str) -> bool:
        """Whether `word` is a token of the base model's own."""
        return self._tokenizer.token_to_id(word) is not None

    def tokenize(
        self, prompt: str | WeightedText, words: Mapping[str, Word], learned: LearnedWords = NO_WORDS
    ) -> TokenizedPrompt:
        """Token ids of a prompt in which the keys of `words` name concepts, and `learned` are words too.

        Raises:
            RequestError: not a text, or longer than the text encoder reads.
        """
        knows = partial(self._knows, learned)
        return tokenize(prompt, words, self._encode_with(learned), self._frame, knows)

    def split(
        self, prompt: str | WeightedText, words: Mapping[str, Word], learned: LearnedWords = NO_WORDS
    ) -> tuple[WeightedText, ...]:
        """A prompt in parts that the text encoder can read; see `split_prompt`.

        Raises:
            RequestError: not a text, or far too long.
        """
        return split_prompt(prompt, words, self._encode_with(learned), self._frame.context_length - 2)

    def unknown(
        self, prompt: str, words: Mapping[str, Word], learned: LearnedWords = NO_WORDS
    ) -> tuple[str, ...]:
        """What looks like a concept's word in a prompt and is none."""
        return unknown(prompt, words, partial(self._knows, learned))

    def read_back(self, prompt: TokenizedPrompt, learned: LearnedWords = NO_WORDS) -> tuple[str, ...]:
        """What each token of a tokenized prompt says, from start to end without the padding; "" for a concept's."""
        return tuple(self._said(token, learned) for token in prompt.input_ids[: prompt.length].tolist())

    def _said(self, token: int, learned: LearnedWords) -> str:
        if token >= FIRST_ID:
            return learned.name(token)
        name = self._tokenizer.id_to_token(token) if token < self._frame.vocab_size else None
        return (name or "").removesuffix("</w>")

    def _knows(self, learned: LearnedWords, word: str) -> bool:
        return word in learned or self.knows(word)

    def _encode_with(self, learned: LearnedWords) -> Encode:
        return partial(learned.encode, encode=self._encode)

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text and where each begins, without the ids for start and end."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]
