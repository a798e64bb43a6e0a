"""The library: a folder of concept files, each a word of prompts under its file's name.

The file's name is what a concept is: `cat.safetensors` is the word `<cat>`, whatever token the file itself has. That
token is an alias while only one concept has it. What is deleted goes into a bin within the folder.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from perfusion.concept.concept_file import Concept
from perfusion.concept.settings import ConceptSettings
from perfusion.errors import ConceptError, PerfusionError, RequestError
from perfusion.files import writing
from perfusion.runtime import Runtime
from perfusion.runtime.picture_settings import concept_hash
from perfusion.serving.answers import StatusError
from perfusion.serving.embedding_folder import EmbeddingFolder

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Library", "LibraryConcept", "WordLibrary", "check_name"]

_KINDS = (".safetensors", ".png")
_NAME = re.compile(r"\w[\w.-]{0,60}")
_WORD = re.compile(r"<[^<>\s]{1,62}>")
_BIN = ".bin"
_MOST_CONCEPTS, _MOST_BYTES = 4096, 4 << 30
_MOST_DELETED = 64  # that lie in the bin


@dataclass(frozen=True, kw_only=True)
class LibraryConcept:
    """A concept file of the library, and whether its word can be drawn."""

    name: str
    path: Path
    size: int  # bytes of the file
    concept: Concept | None = None  # None where the file cannot be read
    sha256: str = ""
    why_not: str | None = None  # what keeps it from being drawn
    is_sample: bool = False  # came with the bundle, and is not changed
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """Its word in prompts."""
        return f"<{self.name}>"


class WordLibrary(Protocol):
    """What prompts are read with: concepts and their words, wherever they come from."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held while a prompt is read and its pictures are ordered, so that its concepts stay."""

    @property
    def concepts(self) -> Sequence[LibraryConcept]:
        """Those that clients are told of."""

    def refresh(self) -> None:
        """See what has changed."""

    def words(self, prompt: str) -> str:
        """A prompt with the words under which its concepts are loaded."""

    def word(self, token: str) -> str:
        """The word under which a token's concept is loaded; the token itself where it is none."""


