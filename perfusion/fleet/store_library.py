"""The concepts of a store as words of prompts: each is read when a prompt names it, and any number may be there."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence

from perfusion.concept.concept_file import Concept
from perfusion.fleet.result_store import ResultStore
from perfusion.runtime import Runtime
from perfusion.serving.answers import StatusError
from perfusion.serving.library import LibraryConcept, check_name
from perfusion.serving.shelf import ConceptShelf

__all__ = ["StoreLibrary"]

FRESH_SECONDS = 10.0
"""So long a concept is drawn before its file is looked at again."""

_NAMED = re.compile(r"<(?:lora:)?([^<>\s:]{1,62})(?=[:>])")
_MOST_NAMES = 16  # that a prompt may look for
_RETRY_SECONDS = 5


class StoreLibrary:
    """`<shop/cat>` is the concept in the store's file `shop/cat.safetensors`. For several threads at once."""

    def __init__(self, runtime: Runtime, store: ResultStore | None, most: int = 256) -> None:
        """`store`: None: there are no concepts but those of requests. `most`: concepts that are loaded at a time."""
        self._runtime, self._store = runtime, store
        self._shelf = ConceptShelf(runtime, max(most, _MOST_NAMES))
        self._looked_at: dict[str, float] = {}  # when, by word
        self.lock = threading.RLock()

    @property
    def concepts(self) -> Sequence[LibraryConcept]:
        """None: a store is not listed."""
        return ()

    def refresh(self) -> None:
        """Look at every file again before it is drawn the next time."""
        with self.lock:
            self._looked_at.clear()

    def words(self, prompt: str) -> str:
        """The prompt as it is, its concepts loaded.

        Raises:
            ConceptError: a file is no concept, or one for another base model.
            StatusError: it names too many, or a file is being replaced.
        """
        names = dict.fromkeys(_NAMED.findall(prompt))
        if len(names) > _MOST_NAMES:
            raise StatusError(
                400,
                f"The prompt names {len(names)} concepts, expected at most {_MOST_NAMES}.",
                field="prompt",
            )
        for name in names:
            self.word(f"<{name}>")
        return prompt

    def word(self, token: str) -> str:
        """The token, its concept loaded where the store has one."""
        with self.lock:
            mark = self._shelf.use(token)
            if mark is not None and time.monotonic() - self._looked_at.get(token, 0) < FRESH_SECONDS:
                return token
            if mark is not None or token not in self._runtime.concepts:  # else it came with a request
                self._read(token, mark)
            return token

    def _read(self, word: str, mark: str | None) -> None:
        """Load a word's file where it is another one than before; one that is being replaced stays as it was."""
        name = f"{word[1:-1]}.safetensors"
        version = self._store.version(name) if self._store is not None and _is_name(word[1:-1]) else None
        if self._store is None or version is None:
            self._forget(word)
            return
        if version != mark:
            data = self._store.concept(name)
            if data is None and mark is None:
                raise StatusError(503, f"{word} is being written. Ask again.", retry_after=_RETRY_SECONDS)
            if data is not None:
                self._shelf.put(word, version, Concept.from_bytes(data))
        self._looked_at[word] = time.monotonic()
        if len(self._looked_at) > len(self._shelf):
            self._looked_at = {known: when for known, when in self._looked_at.items() if known in self._shelf}

    def _forget(self, word: str) -> None:
        self._shelf.drop(word)
        self._looked_at.pop(word, None)


def _is_name(name: str) -> bool:
    """Whether a store may have a file of a name: folders and a name as libraries have them."""
    try:
        for part in name.split("/"):
            check_name(part)
    except StatusError:
        return False
    return True
