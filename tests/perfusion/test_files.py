"""Files and folders that are whole or not there."""

import errno
import hashlib
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perfusion import files
from perfusion.errors import PerfusionError
from perfusion.files import cache_folder, sha256_of, writing, writing_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mode, content", [("wb", b"\x00\xff"), ("w", "größe\n")])
def test_a_file_appears_with_its_content_in_a_folder_made_for_it(tmp_path, mode, content):
    path = tmp_path / "new" / "a.bin"
    with writing(path, mode) as file:
        file.write(content)
        assert not path.exists()
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(path.parent) == ["a.bin"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), writing(path) as file:
            file.write(b"half")
            raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_reader_of_the_old_file_keeps_it(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        with writing(path) as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a.bin")
    with writing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a.bin").read_bytes() == b"new"


def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(
            PerfusionError, match=r"a\.bin cannot be written: no space left on device\. Free some space"
        ),
        writing(tmp_path / "a.bin") as file,
    ):
        file.write(b"x")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "a.bin", tmp_path / "file" / "folder" / "a.bin"):
        with (
            pytest.raises(PerfusionError, match=r"cannot be written: .*Choose an output in a folder"),
            writing(path),
        ):
            pass


@pytest.mark.parametrize("path", ["/dev/null", "/tmp"])
def test_what_is_no_ordinary_file_is_not_replaced(path):
    with pytest.raises(PerfusionError, match=f"{path} is not an ordinary file"), writing(path):
        pass
    assert not os.path.isfile(path)


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), writing(tmp_path / "a.bin"):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(FileNotFoundError, match="missing"), writing_folder(tmp_path / "folder"):
        (tmp_path / "missing").read_bytes()
    assert names(tmp_path) == []


def test_an_unknown_mode_is_our_own_mistake(tmp_path):
    with pytest.raises(ValueError, match="mode is 'a'"), writing(tmp_path / "a.bin", "a"):
        pass


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "bundle"
    with writing_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_bytes(b"1")
        assert not target.exists()
    assert (target / "inner" / "a").read_bytes() == b"1"
    assert names(target.parent) == ["bundle"]


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "bundle.json").write_text("old")
    with pytest.raises(RuntimeError), writing_folder(target) as folder:
        (folder / "bundle.json").write_text("half")
        raise RuntimeError
    assert (target / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_a_bundle_and_an_empty_folder_are_replaced_entirely(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    for content in ("first", "second"):
        with writing_folder(target) as folder:
            (folder / "bundle.json").write_text(content)
            (folder / content).touch()
    assert names(target) == ["bundle.json", "second"]
    assert names(tmp_path) == ["bundle"]


def test_a_folder_with_someone_elses_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PerfusionError, match=r"holds files but no bundle\.json"), writing_folder(tmp_path):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["thesis.tex"]
    with (
        pytest.raises(PerfusionError, match="is a file, expected a folder"),
        writing_folder(tmp_path / "thesis.tex"),
    ):
        pytest.fail("the block must not run")


def test_files_that_come_while_a_folder_is_made_are_left_alone(tmp_path):
    target = tmp_path / "bundle"
    with (
        pytest.raises(PerfusionError, match=r"holds files but no bundle\.json"),
        writing_folder(target) as folder,
    ):
        (folder / "bundle.json").touch()
        target.mkdir()
        (target / "thesis.tex").touch()
    assert names(target) == ["thesis.tex"]
    assert names(tmp_path) == ["bundle"]


def test_a_folder_that_cannot_be_moved_gives_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "bundle.json").write_text("old")
    replace, calls = os.replace, []

    def second_fails(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(destination))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(PerfusionError, match="bundle cannot be written"), writing_folder(target) as folder:
        (folder / "bundle.json").write_text("new")
    assert (target / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 1])
def test_a_checksum_is_that_of_all_bytes(tmp_path, size):
    data = bytes(index % 251 for index in range(size))
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_a_checksum_of_nothing_is_told_in_a_sentence(tmp_path):
    with pytest.raises(PerfusionError, match="missing cannot be read: no such file or directory"):
        sha256_of(tmp_path / "missing")


# --- what killed processes leave

EXPORT = """
import sys
from pathlib import Path
from perfusion.files import writing_folder
with writing_folder(sys.argv[1]) as folder:
    (folder / "bundle.json").write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
"""