class Library:
    """The concepts that a server draws with. For several threads at once."""

    def __init__(
        self,
        runtime: Runtime,
        folder: Path | None = None,
        *,
        samples: bool = True,
        embeddings: Path | None = None,
    ) -> None:
        """`folder`: where concept files lie and come; None: nothing is kept. `samples`: those of the bundle too.
        `embeddings`: where embeddings lie."""
        self.embeddings = EmbeddingFolder(runtime, embeddings)
        self._runtime, self._folder, self._samples = runtime, folder, samples
        self._concepts: dict[str, LibraryConcept] = {}
        self.lock = threading.RLock()  # held while prompts are read, so that their concepts stay
        self.refresh()

    @property
    def runtime(self) -> Runtime:
        """What draws with them."""
        return self._runtime

    @property
    def concepts(self) -> list[LibraryConcept]:
        """All, by name."""
        with self.lock:
            return [self._concepts[name] for name in sorted(self._concepts)]

    def get(self, name: str) -> LibraryConcept:
        """One by its name.

        Raises:
            StatusError: there is none.
        """
        with self.lock:
            if name not in self._concepts:
                raise StatusError(404, f"There is no concept {name[:80]!r} in the library.", field="name")
            return self._concepts[name]

    def refresh(self) -> None:
        """Read the folders again: what came, what went, what changed."""
        with self.lock:
            self.embeddings.refresh()
            paths = dict(self._runtime.bundle.samples) if self._samples else {}
            samples = set(paths.values())
            paths |= {path.stem: path for path in self._files()}
            for name in [name for name, known in self._concepts.items() if paths.get(name) != known.path]:
                self._drop(name)
            for name, path in list(paths.items())[:_MOST_CONCEPTS]:
                self._take(name, path, is_sample=path in samples)

    def words(self, prompt: str) -> str:
        """A prompt with the concepts' own words in place of their aliases.

        Raises:
            RequestError: an alias that several concepts have.
        """
        return _WORD.sub(lambda match: self.word(match.group()), prompt)

    def word(self, token: str) -> str:
        """The word that a token stands for; itself where it is no alias.

        Raises:
            StatusError: several concepts have it.
        """
        with self.lock:
            if token[1:-1] in self._concepts:
                return token
            names = sorted(
                name
                for name, known in self._concepts.items()
                if known.concept and known.concept.token == token
            )
        if len(names) > 1:
            choices = " or ".join(f"<{name}>" for name in names)
            raise StatusError(
                400,
                f"The word {token} is the token of {len(names)} concepts. Write {choices}.",
                field="prompt",
            )
        return f"<{names[0]}>" if names else token

    def add(self, data: bytes, name: str) -> LibraryConcept:
        """Put a concept file, or a card, into the library.

        Raises:
            ConceptError: it is no concept.
            StatusError: the name is none or is taken, or there is no library.
        """
        check_name(name)
        Concept.from_bytes(data)
        with self.lock:
            path = self._place(name, ".png" if data[:4] == b"\x89PNG" else ".safetensors")
            size = sum(known.size for known in self._concepts.values()) + len(data)
            if len(self._concepts) >= _MOST_CONCEPTS or size > _MOST_BYTES:
                raise StatusError(
                    507,
                    f"The library holds {len(self._concepts)} concepts of {size / 1e9:.2g} GB together, and no more "
                    "may. Delete some.",
                )
            with writing(path) as file:
                file.write(data)
            return self._take(name, path)

    def put(self, data: bytes, name: str) -> LibraryConcept:
        """Put a concept file into the library, in place of the one that has its name: that goes into the bin.

        Raises:
            ConceptError, StatusError: as `add`.
        """
        with self.lock:
            if name in self._concepts:
                self.remove(name)
            return self.add(data, name)

    def change(self, name: str, settings: Mapping[str, Any] | None, new_name: str | None) -> LibraryConcept:
        """Give a concept other settings, which stay, or another name.

        Raises:
            RequestError: a setting out of its range.
            StatusError: the name is none or is taken, or the concept is a sample and is to be renamed.
        """
        with self.lock:
            known = self.get(name)
            if settings:
                if known.why_not is not None:
                    raise StatusError(409, known.why_not)
                changed = ConceptSettings(**known.settings).merged(settings)  # refuses other names
                chosen = asdict(self._runtime.set_concept(known.word, **asdict(changed)))
                if not known.is_sample:
                    with writing(_sidecar(known.path), "w") as file:
                        json.dump(chosen, file)
                self._concepts[name] = known = replace(known, settings=chosen)
            if new_name is not None and new_name != name:
                check_name(new_name)
                path = self._place(new_name, self._own(known).suffix)
                self._drop(name)
                _move(known.path, path)
                known = self._take(new_name, path)
            return known

    def remove(self, name: str) -> str:
        """Put a concept into the bin; what `restore` takes to bring it back."""
        with self.lock:
            known = self.get(name)
            place = self._own(known).parent / _BIN / secrets.token_hex(8)
            place.mkdir(parents=True)
            self._drop(name)
            _move(known.path, place / known.path.name)
            _empty(place.parent, _MOST_DELETED)
            return place.name

    def restore(self, undo: str) -> LibraryConcept:
        """Bring a concept back out of the bin.

        Raises:
            StatusError: there is no such one, or its name is taken meanwhile.
        """
        with self.lock:
            place = (self._folder or Path()) / _BIN / undo
            files = [path for kind in _KINDS for path in place.glob(f"*{kind}")] if undo.isalnum() else []
            if self._folder is None or not files:
                raise StatusError(404, "There is nothing in the bin under this number.")
            path = self._place(files[0].stem, files[0].suffix)
            _move(files[0], path)
            place.rmdir()
            return self._take(path.stem, path)

    def _files(self) -> Iterable[Path]:
        if self._folder is None or not self._folder.is_dir():
            return []
        return [path for path in sorted(self._folder.iterdir()) if path.suffix in _KINDS and path.is_file()]

    def _place(self, name: str, kind: str) -> Path:
        """Where a new concept of a name goes."""
        if self._folder is None:
            raise StatusError(409, "This server has no library. Start it with --library DIR.")
        if any(known.casefold() == name.casefold() for known in self._concepts):  # some systems know no case
            raise StatusError(
                409, f"There is a concept {name!r} in the library. Choose another name.", field="name"
            )
        path = self._folder / f"{name}{kind}"
        if path.exists() or path.is_symlink():  # put there since the folder was read
            raise StatusError(
                409, f"There is a file {path.name} in the library. Choose another name.", field="name"
            )
        return path

    def _own(self, known: LibraryConcept) -> Path:
        if known.is_sample:
            raise StatusError(409, f"{known.word} came with the bundle, and stays as it is.")
        return known.path

    def _take(self, name: str, path: Path, *, is_sample: bool = False) -> LibraryConcept:
        """Read a file and load its concept; what is known of it afterwards, also where that fails."""
        known = LibraryConcept(name=name, path=path, size=path.stat().st_size, is_sample=is_sample)
        try:
            check_name(name)
            concept = Concept.load(path)
            known = replace(known, concept=concept, sha256=concept_hash(concept))
            before = self._concepts.get(name)
            if before is not None and before.sha256 == known.sha256 and before.why_not is None:
                return before
            if before is not None:
                self._drop(name)
            self._runtime.load_concept(concept, token=known.word, **_read_sidecar(path))
            known = replace(known, settings=asdict(self._runtime.set_concept(known.word)))
        except (ConceptError, RequestError) as error:
            settings = asdict(known.concept.settings if known.concept else ConceptSettings())
            known = replace(known, why_not=str(error), settings=settings)
        self._concepts[name] = known
        return known

    def _drop(self, name: str) -> None:
        known = self._concepts.pop(name)
        if known.word in self._runtime.concepts:
            self._runtime.unload_concept(known.word)


def check_name(name: str) -> None:
    """Refuse what is no word, or could lead out of the library as a file's name.

    Raises:
        StatusError: it is not letters, digits, "-", "_" and "." with a letter or digit first, or not in one form.
    """
    if _NAME.fullmatch(name) and name == unicodedata.normalize("NFC", name) and not name.endswith("."):
        return
    raise StatusError(
        400, f"The name is {name[:80]!r}, expected at most 61 letters, digits, -, _ or dots, such as my-cat.",
        field="name",
    )  # fmt: skip


def _sidecar(path: Path) -> Path:
    """Where a concept's settings are kept, beside its file."""
    return path.with_name(f"{path.stem}.json")


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(_sidecar(path).read_text(encoding="utf-8"))
        return asdict(ConceptSettings(**settings))
    except (OSError, ValueError, TypeError, RequestError):  # none, or another program's
        return {}


def _empty(folder: Path, most: int) -> None:
    """Leave the newest in the bin, so that uploading and deleting does not fill the disk."""
    places = sorted(folder.iterdir(), key=lambda place: place.stat().st_mtime_ns)
    for place in places[: max(0, len(places) - most)]:
        shutil.rmtree(place, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Give a concept file another place, and its settings with it."""
    try:
        if _sidecar(source).is_file():
            _sidecar(source).replace(_sidecar(target))
        source.replace(target)
    except OSError as error:
        raise PerfusionError(
            f"{source.name} cannot be moved: {error.strerror}. Look at the folder's rights."
        ) from error
