"""Files that are either whole or not there: written beside their place, then moved into it."""

import errno
import glob
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from perfusion.errors import PerfusionError
from perfusion.locking import HeldError, NoLocksError, lock

__all__ = ["cache_folder", "check_writable", "data_folder", "sha256_of", "writing", "writing_folder"]

_MANIFEST = "bundle.json"  # what marks a folder as ours to replace

_PARTIAL = ".partial"  # how the name of what is being written ends
_ASIDE = ".replaced"  # and that of a folder which makes room for its successor
_LOCK = ".lock"  # and that of the file whose holder writes the folder
_LEFTOVERS = (_PARTIAL, _ASIDE, _LOCK)

_MOST_NAME = 40  # characters of a name that its temporary names repeat

_HELD = (5, 32)  # ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION: Windows moves no file that a program has open
_HELD_SECONDS = 4.0  # virus scanners and indexers let go of what was just written well within this
_HELD_POLL_SECONDS = 0.1
_WINDOWS_PATH = 259  # characters that a path may have there, unless long paths are allowed


def cache_folder() -> Path:
    """Where what can be made again is kept: $PERFUSION_CACHE, or `perfusion-edge` in the user's cache folder."""
    own = os.environ.get("PERFUSION_CACHE")
    if own:
        return Path(own)
    system = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    try:
        return Path(os.environ.get(system) or Path.home() / ".cache") / "perfusion-edge"
    except RuntimeError:  # a user without a home, as containers have
        return Path(tempfile.gettempdir()) / "perfusion-edge"


def data_folder() -> Path:
    """Where what cannot be made again is kept: $PERFUSION_DATA, or `perfusion-edge` in the user's data folder."""
    own = os.environ.get("PERFUSION_DATA")
    if own:
        return Path(own)
    system = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_DATA_HOME"
    return Path(os.environ.get(system) or Path.home() / ".local" / "share") / "perfusion-edge"


def check_writable(path: Path | str) -> None:
    """Refuse before the work what `writing` would refuse after it.

    Raises:
        PerfusionError: a folder or a device has the file's name, or nothing can be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise PerfusionError(f"{path} is a folder, expected the name of a file to write. Add one to it.")
    if path.exists() and not path.is_file():
        raise PerfusionError(f"{path} is not an ordinary file. Choose a file name for the output.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise PerfusionError(
            f"{path} cannot be written: {folder} is not a folder that you may write to. Choose another output."
        )


@contextmanager
def writing(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears at `path` only when the block ends without an exception.

    The bytes go to a temporary file in the same folder, are flushed to the disk and take the place of `path`
    in one step; a reader sees the old file or the new one, never half of one. `mode` is "wb" or "w" (UTF-8, with
    the line ends that are written, on every system). The folder is made when it is missing.

    Raises:
        PerfusionError: the file cannot be written (no space, no permission, a folder in its place).
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode is {mode!r}, expected 'wb' or 'w'")
    path = _final(Path(path))
    temporary = _beside(path)
    try:
        with _explained(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():  # a move would put a file in the place of /dev/null
                raise PerfusionError(f"{path} is not an ordinary file. Choose a file name for the output.")
            encoding, newline = ("utf-8", "\n") if mode == "w" else (None, None)
            with open(temporary, mode, encoding=encoding, newline=newline) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _move(temporary, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # gone after the move, or never made; the error that matters is on its way
            temporary.unlink()


@contextmanager
def writing_folder(path: Path | str) -> Iterator[Path]:
    """Give an empty folder whose contents appear at `path` only when the block ends without an exception.

    A folder already at `path` is replaced when it is empty or holds a `bundle.json`; anything else there is
    somebody's and is left alone. During the swap the old folder is moved aside and put back if the move
    fails. What processes that were killed in here left beside `path` is cleared up first.

    Raises:
        PerfusionError: `path` holds something that is not ours, or cannot be written.
    """
    path = _final(Path(path))
    _refuse_foreign(path)
    temporary = _beside(path)
    with ExitStack() as stack, _explained(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path)
        with suppress(NoLocksError):
            stack.enter_context(lock(_lock_of(temporary), strict=True))  # tells others that this one is alive
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        _refuse_foreign(path)  # again: the block may have taken hours
        _swap(temporary, path)


def sha256_of(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, 64 lower-case hex digits, read in pieces.

    Raises:
        PerfusionError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise PerfusionError(f"{path} cannot be read: {_reason(error)}.") from error
    return digest.hexdigest()


def _final(path: Path) -> Path:
    """Where `path` leads when it is a link: the target is replaced and the link stays."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _stem(path: Path) -> str:
    """How the temporary names of `path` begin: with as much of its own as leaves room for the rest."""
    if len(path.name) <= _MOST_NAME:
        return f".{path.name}"
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    return f".{path.name[: _MOST_NAME - 9]}-{digest}"


