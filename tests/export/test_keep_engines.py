"""What becomes of a bundle's engines when it is exported anew: those of the same graphs are not built again."""

import errno
import os
import shutil
from dataclasses import asdict

import pytest

from perfusion.bundle.facts import graph_facts
from perfusion.bundle.reader import read_bundle
from perfusion.errors import ExportError
from perfusion.export import export_bundle
from perfusion.export.keep_engines import keep_engines
from perfusion.tensorrt.build import BuildOptions, Built
from perfusion.tensorrt.engine_store import find_engine, store_engine
from perfusion.tensorrt.keys import EngineKey


def store(bundle, graph, **fields):
    """An engine of a graph of the bundle, its plan some bytes: the cache does not look inside."""
    whole = read_bundle(bundle, verify=False)
    values = {
        "graph": graph,
        "graph_sha256": graph_facts(whole)[graph].sha256,
        "flavour": "trt",
        "version": "10.3.0",
        "platform": "linux-aarch64",
        "target": "sm87",
        "driver": 12,
        "precision": whole.precision,
        "shape_ranges": ({"batch": (2, 2, 2)},),
        "options": asdict(BuildOptions()),
    }
    key = EngineKey(**(values | fields))
    built = Built(engine=memoryview(graph.encode() * 99), inputs={}, outputs={}, timing=None)
    return store_engine(bundle, key, built, {})


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported.folder, tmp_path / "bundle")


def test_an_export_of_the_same_graphs_keeps_their_engines_and_the_builders_timings(
    fast_export, toy_model, bundle
):
    engines = [store(bundle, name) for name in ("unet", "vae_decoder")]
    engines[0].file.with_suffix(".jit").write_bytes(b"compiled on the card")
    (engines[0].file.parent / "timing-10.3.0.cache").write_bytes(b"timings")
    (bundle / "letter.txt").write_text("dear reader")
    before = files_below(bundle)
    manifest = export_bundle(toy_model, bundle, resolution=64).manifest
    assert files_below(bundle) == before - {"letter.txt"}
    assert not any(name.startswith("engines") for name in manifest["files"])
    for engine in engines:
        assert find_engine(bundle, engine.key.graph, engine.key).engine == engine  # its checksum is right too


def test_engines_of_other_graphs_and_of_other_precisions_are_not_kept(bundle, tmp_path):
    old = shutil.copytree(bundle, tmp_path / "old")
    kept = store(old, "unet")
    store(old, "text_encoder", graph_sha256="ab" * 32)
    store(old, "vae_decoder", precision="fp16")
    plan_only = store(old, "vae_encoder").file
    plan_only.unlink()
    assert keep_engines(old, bundle) == [kept.file.relative_to(old)]
    names = {path for path in files_below(bundle) if path.startswith("engines/")}
    assert names == {f"engines/trt-sm87/{kept.file.stem}.{ending}" for ending in ("engine", "json")}


def test_a_bundle_without_engines_and_no_bundle_at_all_leave_nothing(bundle, tmp_path):
    before = files_below(bundle)
    assert keep_engines(tmp_path / "nothing", bundle) == []
    assert keep_engines(shutil.copytree(bundle, tmp_path / "old"), bundle) == []
    assert files_below(bundle) == before


def test_where_a_file_cannot_have_two_names_it_is_copied(bundle, tmp_path, monkeypatch):
    old = shutil.copytree(bundle, tmp_path / "old")
    engine = store(old, "unet")

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert keep_engines(old, bundle) == [engine.file.relative_to(old)]
    shutil.rmtree(old)
    found = find_engine(bundle, "unet", engine.key).engine
    assert found is not None
    assert found.sha256 == engine.sha256


def test_a_failed_export_leaves_the_engines_where_they_were(fast_export, toy_model, bundle):
    engine = store(bundle, "unet")
    with pytest.raises(ExportError):
        export_bundle(toy_model, bundle, tolerance=0)
    assert find_engine(bundle, "unet", engine.key).engine == engine
