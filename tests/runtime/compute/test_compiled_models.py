"""Compiled graphs on the disk: whole or not at all, no more than the bound, and never in the way of a picture."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from perfusion.runtime.compute.compiled_models import CompiledModels

ROOT = Path(__file__).parents[3]
KEY = {"graph": ["abc", 5, 7], "shapes": {"sample": [2, 4, 8, 8]}, "openvino": "1"}
BLOB = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "new" / "openvino"


@pytest.fixture
def store(folder):
    return CompiledModels(folder)


def test_what_was_stored_is_loaded_by_another_process_of_the_same_key(store, folder):
    assert store.load(KEY) is None
    store.store(KEY, BLOB)
    assert bytes(CompiledModels(folder).load(dict(reversed(KEY.items())))) == BLOB


@pytest.mark.parametrize(
    "change", [{"graph": ["abc", 5, 8]}, {"shapes": {"sample": [2, 4, 8, 16]}}, {"openvino": "2"}]
)
def test_any_part_of_the_key_decides(store, change):
    store.store(KEY, BLOB)
    assert store.load({**KEY, **change}) is None
    assert store.load(KEY) is not None


@pytest.mark.parametrize("place", [0, 1, 4096, 5000, -1])
def test_a_damaged_file_is_told_of_and_removed(store, folder, caplog, place):
    store.store(KEY, BLOB)
    (path,) = folder.iterdir()
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    assert store.load(KEY) is None
    assert f"{path} is not used and its graph is compiled again: " in caplog.text
    assert not path.exists()
    store.store(KEY, BLOB)
    assert bytes(store.load(KEY)) == BLOB


@pytest.mark.parametrize("length", [0, 10, 4096, 5000])
def test_a_file_that_was_cut_is_removed(store, folder, length):
    store.store(KEY, BLOB)
    (path,) = folder.iterdir()
    os.truncate(path, length)
    assert store.load(KEY) is None
    assert not path.exists()


def test_a_file_under_another_ones_name_is_not_taken(store, folder):
    store.store(KEY, BLOB)
    other = {**KEY, "openvino": "2"}
    store.store(other, BLOB)
    first, second = store._path(KEY), store._path(other)
    shutil.copy(first, second)
    assert store.load(other) is None
    assert store.load(KEY) is not None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no such owners here")
def test_what_another_user_put_there_is_not_taken(store, monkeypatch, caplog):
    store.store(KEY, BLOB)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert store.load(KEY) is None
    assert "it belongs to another user" in caplog.text


def test_those_that_were_not_used_the_longest_go_first(folder):
    size = len(BLOB) + 4096
    store = CompiledModels(folder, most_bytes=3 * size)
    keys = [{**KEY, "openvino": str(number)} for number in range(5)]
    for age, key in enumerate(keys[:3]):
        store.store(key, BLOB)
        os.utime(store._path(key), (age, age))
    store.load(keys[0])
    for key in keys[3:]:
        store.store(key, BLOB)
    assert [store.load(key) is not None for key in keys] == [True, False, False, True, True]


def test_what_is_larger_than_the_bound_is_not_kept(folder):
    store = CompiledModels(folder, most_bytes=len(BLOB) - 1)
    store.store(KEY, BLOB)
    assert not folder.exists()


def test_a_disk_that_would_be_filled_is_left_alone(store, folder, monkeypatch):
    usage = shutil.disk_usage(folder.parents[1])._replace(free=2 * len(BLOB) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    store.store(KEY, BLOB)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_told_of_once_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    store = CompiledModels(tmp_path / "file" / "openvino")
    store.store(KEY, BLOB)
    assert "so the next start compiles again" in caplog.text
    assert store.load(KEY) is None


def test_it_lies_in_the_cache_folder_of_this_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    CompiledModels().store(KEY, BLOB)
    (path,) = (tmp_path / "openvino").iterdir()
    assert json.loads(path.read_bytes()[:4096])["key"] == KEY
    np.testing.assert_array_equal(CompiledModels().load(KEY), np.frombuffer(BLOB, np.uint8))


WRITER = """
import os, sys, time
from pathlib import Path
from perfusion.runtime.compute.compiled_models import CompiledModels
store = CompiledModels(Path(sys.argv[1]))
os.fsync = lambda descriptor: (print("half", flush=True), time.sleep(60))
with store.turn(%r):
    store.store(%r, bytes(1 << 20))
"""


def test_what_a_killed_process_was_writing_is_not_taken_and_goes(store, folder):
    writer = [sys.executable, "-c", WRITER % (KEY, KEY), str(folder)]
    with subprocess.Popen(writer, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    (partial,) = folder.glob(".*.partial")
    assert store.load(KEY) is None
    with store.turn(KEY):  # a dead process's lock holds nobody up
        store.store(KEY, BLOB)
    assert bytes(store.load(KEY)) == BLOB
    assert partial.exists()  # somebody may be writing it, for all that is known
    os.utime(partial, (1, 1))
    store.store({**KEY, "openvino": "2"}, BLOB)
    assert {path.suffix for path in folder.iterdir()} == {".compiled"}


def test_who_comes_while_another_compiles_waits_is_told_and_finds_the_result(store, caplog):
    caplog.set_level(logging.INFO, "perfusion.waits")
    results = []

    def wait():
        with store.turn(KEY):
            results.append(store.load(KEY))

    with store.turn(KEY):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.5)
        assert results == []
        with store.turn({**KEY, "openvino": "2"}):  # another graph waits for nobody
            store.store(KEY, BLOB)
    thread.join(10)
    assert [bytes(blob) for blob in results] == [BLOB]
    assert caplog.text.count(f"waiting for process {os.getpid()}, which compiles the same graph") == 1


def test_without_a_folder_for_a_lock_each_compiles_for_itself(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with CompiledModels(tmp_path / "file").turn(KEY):
        pass
