"""Results are published last things last, in a folder and on other file systems alike."""

from __future__ import annotations

import json

import pytest

from perfusion.errors import TrainingError
from perfusion.fleet.result_store import Manifest, ResultStore

MANIFEST = Manifest(
    name="shop/cat.safetensors", id="1" * 64, sha256="2" * 64, worker="a:1", facts={"loss": 0.5, "steps": 3}
)


@pytest.fixture(params=["folder", "file://", "memory://"])
def store(request, tmp_path):
    where = {
        "folder": str(tmp_path / "out"),
        "file://": f"file://{tmp_path}/out",
        "memory://": f"memory://{tmp_path.name}",
    }
    return ResultStore(where[request.param])


def publish(store):
    concept = store.workplace(MANIFEST.name, MANIFEST.id)
    concept.parent.mkdir(parents=True, exist_ok=True)
    concept.write_bytes(b"concept")
    store.claim(MANIFEST.name, MANIFEST.id)
    store.publish(MANIFEST, concept.parent, [concept])
    return concept


def test_a_manifest_comes_back_and_ends_the_claim(store, monkeypatch, tmp_path):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    assert store.manifest(MANIFEST.name) is None
    publish(store)
    assert ResultStore(store.url).manifest(MANIFEST.name) == MANIFEST
    assert store.claimant(MANIFEST.name) == ""


def test_without_its_concept_a_manifest_counts_for_nothing(store, monkeypatch, tmp_path):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    publish(store)
    store._files.rm_file(store._path(MANIFEST.name))
    assert store.manifest(MANIFEST.name) is None


def test_a_claimed_file_without_manifest_is_ours_and_another_is_not(store, monkeypatch, tmp_path):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    publish(store)
    store._files.rm_file(store._path(f"{MANIFEST.name}.json"))
    with pytest.raises(TrainingError, match="Move it away"):
        store.refuse_foreign(MANIFEST.name)
    store.claim(MANIFEST.name, MANIFEST.id)
    store.refuse_foreign(MANIFEST.name)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", json.dumps({"format": 2}), json.dumps({"format": 1, "name": "x"})]
)
def test_what_is_no_manifest_is_said_to_be_none(store, text):
    store._write(f"{MANIFEST.name}.json", text)
    with pytest.raises(TrainingError, match="is no manifest of a training"):
        store.manifest(MANIFEST.name)


def test_a_place_that_nothing_opens_is_refused():
    with pytest.raises(TrainingError, match="cannot be opened"):
        ResultStore("carrier-pigeon://loft")
