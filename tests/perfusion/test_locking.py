"""A lock is one process's, and nobody's when that process is gone."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perfusion.errors import PerfusionError
from perfusion.locking import HeldError, NoLocksError, lock

HOLD = """
import sys, time
from pathlib import Path
from perfusion.locking import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_is_held_once_names_its_holder_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(HeldError, match=f"held by another process .{os.getpid()}") as refused, lock(path):
            pass
        assert refused.value.pid == os.getpid()
        assert isinstance(refused.value, PerfusionError)
    assert not path.exists()
    with lock(path):
        assert path.exists()


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock(tmp_path / "lock"):
        raise KeyError
    with lock(tmp_path / "lock"):
        pass


def test_another_process_is_kept_out_and_its_lock_ends_with_it_however_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(HeldError) as refused, lock(path):
            pass
        assert refused.value.pid == other.pid
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert path.read_text() == f"{other.pid}\n", "it had no time to clear up"
    with lock(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_file_of_a_dead_process_is_taken_over_whatever_it_says(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for content in ("1\n", "not a number", ""):  # process 1 lives, and does not hold it
        path.write_text(content)
        with lock(path):
            assert path.read_text() == f"{os.getpid()}\n"


def test_of_many_at_once_one_is_inside_at_any_time(tmp_path: Path) -> None:
    """Twelve processes that hold, remove and make the file anew, as fast as they can."""
    path, inside = tmp_path / "lock", tmp_path / "inside"
    children = []
    for _ in range(12):
        child = os.fork()
        if not child:
            code, ends = 0, time.monotonic() + 0.5
            while time.monotonic() < ends and not code:
                try:
                    with lock(path):
                        try:
                            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                        except FileExistsError:
                            code = 1
                        else:
                            inside.unlink()
                except HeldError:
                    pass
            os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 12


def test_a_file_system_without_locks_gets_a_warning_or_where_it_matters_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with lock(tmp_path / "lock"):
        assert f"The file system of {tmp_path} has no locks" in caplog.text
    with pytest.raises(NoLocksError, match="has no locks"), lock(tmp_path / "lock", strict=True):
        pytest.fail("the block must not run")
    assert not os.listdir(tmp_path)


def test_a_file_system_that_mixes_up_files_is_one_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on network drives, where an open file and its name may be told to be two."""
    monkeypatch.setattr(os.path, "samestat", lambda first, second: False)
    with pytest.raises(NoLocksError), lock(tmp_path / "lock", strict=True):
        pytest.fail("the block must not run")
