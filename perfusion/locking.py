"""One process at a time: a lock that the system lets go of when its holder dies, however it dies."""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from perfusion.errors import PerfusionError

__all__ = ["HeldError", "NoLocksError", "lock"]

logger = logging.getLogger(__name__)

_MOST_TRIES = (
    1000  # a lock file that was removed as often under our hands is one whose file system mixes up files
)


class HeldError(PerfusionError):
    """Somebody else has the lock.

    Attributes:
        pid: the process that has it; None where it has not said so yet.
    """

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(
            f"{path} is held by another process ({pid or 'unknown'}). Wait for it, or stop it and try again."
        )
        self.path, self.pid = path, pid


class NoLocksError(PerfusionError):
    """The file system cannot say who holds a file."""


@contextmanager
def lock(path: Path, *, strict: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that exists, for the length of a with block.

    The file carries the holder's process id and is removed at the end. One that a dead process left is taken over: the
    lock is the system's, on the open file, and ends with the process. On a file system without locks the block runs
    with a warning, or, where `strict`, not at all.

    Raises:
        HeldError: another process, or another with block of this one, holds it.
        NoLocksError: `strict`, and the file system has no locks.
        OSError: the file cannot be made.
    """
    try:
        descriptor = _acquire(path)
    except NoLocksError as error:
        if strict:
            _remove(path)
            raise
        logger.warning("%s", error)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        # While it is held, so that nobody else's is removed. Windows removes no open file, hence not the next holder's
        if sys.platform != "win32":
            _remove(path)
        os.close(descriptor)
        if sys.platform == "win32":
            _remove(path)


def _acquire(path: Path) -> int:
    """The lock file, opened and locked."""
    for _ in range(_MOST_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _try(path, descriptor):
                raise HeldError(path, _holder(path))
            if _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise _no_locks(path)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one at `path`: the holder before may have removed it while we were locking it.

    Windows removes no open file, and on network drives there its two ways to tell files apart disagree.
    """
    if sys.platform == "win32":
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _no_locks(path: Path) -> NoLocksError:
    return NoLocksError(
        f"The file system of {path.parent} has no locks: see yourself that no other process writes there."
    )


def _holder(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # it is about to write its number, or has just finished
        return None


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


if sys.platform == "win32":
    import msvcrt

    def _try(path: Path, descriptor: int) -> bool:
        """Lock a byte far behind the number, which others may read."""
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _try(path: Path, descriptor: int) -> bool:
        """Lock the open file. Raises `NoLocksError` where the file system has no such thing."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise _no_locks(path) from error
        return True
