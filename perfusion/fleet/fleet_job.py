"""A job of a fleet: a training, and the id that names it wherever it runs."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from perfusion.base.model_options import ModelOptions
from perfusion.embedded import model_path
from perfusion.errors import TrainingError
from perfusion.files import sha256_of
from perfusion.training.job_list import read_job_list
from perfusion.training.picture_folder import find_pictures
from perfusion.training.state import identity_of
from perfusion.training.training_job import TrainingJob

__all__ = ["FleetJob", "read_jobs"]

UNIMPORTANT = ("device", "version")
"""What of a training's identity says where it runs, not what is learned."""


@dataclass(frozen=True, kw_only=True)
class FleetJob:
    """A training; `training.output` is the name of its file in the store."""

    training: TrainingJob
    id: str

    @property
    def name(self) -> str:
        """Of the concept's file in the store, with slashes."""
        return self.training.output.as_posix()

    @classmethod
    def of(cls, training: TrainingJob) -> FleetJob:
        """Name a training by what is learned: its pictures, its settings and its base model, byte by byte.

        Raises:
            TrainingError: a file that it needs cannot be read.
        """
        options = training.model_options or ModelOptions()
        identity = identity_of(
            training.config, find_pictures(training.images),
            _content_of(training.model or model_path(), training.model_config, options.vae),
            model_options=str(replace(options, vae=None)), storage=training.storage, keys=str(training.keys),
            sheet=str(training.sheet),
        )  # fmt: skip
        facts = {name: value for name, value in identity.items() if name not in UNIMPORTANT}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return cls(training=training, id=digest)


def read_jobs(path: Path, defaults: argparse.Namespace) -> tuple[FleetJob, ...]:
    """The jobs of a list (`read_job_list`), or one for each folder of pictures in a folder.

    A folder's name is its file's name and, in brackets, its token; its superclass is that of `defaults`.

    Raises:
        TrainingError: no list and no such folder, or a row that cannot be trained.
    """
    if not path.is_dir():
        return tuple(FleetJob.of(training) for training in read_job_list(path, Path(), defaults))
    folders = sorted(
        folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )
    if not folders:
        raise TrainingError(
            f"{path} has no folders, expected one with pictures for each concept; or give a list."
        )
    if not defaults.superclass:
        raise TrainingError(
            f"{path} is a folder of folders: say with --superclass what kind of thing they show."
        )
    return tuple(FleetJob.of(training) for training in _of_folders(folders, defaults))


def _of_folders(folders: Sequence[Path], defaults: argparse.Namespace) -> list[TrainingJob]:
    own = (
        {"images": folder, "output": Path(f"{folder.name}.safetensors"), "token": f"<{folder.name}>"}
        for folder in folders
    )
    return [TrainingJob.of(argparse.Namespace(**vars(defaults) | names)) for names in own]


@cache
def _content_of(*roots: Path | None) -> str:
    """The contents of a base model's files and folders, as far as they decide what is learned."""
    digest = hashlib.sha256()
    for number, root in enumerate(roots):
        if root is None:
            continue
        files = (
            sorted(path for path in root.rglob("*") if path.suffix in _DECIDING) if root.is_dir() else [root]
        )
        for path in files:
            digest.update(f"{number} {path.relative_to(root)} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


_DECIDING = (".safetensors", ".json", ".txt", ".onnx")