def _beside(path: Path) -> Path:
    """A new name in the same folder, hence on the same file system, so that the move is one step."""
    return path.with_name(f"{_stem(path)}.{secrets.token_hex(4)}{_PARTIAL}")


def _lock_of(temporary: Path) -> Path:
    """The lock whose holder writes `temporary`: beside it, because Windows moves no folder with an open file in it."""
    return temporary.with_suffix(_LOCK)


def _clear_leftovers(path: Path) -> None:
    """Remove what killed processes left of folder `path`: nobody holds its lock.

    One may have died in the middle of a swap; then the folder that it had moved aside is put back.
    """
    places = path.parent.glob(f"{glob.escape(_stem(path))}.????????.*")
    for temporary in {place.with_suffix(_PARTIAL) for place in places if place.suffix in _LEFTOVERS}:
        old = temporary.with_suffix(_ASIDE)
        with suppress(HeldError, NoLocksError, OSError), lock(_lock_of(temporary), strict=True):
            if old.is_dir() and not path.exists():
                _move(old, path)
            for folder in (temporary, old):
                shutil.rmtree(folder, ignore_errors=True)


def _swap(new: Path, path: Path) -> None:
    """Move folder `new` to `path`, keeping what is there until the move is done."""
    if not path.exists():
        _move(new, path)
        _sync_folder(path.parent)
        return
    old = new.with_suffix(_ASIDE)
    _move(path, old)
    try:
        _move(new, path)
    except OSError:
        _move(old, path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Give `source` the name `target`, in one step; what another program holds only for a moment is waited for."""
    patience = time.monotonic() + _HELD_SECONDS
    while True:
        try:
            os.replace(source, target)
        except OSError as error:
            if getattr(error, "winerror", None) not in _HELD or time.monotonic() >= patience:
                raise
            time.sleep(_HELD_POLL_SECONDS)
        else:
            return


def _refuse_foreign(path: Path) -> None:
    """Raise when `path` holds anything but an empty folder or a bundle."""
    if not path.exists():
        return
    if not path.is_dir():
        raise PerfusionError(f"{path} is a file, expected a folder or nothing. Choose another output.")
    try:
        ours = (path / _MANIFEST).is_file() or not any(path.iterdir())
    except OSError as error:
        raise PerfusionError(f"{path} cannot be read: {_reason(error)}.") from error
    if not ours:
        raise PerfusionError(
            f"{path} holds files but no {_MANIFEST}, so it was not made by this program and will not be "
            "replaced. Choose another output or empty the folder."
        )


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, where the system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders, and a folder may be writable without being readable
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse this; the file itself is synced
        pass
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn the operating system's errors about `path` into a sentence; errors about other files pass."""
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if error.filename is not None else path
        ours = named == path or (named.name and named.with_suffix(_PARTIAL) == temporary)
        if not ours and named not in path.parents and temporary not in named.parents:
            raise
        where = f"{named}: " if named in path.parents else ""
        advice = _advice(error, named)
        raise PerfusionError(f"{path} cannot be written: {where}{_reason(error)}. {advice}.") from error


def _advice(error: OSError, named: Path) -> str:
    """What to do about the operating system's error with the file `named`."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return "Free some space or choose another output"
    if sys.platform == "win32" and isinstance(error, FileNotFoundError) and len(str(named)) > _WINDOWS_PATH:
        return (
            f"Its path has {len(str(named))} characters and Windows takes {_WINDOWS_PATH} unless long paths are "
            "enabled: choose a folder with a shorter path, or enable them"
        )
    if getattr(error, "winerror", None) in _HELD:
        return (
            "Another program may have it open, perhaps one that draws with it: close that one, or choose another "
            "output in a folder that you may write to"
        )
    return "Choose an output in a folder that can be written to"


def _reason(error: OSError) -> str:
    """The operating system's own words, without the number and the path."""
    return (error.strerror or str(error)).lower()