def begun(path: Path) -> subprocess.Popen:
    """A process that is in the middle of writing a folder, until its input is closed."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", EXPORT, str(path)], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_the_next_writer_clears_up_after_a_killed_one_and_leaves_one_that_works_alone(tmp_path):
    killed, working = begun(tmp_path / "bundle"), begun(tmp_path / "bundle")
    try:
        killed.kill()
        killed.communicate()
        assert len([name for name in names(tmp_path) if name.endswith(".partial")]) == 2
        with writing_folder(tmp_path / "bundle") as folder:
            (folder / "bundle.json").write_text("whole")
        (partial,) = (name for name in names(tmp_path) if name.endswith(".partial"))
        assert (tmp_path / partial / "bundle.json").read_text() == "half"
    finally:
        working.communicate()
    assert working.returncode == 0
    assert names(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "bundle.json").read_text() == "half"


def test_what_is_left_of_other_folders_and_what_only_looks_like_it_is_left_alone(tmp_path):
    others = [
        ".bundle2.01234567.partial",
        ".bundle.notes.txt",
        ".bundle.01234567.txt",
        "bundle.01234567.partial",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    with writing_folder(tmp_path / "bundle") as folder:
        (folder / "bundle.json").touch()
    assert names(tmp_path) == sorted([*others, "bundle"])


def test_a_folder_that_a_killed_process_had_moved_aside_is_put_back(tmp_path):
    for ending, content in (("partial", "new"), ("replaced", "old")):
        folder = tmp_path / f".bundle.01234567.{ending}"
        folder.mkdir()
        (folder / "bundle.json").write_text(content)
    (tmp_path / ".bundle.01234567.lock").write_text("1\n")
    with pytest.raises(RuntimeError), writing_folder(tmp_path / "bundle"):
        raise RuntimeError
    assert names(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "bundle.json").read_text() == "old"


def test_where_nobody_can_tell_who_holds_a_file_nothing_is_cleared_up(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".bundle.01234567.partial").mkdir()
    with writing_folder(tmp_path / "bundle") as folder:
        (folder / "bundle.json").touch()
    assert names(tmp_path) == [".bundle.01234567.partial", "bundle"]
    assert not caplog.records, "the folder is written all the same"


def test_folders_whose_long_names_begin_alike_are_told_apart(tmp_path):
    first, second = (tmp_path / ("bundle" * 9 + ending) for ending in ("1", "2"))
    left = files._beside(first).with_suffix(".replaced")
    left.mkdir()
    with writing_folder(second) as folder:
        (folder / "bundle.json").touch()
    assert left.is_dir()
    assert max(map(len, names(tmp_path))) <= 60


# --- Windows, imitated: its errors, its text mode, its folders


class WindowsError(PermissionError):
    """What Windows raises for a file that another program has open."""

    def __init__(self, path: Path, winerror: int) -> None:
        super().__init__(errno.EACCES, "The process cannot access the file", str(path))
        self.winerror = winerror


def held_for(monkeypatch, times, winerror):
    """Let the next moves fail, as while a virus scanner reads a new file."""
    replace, left = os.replace, [times]

    def move(source, target):
        if left[0] > 0:
            left[0] -= 1
            raise WindowsError(source, winerror)
        replace(source, target)

    monkeypatch.setattr(os, "replace", move)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("winerror", [5, 32])
def test_a_move_is_tried_again_while_another_program_has_the_file(tmp_path, monkeypatch, winerror):
    held_for(monkeypatch, 3, winerror)
    with writing(tmp_path / "a.bin") as file:
        file.write(b"new")
    held_for(monkeypatch, 3, winerror)
    with writing_folder(tmp_path / "bundle") as folder:
        (folder / "bundle.json").touch()
    assert names(tmp_path) == ["a.bin", "bundle"]


def test_a_file_that_stays_open_elsewhere_is_told_with_what_to_do(tmp_path, monkeypatch):
    held_for(monkeypatch, 10**9, 32)
    monkeypatch.setattr(files, "_HELD_SECONDS", 0.01)
    with pytest.raises(PerfusionError, match="Another program may have it open"), writing(tmp_path / "a.bin"):
        pass
    assert names(tmp_path) == []


def test_another_error_is_not_tried_again(tmp_path, monkeypatch):
    held_for(monkeypatch, 1, 1920)
    with pytest.raises(PerfusionError, match="Choose an output in a folder"), writing(tmp_path / "a.bin"):
        pass


def test_a_path_that_is_too_long_for_windows_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    path = tmp_path / ("x" * 240) / "a.bin"

    def not_found(source, target):
        raise FileNotFoundError(errno.ENOENT, "The system cannot find the path", str(source))

    monkeypatch.setattr(os, "replace", not_found)
    with (
        pytest.raises(PerfusionError, match="Windows takes 259 unless long paths are enabled"),
        writing(path),
    ):
        pass


def test_text_has_the_line_ends_that_were_written(tmp_path, windows_text):
    (tmp_path / "plain.txt").write_text("a\n")
    assert (tmp_path / "plain.txt").read_bytes() == b"a\r\n", "Windows' text mode is imitated"
    with writing(tmp_path / "a.txt", "w") as file:
        file.write("a\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"a\nb\n"


@pytest.mark.parametrize(
    ("platform", "variable"),
    [("linux", "XDG_CACHE_HOME"), ("win32", "LOCALAPPDATA"), ("darwin", "XDG_CACHE_HOME")],
)
def test_the_cache_lies_where_the_system_has_such_things(tmp_path, monkeypatch, platform, variable):
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("PERFUSION_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert cache_folder() == tmp_path / "perfusion-edge"
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_the_rule_of_held_files_holds_for_open_and_for_mapped_ones(tmp_path, held_files):
    for name in ("open", "mapped", "free"):
        (tmp_path / name).write_bytes(b"x")
    with open(tmp_path / "mapped", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with open(tmp_path / "open", "rb"):
        for name in ("open", "mapped"):
            with pytest.raises(PermissionError):
                (tmp_path / name).unlink()
            with pytest.raises(PermissionError):
                os.replace(tmp_path / "free", tmp_path / name)
        with pytest.raises(PermissionError):
            os.rename(tmp_path, tmp_path.with_name("moved"))
    mapped.close()
    os.replace(tmp_path / "free", tmp_path / "open")
    (tmp_path / "mapped").unlink()


def test_a_file_and_a_folder_are_written_over_old_ones_with_nothing_open(tmp_path, held_files):
    for _ in range(2):
        with writing(tmp_path / "a.bin") as file:
            file.write(b"x")
        with writing_folder(tmp_path / "bundle") as folder:
            (folder / "bundle.json").touch()
    assert names(tmp_path) == ["a.bin", "bundle"]
