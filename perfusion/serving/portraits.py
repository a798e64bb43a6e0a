"""A picture of each concept, drawn when it is first asked for: its face on the page and on its card."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING

from perfusion.concept.concept_file import Concept
from perfusion.errors import PerfusionError
from perfusion.runtime import Job, Runtime
from perfusion.serving.library import LibraryConcept

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Portraits"]

_PROMPT = "a photo of a {} on the grass"  # a place: without one, a small model shows the thing as a texture
_SEED = 0
_PRIORITY = -1.0  # what somebody has asked for goes first
_CLIENT = "portraits"
_MOST_KEPT = 256


class Portraits:
    """Draws concepts with a server's runtime, those of the library one after another."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._turn = asyncio.Lock()
        self._kept: OrderedDict[str, Image] = OrderedDict()

    async def of(self, known: LibraryConcept) -> Image | None:
        """The portrait of a concept of the library; None where it cannot be drawn here."""
        if known.why_not is not None:
            return None
        async with self._turn:
            if known.sha256 not in self._kept:
                try:
                    self._kept[known.sha256] = await (await asyncio.to_thread(self._submit, known.word))
                except (
                    PerfusionError
                ):  # the queue is full, the memory does not suffice, the server is being stopped
                    return None
            self._kept.move_to_end(known.sha256)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
            return self._kept[known.sha256]

    def of_stranger(self, concept: Concept) -> Image:
        """The portrait of a concept that is in no library, such as one that is still being learned.

        Raises:
            PerfusionError: it does not fit, or cannot be drawn.
        """
        word = f"<sample-{secrets.token_hex(4)}>"
        self._runtime.load_concept(concept, token=word)
        try:
            return self._submit(word).result()
        finally:
            self._runtime.unload_concept(word)

    def _submit(self, word: str) -> Job:
        prompt = _PROMPT.format(word)
        return self._runtime.submit(prompt, seed=_SEED, priority=_PRIORITY, client=_CLIENT)
