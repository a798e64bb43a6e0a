"""Files and folders that are whole or not there."""

import errno
import hashlib
import os

import pytest

from perfusion.errors import PerfusionError
from perfusion.files import sha256_of, writing, writing_folder


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
    rename, calls = os.rename, []

    def second_fails(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(destination))
        rename(source, destination)

    monkeypatch.setattr(os, "rename", second_fails)
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
