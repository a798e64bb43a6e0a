"""The cache cannot go stale, and survives what happens to files and processes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from perfusion.commands.inspect import _engines
from perfusion.errors import PerfusionError
from perfusion.files import writing
from perfusion.locking import lock
from perfusion.tensorrt import engine_store as cache
from perfusion.tensorrt.build import BuildOptions
from perfusion.tensorrt.engine_store import (
    Engine,
    building,
    engine_folder,
    find_engine,
    list_engines,
    prune_engines,
    store_engine,
)
from perfusion.tensorrt.keys import EngineKey, platform_of
from perfusion.tensorrt.targets import TARGETS

WORKER = Path(__file__).with_name("build_worker.py")
OTHER: dict[str, Any] = {
    "graph_sha256": "cd" * 32,
    "flavour": "trt-rtx",
    "version": "10.3.1",
    "platform": "windows-x86_64",
    "target": "sm86",
    "driver": 13,
    "precision": "fp32",
    "shape_ranges": ({"batch": (2, 2, 2), "height": (96, 96, 96)},),
    "options": {"workspace": 1 << 30, "optimization_level": 5, "tf32": True},
}
NAMED = {
    "graph_sha256": "the graph's checksum is cdcdcdcdcdcd…, expected abababababab…",
    "flavour": "the kind of TensorRT is trt-rtx, expected trt",
    "version": "TensorRT's version is 10.3.1, expected 10.3.0",
    "platform": "the system and processor is windows-x86_64, expected linux-aarch64",
    "target": "the GPU is sm86, expected sm87",
    "driver": "the driver's CUDA is 13, expected 12",
    "precision": "the precision is fp32, expected fp16",
    "shape_ranges": "the sizes are batch 2, height 96, expected batch 2/4, height 64",
    "options": "the builder's options are optimization_level 5, workspace 1073741824, expected optimization_level none",
}


def test_what_was_stored_is_found_whole(tmp_path, key, built):
    stored = store_engine(tmp_path, key, built, {"seconds": 1.5})
    found = find_engine(tmp_path, "unet", key).engine
    assert found == stored
    assert found.file.read_bytes() == built.engine
    assert found.file.parent == tmp_path / "engines" / "trt-sm87"
    assert json.loads(found.file.with_suffix(".json").read_text())["built"] == {"seconds": 1.5}


def test_all_whole_engines_are_listed_and_inspect_names_them(tmp_path, key, built, make_key):
    whole = store_engine(tmp_path, key, built, {})
    cut = store_engine(tmp_path, make_key(target="sm86", flavour="trt-rtx"), built, {})
    cut.file.write_bytes(b"")
    assert list_engines(tmp_path) == [whole]
    assert list_engines(tmp_path / "nowhere") == []
    assert _engines(tmp_path) == {"trt-sm87": ["unet"]}


@pytest.mark.parametrize("name", OTHER)
def test_an_engine_whose_key_differs_in_any_one_field_is_not_taken_and_the_field_is_named(
    tmp_path, built, name, make_key
):
    store_engine(tmp_path, make_key(**{name: OTHER[name]}), built, {})
    search = find_engine(tmp_path, "unet", make_key())
    assert search.engine is None
    (reason,) = search.reasons
    assert "expected" in reason and reason.count(";") == 0
    assert NAMED[name] in reason


def test_every_field_of_a_key_is_among_those_tested_above():
    assert {field.name for field in fields(EngineKey)} == {*OTHER, "graph"}


def test_the_digest_changes_with_every_field_and_with_nothing_else(make_key):
    digests = {make_key(**{name: value}).digest for name, value in OTHER.items()} | {make_key().digest}
    assert len(digests) == len(OTHER) + 1
    turned = make_key(shape_ranges=tuple(dict(reversed(one.items())) for one in make_key().shape_ranges))
    assert turned.digest == make_key().digest
    assert EngineKey.from_json(json.loads(json.dumps(make_key().to_json()))) == make_key()


def test_the_key_covers_every_option_of_the_builder():
    assert set(OTHER["options"]) == {field.name for field in fields(BuildOptions)}


def test_an_engine_of_the_first_format_that_says_no_platform_is_not_taken(tmp_path, key, built):
    manifest = store_engine(tmp_path, key, built, {}).file.with_suffix(".json")
    values = json.loads(manifest.read_text())
    del values["key"]["platform"]
    for version, reason in ((1, "another format version"), (2, "cannot be read")):
        manifest.write_text(json.dumps(values | {"format_version": version}))
        search = find_engine(tmp_path, "unet", {"flavour": "trt"})
        assert search.engine is None
        assert reason in search.explain()


@pytest.mark.parametrize(
    ("system", "machine", "platform"),
    [
        ("linux", "x86_64", "linux-x86_64"),
        ("linux", "aarch64", "linux-aarch64"),
        ("win32", "AMD64", "windows-x86_64"),
        ("darwin", "arm64", "darwin-aarch64"),
    ],
)
def test_engines_of_the_full_tensorrt_belong_to_a_system_and_a_processor(
    monkeypatch, system, machine, platform
):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert platform_of("trt") == platform
    assert platform_of("trt-rtx") is None


def test_the_engine_of_one_text_encoder_is_not_the_others(tmp_path, built, make_key):
    store_engine(tmp_path, make_key(graph="text_encoder_2"), built, {})
    assert find_engine(tmp_path, "text_encoder", {}).engine is None
    assert find_engine(tmp_path, "text_encoder_2", {}).engine is not None


# --- what a runtime asks for


def test_a_gpu_takes_its_own_engine_before_one_for_several_and_that_before_a_portable_one(
    tmp_path, built, make_key
):
    wanted = {"flavour": "trt-rtx", "target": "sm89"}
    for target in ("portable", "sm86+sm89", "sm89"):
        store_engine(tmp_path, make_key(flavour="trt-rtx", target=target), built, {})
        engine = find_engine(tmp_path, "unet", wanted).engine
        assert engine is not None and engine.key.target == target


@pytest.mark.parametrize("gpu", TARGETS)
def test_a_portable_engine_serves_the_gpus_that_its_makers_matrix_names(tmp_path, built, gpu, make_key):
    store_engine(tmp_path, make_key(flavour="trt-rtx", target="portable"), built, {})
    served = find_engine(tmp_path, "unet", {"target": gpu}).engine is not None
    assert served is (gpu in ("sm86", "sm89", "sm120"))


def test_an_engine_is_found_by_the_sizes_it_takes(tmp_path, key, built):
    store_engine(tmp_path, key, built, {})
    engine = find_engine(tmp_path, "unet", {}, sizes={"height": 64, "batch": 4}).engine
    assert engine is not None
    assert [engine.range_for(batch=rows) for rows in (1, 2, 3, 4)] == [None, 0, None, 1]
    search = find_engine(tmp_path, "unet", {}, sizes={"height": 96})
    assert search.engine is None
    assert "other sizes than height 96" in search.explain()


def test_where_nothing_was_built_the_explanation_says_so(tmp_path):
    assert find_engine(tmp_path, "unet", {}).explain() == "none has been built"


# --- damaged files


def damage(engine: Engine, how: str) -> None:
    plan, manifest = engine.file, engine.file.with_suffix(".json")
    content = bytearray(plan.read_bytes())
    if how == "cut":
        plan.write_bytes(content[:-1])
    elif how == "altered":
        content[len(content) // 2] ^= 1
        plan.write_bytes(content)
    elif how == "missing":
        plan.unlink()
    elif how == "empty description":
        manifest.write_bytes(b"")
    elif how == "description of another engine":
        values = json.loads(manifest.read_text())
        values["key"]["version"] = "11.4.0"
        manifest.write_text(json.dumps(values))
    elif how == "description of the future":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 3}))
    elif how == "description that is no object":
        manifest.write_text("[1, 2]")
    elif how == "description with a size that is none":
        manifest.write_text(manifest.read_text().replace(f'"bytes": {engine.bytes}', '"bytes": 1e999'))


DAMAGES = {
    "cut": "cut or changed",
    "altered": "checksum",
    "missing": "missing",
    "empty description": "cannot be read",
    "description of another engine": "another engine's",
    "description of the future": "format version",
    "description that is no object": "cannot be read",
    "description with a size that is none": "cannot be read",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_engine_is_not_taken_is_explained_and_can_be_written_again(tmp_path, key, built, how):
    damage(store_engine(tmp_path, key, built, {}), how)
    search = find_engine(tmp_path, "unet", key)
    assert search.engine is None
    assert DAMAGES[how] in search.explain()
    store_engine(tmp_path, key, built, {})
    assert find_engine(tmp_path, "unet", key).engine is not None


def test_a_plan_that_was_written_wrongly_is_found(tmp_path, key, built, monkeypatch):
    @contextmanager
    def flips_a_bit(path, mode="wb"):
        with writing(path, mode) as file:
            yield file
        if path.suffix == ".engine":
            content = path.read_bytes()
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])

    monkeypatch.setattr(cache, "writing", flips_a_bit)
    store_engine(tmp_path, key, built, {})
    assert "does not have its checksum" in find_engine(tmp_path, "unet", key).explain()


def test_no_garbled_description_is_more_than_a_reason(tmp_path, key, built):
    manifest = store_engine(tmp_path, key, built, {}).file.with_suffix(".json")
    whole = manifest.read_bytes()
    random = Random(0)
    for _ in range(300):
        garbled = bytearray(whole)
        for _ in range(random.choice((1, 3, 30))):
            at = random.randrange(len(garbled))
            garbled[at : at + random.choice((0, 1, 5))] = random.choice(
                (b"[", b"null", b"-9e999", b"{}", b"\xff")
            )
        manifest.write_bytes(garbled)
        search = find_engine(tmp_path, "unet", key)
        assert search.engine is not None or search.reasons


def test_a_full_disk_leaves_no_engine_and_a_sentence(tmp_path, key, built, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PerfusionError, match="no space left"):
        store_engine(tmp_path, key, built, {})
    monkeypatch.undo()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, key):
    tmp_path.chmod(0o500)
    with pytest.raises(PerfusionError, match="cannot be written"), building(tmp_path, key):
        pass


def test_a_file_in_the_place_of_the_folder_is_a_sentence(tmp_path, key):
    (tmp_path / "engines").write_text("")
    with pytest.raises(PerfusionError, match="cannot be written"), building(tmp_path, key):
        pass


# --- processes


def start(folder: Path, **options: str) -> subprocess.Popen:
    arguments = [f"{name}={value}" for name, value in options.items()]
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), *arguments], stdout=subprocess.PIPE, text=True
    )


def wait_for(path: Path, pattern: str) -> None:
    end = time.monotonic() + 30
    while not any(path.glob(pattern)):
        assert time.monotonic() < end, f"no {pattern} in {path}"
        time.sleep(0.01)


def test_two_processes_that_want_one_engine_build_it_once_and_both_have_it(toy):
    workers = [start(toy, slow="0.5") for _ in range(2)]
    answers = [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(answer["built"] for answer in answers) == [False, True]
    assert len({answer["sha256"] for answer in answers}) == 1
    assert any(answer["waited"] for answer in answers)


@pytest.mark.parametrize("moment", ["building", "writing"])
def test_a_build_that_is_killed_leaves_nothing_that_looks_finished_and_the_next_one_succeeds(toy, moment):
    worker = start(toy, stop=moment)
    wait_for(toy, f"stopped-{moment}")
    worker.send_signal(signal.SIGKILL) if hasattr(signal, "SIGKILL") else worker.kill()
    worker.communicate(timeout=30)
    left = [path.name for path in (toy / "engines").rglob("*") if path.suffix in (".engine", ".json")]
    assert left == []
    assert "none has been built" in find_engine(toy, "text_encoder", {}).explain()
    again = json.loads(start(toy).communicate(timeout=60)[0])
    assert again["built"]
    assert find_engine(toy, "text_encoder", {}).engine is not None
    assert not list((toy / "engines").rglob("*.partial"))


def test_the_lock_ends_with_its_block(tmp_path, key):
    waits = []
    for _ in range(2):
        with building(tmp_path, key, waiting=lambda: waits.append(1)):
            pass
    assert waits == []


# --- pruning


def test_pruning_removes_what_is_not_wanted_or_damaged_and_nothing_else(tmp_path, built, make_key):
    keep = store_engine(tmp_path, make_key(), built, {})
    old = store_engine(tmp_path, make_key(version="10.3.1"), built, {})
    broken = store_engine(tmp_path, make_key(graph="vae_decoder"), built, {})
    damage(broken, "altered")
    (keep.file.parent / f".{keep.key.name}.engine.0123abcd.partial").write_bytes(b"half")
    (keep.file.parent / "timing-10.3.0.cache").write_bytes(b"times")
    removed = prune_engines(tmp_path, lambda engine: engine.key.version == "10.3.0")
    assert sorted(removed) == sorted([old.file, broken.file])
    assert sorted(path.name for path in keep.file.parent.iterdir()) == sorted(
        ["timing-10.3.0.cache", keep.file.name, keep.file.with_suffix(".json").name]
    )


def test_pruning_leaves_alone_what_is_being_built(tmp_path, built, make_key):
    engine = store_engine(tmp_path, make_key(), built, {})
    with lock(engine_folder(tmp_path, "trt", "sm87") / f".{engine.key.name}.lock"):
        assert prune_engines(tmp_path, lambda _: False) == []
    assert prune_engines(tmp_path, lambda _: False) == [engine.file]


def test_old_engines_stay_until_pruned(tmp_path, key, built):
    old = store_engine(tmp_path, replace(key, version="10.3.1"), built, {})
    store_engine(tmp_path, key, built, {})
    assert find_engine(tmp_path, "unet", old.key).engine == old
