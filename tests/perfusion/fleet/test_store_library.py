"""Any number of concepts lie in a store; a replica holds those that prompts name, and draws the newest of each."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from perfusion.errors import RequestError
from perfusion.fleet import store_library
from perfusion.fleet.result_store import Manifest, ResultStore
from perfusion.fleet.store_library import StoreLibrary
from perfusion.runtime import Runtime
from perfusion.serving.answers import StatusError

STEPS = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def concept_data(bundle, make_concept, tmp_path_factory):
    """Bytes of the file of a concept that fits the toy bundle, by its seed."""

    @cache
    def data(seed):
        concept = make_concept(
            text_dim=bundle.text_dim, width=bundle.unet.key_width, base=bundle.base,
            base_fingerprint=bundle.base_fingerprint, seed=seed,
        )  # fmt: skip
        path = tmp_path_factory.mktemp("concept") / "cat.safetensors"
        concept.save(path)
        return path.read_bytes()

    return data


@pytest.fixture
def runtime(bundle):
    with Runtime(bundle.folder, provider="cpu", threads=1, batch_size=4) as runtime:
        yield runtime


@pytest.fixture(params=["folder", "memory://"])
def store(request, tmp_path):
    return ResultStore(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}")


def put(store, name, data):
    store._files.makedirs(store._path(name.rpartition("/")[0] or "."), exist_ok=True)
    store._files.pipe_file(store._path(name), data)


def drawn(runtime, word):
    return np.asarray(runtime.generate(f"a {word} here", seed=3, **STEPS))


def expected(runtime, data):
    runtime.load_concept(data, token="<expected>")
    try:
        return drawn(runtime, "<expected>")
    finally:
        runtime.unload_concept("<expected>")


def test_a_prompt_loads_what_it_names_by_the_path_of_its_file(runtime, store, concept_data):
    put(store, "shop/cat.safetensors", concept_data(1))
    put(store, "cat.safetensors", concept_data(2))
    library = StoreLibrary(runtime, store)
    assert (
        library.words("a <shop/cat> and <lora:cat:0.8> <unknown>")
        == "a <shop/cat> and <lora:cat:0.8> <unknown>"
    )
    assert set(runtime.concepts) == {"<shop/cat>", "<cat>"}
    assert np.array_equal(drawn(runtime, "<shop/cat>"), expected(runtime, concept_data(1)))
    assert np.array_equal(drawn(runtime, "<cat>"), expected(runtime, concept_data(2)))
    assert not np.array_equal(drawn(runtime, "<cat>"), drawn(runtime, "<shop/cat>"))


def test_the_least_recently_used_leave_and_what_is_under_way_keeps_its_concept(
    runtime, tmp_path, concept_data
):
    store = ResultStore(str(tmp_path))
    for number in range(20):
        put(store, f"c{number}.safetensors", concept_data(number))
    library = StoreLibrary(runtime, store, most=16)
    alone = expected(runtime, concept_data(0))
    library.words("<c0>")
    job = runtime.submit("a <c0> here", seed=3, exact=True, **STEPS)
    for number in range(1, 20):
        library.words(f"<c{number}> beside <c1>")
    assert set(runtime.concepts) == {"<c1>", *(f"<c{number}>" for number in range(5, 20))}
    assert np.array_equal(np.asarray(job.result()), alone)
    library.words("<c0>")  # it comes again
    assert np.array_equal(drawn(runtime, "<c0>"), alone)


def test_another_file_of_the_name_is_drawn_once_it_is_looked_at_again(
    runtime, store, concept_data, monkeypatch
):
    put(store, "cat.safetensors", concept_data(1))
    library = StoreLibrary(runtime, store)
    library.words("<cat>")
    put(store, "cat.safetensors", concept_data(2))
    library.words("<cat>")
    assert np.array_equal(drawn(runtime, "<cat>"), expected(runtime, concept_data(1)))
    monkeypatch.setattr(store_library, "FRESH_SECONDS", 0)
    library.words("<cat>")
    assert np.array_equal(drawn(runtime, "<cat>"), expected(runtime, concept_data(2)))
    store._files.rm_file(store._path("cat.safetensors"))
    library.words("<cat>")
    assert not runtime.concepts


def test_what_its_manifest_does_not_name_is_not_drawn(runtime, store, concept_data, monkeypatch):
    monkeypatch.setattr(store_library, "FRESH_SECONDS", 0)
    library = StoreLibrary(runtime, store)
    put(store, "cat.safetensors", concept_data(1))
    store.claim("cat.safetensors", "1" * 64)  # a worker that is about to write its manifest
    with pytest.raises(StatusError, match="is being written") as refusal:
        library.words("<cat>")
    assert refusal.value.status == 503 and refusal.value.retry_after
    manifest = Manifest(name="cat.safetensors", id="1" * 64, sha256=_sha(concept_data(1)), worker="a:1")
    store._write("cat.safetensors.json", _text(manifest))
    library.words("<cat>")
    put(store, "cat.safetensors", concept_data(2))  # trained again, and its manifest not yet written
    library.words("<cat>")
    assert np.array_equal(drawn(runtime, "<cat>"), expected(runtime, concept_data(1)))


@pytest.mark.parametrize("word", ["<../secret>", "</etc/cat>", "<a//b>", "<.hidden>", "<a/../b>", "<..>"])
def test_a_word_leads_to_no_file_outside_the_store(runtime, tmp_path, concept_data, word):
    (tmp_path / "secret.safetensors").write_bytes(concept_data(1))
    (tmp_path / "b.safetensors").write_bytes(concept_data(1))
    (tmp_path / "store").mkdir()
    assert StoreLibrary(runtime, ResultStore(str(tmp_path / "store"))).words(word) == word
    assert not runtime.concepts


def test_a_prompt_that_names_too_many_is_refused(runtime, tmp_path):
    with pytest.raises(RequestError, match="names 17 concepts, expected at most 16"):
        StoreLibrary(runtime, ResultStore(str(tmp_path))).words(
            "".join(f"<c{number}>" for number in range(17))
        )


def _sha(data):
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _text(manifest):
    import json
    from dataclasses import asdict

    return json.dumps({"format": 1, **asdict(manifest)})
