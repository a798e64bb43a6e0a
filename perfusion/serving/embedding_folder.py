"""A folder of embeddings, as A1111's users have one: each file is a word of prompts under its name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perfusion.concept.embedding_file import Embedding
from perfusion.errors import ConceptError
from perfusion.runtime import Runtime

__all__ = ["EmbeddingFolder"]

_log = logging.getLogger(__name__)

_KINDS = (".safetensors", ".pt", ".bin")  # pickles too, to say why they are no words
_MOST_EMBEDDINGS = 4096


@dataclass(frozen=True, kw_only=True)
class _File:
    """What was last read of a file."""

    changed: tuple[int, int]  # its time and size
    embedding: Embedding | None  # None where it cannot be read
    is_loaded: bool


class EmbeddingFolder:
    """The embeddings that a server draws with. Its library's lock guards it."""

    def __init__(self, runtime: Runtime, folder: Path | None = None) -> None:
        """`folder`: with the files, in folders of their own too; None: there are none."""
        self._runtime, self._folder = runtime, folder
        self._files: dict[Path, _File] = {}

    @property
    def loaded(self) -> list[Embedding]:
        """Those that prompts can name."""
        return [file.embedding for file in self._files.values() if file.embedding and file.is_loaded]

    @property
    def skipped(self) -> list[Embedding]:
        """Those of other base models, and second ones of a name."""
        return [file.embedding for file in self._files.values() if file.embedding and not file.is_loaded]

    def refresh(self) -> None:
        """Read the folder again: what came, what went, what changed. What is no word is told to the log."""
        paths = dict(self._paths())
        for path in [path for path, file in self._files.items() if paths.get(path) != file.changed]:
            file = self._files.pop(path)
            if file.embedding and file.is_loaded:
                self._runtime.unload_embedding(file.embedding.word)
        for path, changed in paths.items():
            if path not in self._files:
                self._files[path] = self._take(path, changed)

    def _take(self, path: Path, changed: tuple[int, int]) -> _File:
        embedding = None
        try:
            embedding = Embedding.load(path)
            self._runtime.load_embedding(embedding)
        except ConceptError as error:
            _log.warning("%s is no word here. %s", path.name, error)
            return _File(changed=changed, embedding=embedding, is_loaded=False)
        return _File(changed=changed, embedding=embedding, is_loaded=True)

    def _paths(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        """The files, and when each was changed and how long it is."""
        if self._folder is None:
            return
        files = (path for path in sorted(self._folder.rglob("*")) if path.suffix.lower() in _KINDS)
        for _, path in zip(range(_MOST_EMBEDDINGS), files, strict=False):
            if path.is_file():
                status = path.stat()
                yield path, (status.st_mtime_ns, status.st_size)
