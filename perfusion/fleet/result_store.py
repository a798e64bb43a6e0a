"""Where the results of a fleet lie: a folder that all machines see, or any file system that fsspec knows.

    cat.safetensors         the concept
    cat.sheet.png           its sheet, where there is one
    cat.losses.csv          the losses of its steps, where they were wanted; or the folder cat.losses
    cat.safetensors.json    its manifest, written last: a training without one is not done
    .cat.safetensors.job    until then: the id of the job that writes these files

A manifest names the job by its id, so that a result of other pictures, settings or another base is seen as such.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from perfusion.errors import PerfusionError, TrainingError
from perfusion.files import cache_folder, writing

__all__ = ["Manifest", "ResultStore"]

FORMAT = 1
SUFFIX = ".json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What became of one job."""

    name: str
    """Of the concept's file in the store."""
    id: str
    sha256: str
    """Of the concept's file."""
    worker: str
    """Host and process that trained it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Loss, chosen step, scores, seconds: what perfusion-train --json says of it."""


class ResultStore:
    """Reads and publishes the results below one folder or URL.

    Args:
        url: a folder, or "s3://bucket/shop" and whatever else fsspec opens.

    Raises:
        TrainingError: a URL of a kind that fsspec does not know, or whose package is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            from fsspec.core import url_to_fs

            self._files, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise TrainingError(f"{url} cannot be opened as a place for results: {error}.") from error

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine's file system, shared or not."""
        return "file" in self._protocols

    @property
    def _protocols(self) -> tuple[str, ...]:
        protocol = self._files.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)

    def refuse_private(self) -> None:
        """Refuse a place that other processes do not see.

        Raises:
            TrainingError: it is this process's own memory.
        """
        if "memory" in self._protocols:
            raise TrainingError(
                f"{self.url} is the memory of one process, which the workers do not see. Give a folder or a URL that "
                "all of them see."
            )

    def workplace(self, name: str, job_id: str) -> Path:
        """Where a worker writes a result before it is published, and keeps the state of an unfinished one: in the
        store itself where that is a folder, so that another machine can go on; else in this machine's cache."""
        if self.is_local:
            return Path(self._root) / name
        return (
            cache_folder() / "fleet" / hashlib.sha256(self.url.encode()).hexdigest()[:16] / job_id[:16] / name
        )

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a result; None where there is none, or where its concept has gone.

        Raises:
            TrainingError: it is there, and is no manifest of ours; or the store cannot be read.
        """
        try:
            if not self._files.exists(self._path(name + SUFFIX)):
                return None
            text = self._files.cat_file(self._path(name + SUFFIX))
            found = self._files.exists(self._path(name))
        except OSError as error:
            raise TrainingError(f"{self.url} cannot be read: {error}.") from error
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            manifest = Manifest(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrainingError(
                f"{self.url}/{name}{SUFFIX} is no manifest of a training: {error}. Delete it to train again."
            ) from error
        return manifest if found else None

    def version(self, name: str) -> str | None:
        """What changes whenever a file does; None where there is no such file."""
        path = self._path(name)
        self._files.invalidate_cache(path)
        try:
            return str(self._files.ukey(path))
        except FileNotFoundError:
            return None

    def concept(self, name: str) -> bytes | None:
        """A concept's file; None where it is not published: no manifest yet, or one of another file."""
        manifest = self.manifest(name)
        if manifest is None and self.claimant(name):
            return None
        try:
            data = bytes(self._files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        is_other = manifest is not None and manifest.sha256 != hashlib.sha256(data).hexdigest()
        return None if is_other else data

    def refuse_foreign(self, name: str) -> None:
        """Refuse to replace a concept that no fleet made.

        Raises:
            TrainingError: a file of that name is there, without a manifest and without a claim.
        """
        if self._files.exists(self._path(name)) and self.manifest(name) is None and not self.claimant(name):
            raise TrainingError(
                f"{self.url}/{name} is there, and no manifest says that a fleet trained it. Move it away, or give the "
                "row another output."
            )

    def claim(self, name: str, job_id: str) -> None:
        """Say which job writes the files of a name from now on."""
        self._write(_claim_of(name), job_id)

    def claimant(self, name: str) -> str:
        """The id of the job that writes the files of a name; empty where none does."""
        path = self._path(_claim_of(name))
        return str(self._files.cat_file(path), "ascii", "replace") if self._files.exists(path) else ""

    def publish(self, manifest: Manifest, beside: Path, files: list[Path]) -> None:
        """Make a result visible: its files, then the manifest, which decides.

        Args:
            beside: the folder that stands for the manifest's own; `files` lie in it.

        Raises:
            PerfusionError: it cannot be written.
        """
        folder = PurePosixPath(manifest.name).parent
        try:
            if not self.is_local:  # there the files are in their places already, moved there whole
                for path in files:
                    place = folder / path.relative_to(beside).as_posix()
                    self._files.makedirs(self._path(str(place.parent)), exist_ok=True)
                    self._files.pipe_file(self._path(str(place)), path.read_bytes())
            text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1, sort_keys=True)
            self._write(manifest.name + SUFFIX, text + "\n")
            self._files.rm_file(self._path(_claim_of(manifest.name)))
        except FileNotFoundError:  # the claim, gone since an earlier try
            return
        except OSError as error:
            raise PerfusionError(
                f"{self.url} cannot be written: {error}. What was trained is in {files[0]}."
            ) from error

    def write_report(self, name: str, report: dict[str, Any]) -> None:
        """Write what became of all jobs as JSON, in the place of the report before."""
        self._write(name, json.dumps(report, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        """A file that is there whole or not at all."""
        if self.is_local:
            with writing(Path(self._root) / name, "w") as file:
                file.write(text)
            return
        self._files.makedirs(self._path(str(PurePosixPath(name).parent)), exist_ok=True)
        self._files.pipe_file(self._path(name), text.encode())

    def _path(self, name: str) -> str:
        root = str(self._root).rstrip("/")
        return root if name == "." else f"{root}/{name}"


def _claim_of(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f".{path.name}.job"))
