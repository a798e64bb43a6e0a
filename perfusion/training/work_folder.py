"""The folder beside the output in which an unfinished training lives: ``cat.safetensors.work/``.

    state.safetensors        the last state, for --resume
    step-000100.safetensors  the concept as it was after 100 steps, one file every n steps
    lock                     while a training runs: the number of its process

Made when a training begins, removed when the concept itself has been written, unless it is to be kept. The output's own
name appears only with the finished concept. Files of other names in the folder are not ours and stay.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from perfusion.concept.concept_file import Concept
from perfusion.errors import PerfusionError, TrainingError
from perfusion.locking import HeldError, lock
from perfusion.training.state import Checkpoint, check_identity, read_checkpoint, write_checkpoint

__all__ = ["WorkFolder"]

_SNAPSHOT = re.compile(r"step-(\d{6,9})\.safetensors")
_PARTIAL = re.compile(r"\.(state|step-\d+)\.safetensors\.[0-9a-f]{8}\.partial")
_STATE = "state.safetensors"
_LOCK = "lock"


class WorkFolder:
    """Where the training of one output file keeps what it has so far."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".work")
        self._locked = False

    @property
    def state_path(self) -> Path:
        """The file with the last state."""
        return self.path / _STATE

    def check(self) -> None:
        """Refuse now what would fail at the first save.

        Raises:
            TrainingError: the folder's name is taken, or nothing can be written there.
        """
        nearest = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise TrainingError(
                f"{self.path} cannot be used to keep an unfinished training: {nearest} is not a folder that you may "
                "write to; choose another --output."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings off this folder and its output for the length of a with block; again inside it is
        allowed. A lock that a killed training left is taken over. A folder in which nothing was kept goes at the end.

        Raises:
            TrainingError: another training is writing here, or nothing can be written here.
        """
        if self._locked:
            yield
            return
        self.check()
        missing = [path for path in self.path.absolute().parents if not path.exists()]
        with ExitStack() as stack:
            stack.callback(self._leave, missing)
            self._take(stack)
            self._locked = True
            yield

    def _take(self, stack: ExitStack) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(self.path / _LOCK))
        except HeldError as held:
            raise TrainingError(
                f"{self.output}: another training is writing it (process {held.pid or 'unknown'}); wait for it, stop "
                "it, or choose another --output."
            ) from held
        except OSError as error:
            raise TrainingError(
                f"{self.path} cannot be used to keep an unfinished training: {(error.strerror or str(error)).lower()}; "
                "choose another --output."
            ) from error

    def _leave(self, missing: list[Path]) -> None:
        """Unlocked, and without the folders that were made for nothing."""
        self._locked = False
        for path in (self.path, *missing):
            with suppress(OSError):  # there is something in it
                path.rmdir()

    def save_state(self, identity: dict[str, str], facts: dict[str, Any], **parts: Any) -> None:
        """Write the state, over the one before. `parts` are the other arguments of `write_checkpoint`.

        Raises:
            PerfusionError: it cannot be written.
        """
        write_checkpoint(self.state_path, facts={**facts, "identity": identity}, **parts)

    def load_state(self, identity: dict[str, str], free: tuple[str, ...] = ()) -> Checkpoint | None:
        """The last state; None when there is none and the training begins at its beginning.

        Args:
            identity: of the training to be continued, `identity_of`.
            free: names in it that may differ.

        Raises:
            TrainingError: the state is damaged or that of another training.
        """
        if not self.state_path.exists():
            return None
        checkpoint = read_checkpoint(self.state_path)
        if not isinstance(checkpoint.facts.get("identity"), dict):
            raise TrainingError(
                f"{self.state_path}: not the state of a concept's training; delete it and start over."
            )
        try:
            check_identity(checkpoint.facts["identity"], identity, free)
        except TrainingError as error:
            raise TrainingError(f"{self.state_path}: {error}") from error
        return checkpoint

    def last_step(self) -> int | None:
        """The step of the state that is kept; None without a readable one."""
        try:
            return int(read_checkpoint(self.state_path).facts["step"])
        except (TrainingError, KeyError, TypeError, ValueError):
            return None

    def save_concept(self, concept: Concept, step: int) -> None:
        """Keep the concept as it is after `step` steps, in float32. The folder is made when it is missing."""
        concept.save(self.path / f"step-{step:06d}.safetensors", storage="float32")

    def concepts(self, up_to: int | None = None) -> dict[int, Concept]:
        """The concepts kept so far by their steps, in order.

        Args:
            up_to: later ones are left out: those of an earlier training that went further.

        Raises:
            ConceptError: one of them is damaged.
        """
        steps = sorted((step, path) for path, step in self._snapshots().items())
        return {step: Concept.load(path) for step, path in steps if up_to is None or step <= up_to}

    def start_over(self, say: Callable[[str], None]) -> None:
        """Drop what an earlier training left here; says so when there was something."""
        if self.state_path.exists():
            say(f"{self.path}: an unfinished training is dropped (--resume would have continued it)")
        elif self._snapshots():
            say(f"{self.path}: the snapshots of an earlier training are dropped")
        self._remove()

    def finish(self, keep: bool, keep_state: bool = False) -> None:
        """Clear up after the concept was written to the output.

        Args:
            keep: keep the concepts of the steps; only the state goes, so that nothing is resumed by mistake.
            keep_state: keep all, so that the training can go on to more steps.
        """
        if not self.output.is_file():
            raise TrainingError(f"{self.output} was not written, so {self.path} is left as it is.")
        if keep_state:
            return
        if keep:
            with suppress(FileNotFoundError):
                self.state_path.unlink()
        else:
            self._remove()

    def _snapshots(self) -> dict[Path, int]:
        if not self.path.is_dir():
            return {}
        matches = [(path, _SNAPSHOT.fullmatch(path.name)) for path in self.path.iterdir()]
        return {path: int(match[1]) for path, match in matches if match}

    def _remove(self) -> None:
        """Our files, half-written ones of a killed training too, then the folder if nothing else is in it."""
        if not self.path.is_dir():
            return
        try:
            for path in list(self.path.iterdir()):
                ours = path.name == _STATE or _SNAPSHOT.fullmatch(path.name) or _PARTIAL.fullmatch(path.name)
                if ours and not path.is_dir():
                    path.unlink()
            if not any(self.path.iterdir()):
                shutil.rmtree(self.path)
        except OSError as error:
            raise PerfusionError(f"{self.path} cannot be cleared: {error}. Delete it by hand.") from error
