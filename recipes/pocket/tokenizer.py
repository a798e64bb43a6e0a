"""Pocket's tokenizer: CLIP's byte-pair encoding over the few words of its world.

Every word of the world is one token. The alphabet holds all 256 bytes, in the middle and at the end of a word, so
any other text still encodes, in pieces; no word is refused.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from tokenizers import pre_tokenizers

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONTEXT_LENGTH = 77
END_OF_WORD = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

Pair = tuple[str, str]


def learn_merges(words: list[str]) -> list[Pair]:
    """Byte-pair merges after which every one of `words` (lower-case ASCII) is a single token.

    The most frequent pair first, equals in alphabetical order: the tokenizers library breaks ties by chance, and a
    model is worth nothing with another numbering of its words.
    """
    pieces = [[*word[:-1], word[-1] + END_OF_WORD] for word in sorted(set(words))]
    merges: list[Pair] = []
    while any(len(word) > 1 for word in pieces):
        counts = Counter(pair for word in pieces for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]
    return merges


def _merge(word: list[str], pair: Pair) -> list[str]:
    """The word with every occurrence of the pair joined, from the left."""
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_tokenizer(words: list[str], context_length: int = CONTEXT_LENGTH) -> CLIPTokenizer:
    """A `CLIPTokenizer` that reads each of `words` as one token and pads with the end token, as CLIP does."""
    from transformers import CLIPTokenizer

    merges = learn_merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(letter + END_OF_WORD for letter in alphabet)])
    tokens |= dict.fromkeys(left + right for left, right in merges)
    tokens |= dict.fromkeys([BOS, EOS])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)
