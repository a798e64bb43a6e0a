"""The shelf: concepts that a runtime holds for as long as requests name them, so that any number may be known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perfusion.concept.concept_file import Concept
from perfusion.runtime import Region, Runtime
from perfusion.serving.answers import StatusError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from perfusion.concept.settings import SettingChanges

__all__ = ["MOST_RIDERS", "ConceptShelf", "Riders", "renamed_prompt", "renamed_regions"]

MOST_RIDERS = 8  # concept files that one request may bring
_MOST_LETTERS = 40  # of a rider's name, to which its hash is added


class ConceptShelf:
    """Words that are loaded into a runtime, at most so many; the one that was not used for the longest leaves first.

    A picture that is under way keeps its concept, also after that has left. One thread at a time.
    """

    def __init__(self, runtime: Runtime, most: int) -> None:
        """`most`: concepts at a time."""
        self._runtime, self._most = runtime, most
        self._marks: dict[str, str] = {}  # by word, the least recently used first

    def __len__(self) -> int:
        return len(self._marks)

    def __contains__(self, word: str) -> bool:
        return word in self._marks

    def use(self, word: str) -> str | None:
        """What the concept of a word was marked with, and note that it is used; None where it is not here."""
        mark = self._marks.pop(word, None)
        if mark is not None:
            self._marks[word] = mark
        return mark

    def put(self, word: str, mark: str, concept: Concept, **settings: Unpack[SettingChanges]) -> None:
        """Load a concept under a word, in the place of another one; `mark` says which it is.

        Raises:
            ConceptError: it is for another base model.
        """
        self.drop(word)
        self._runtime.load_concept(concept, token=word, **settings)
        self._marks[word] = mark
        while len(self._marks) > self._most:
            self.drop(next(iter(self._marks)))

    def drop(self, word: str) -> None:
        """Unload a word; nothing happens where it is not here."""
        if self._marks.pop(word, None) is not None:
            self._runtime.unload_concept(word)


class Riders:
    """Concepts that come with the requests that name them; another request's of the same name is another concept."""

    def __init__(self, runtime: Runtime, most: int) -> None:
        """`most`: concepts that are held at a time."""
        self._shelf = ConceptShelf(runtime, max(most, MOST_RIDERS))

    def words(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """The words under which some files are loaded now, by the words that the request has for them.

        Raises:
            ConceptError: a file is no concept, or one for another base model.
            StatusError: there are too many.
        """
        if len(files) > MOST_RIDERS:
            raise StatusError(
                400,
                f"There are {len(files)} concept files, expected at most {MOST_RIDERS}.",
                field="concept_files",
            )
        words = {}
        for token, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            words[token] = word = f"<{token[1:-1][:_MOST_LETTERS]}.{digest[:12]}>"
            if self._shelf.use(word) is None:
                self._shelf.put(word, digest, Concept.from_bytes(data))
        return words


def renamed_prompt(prompt: str, words: Mapping[str, str]) -> str:
    """A prompt with other words for its concepts, also in tags such as <lora:cat:0.8>."""
    names = "|".join(re.escape(token[1:-1]) for token in words)
    if not names:
        return prompt
    return re.sub(
        f"<(lora:)?({names})(?=[:>])",
        lambda match: f"<{match[1] or ''}{words[f'<{match[2]}>'][1:-1]}",
        prompt,
    )


def renamed_regions(regions: Any, words: Mapping[str, str]) -> Any:
    """Regions with other words for their concepts."""
    if not isinstance(regions, list):
        return regions
    return [
        replace(region, word=words.get(str(region.word), region.word))
        if isinstance(region, Region)
        else region
        for region in regions
    ]
