"""A folder of embeddings behind A1111's API: listed, refreshed, drawn with."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.perfusion.serving import http


@pytest.fixture
def server(serve):
    running = serve()
    (running.folder / "embeddings" / "negative").mkdir(parents=True)
    return running


def write(path, rows, width, seed=0):
    save_file({"emb_params": np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)}, path)


def listed(server):
    assert http.post(f"{server.address}/sdapi/v1/refresh-embeddings", json={}).status_code == 200
    return http.get(f"{server.address}/sdapi/v1/embeddings").json()


def drawn(server, negative):
    body = {"prompt": "a cat", "negative_prompt": negative, "seed": 3, "steps": 2, "width": 32, "height": 32}
    answer = http.post(f"{server.address}/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200
    return answer.json()["images"][0]


def test_files_come_go_and_change_as_words_of_prompts(server):
    folder, width = server.folder / "embeddings", server.runtime.bundle.text_encoder.hidden_size
    assert listed(server) == {"loaded": {}, "skipped": {}}
    plain = drawn(server, "bad")
    write(folder / "negative" / "bad.safetensors", 2, width)
    write(folder / "of-15.safetensors", 1, 768)
    (folder / "old.pt").write_bytes(b"PK\x03\x04")
    names = listed(server)
    assert names["loaded"]["bad"] | {"shape": width, "vectors": 2} == names["loaded"]["bad"]
    assert list(names["loaded"]) == ["bad"] and list(names["skipped"]) == ["of-15"]
    first = drawn(server, "(bad:1.2)")
    assert first not in (plain, drawn(server, "bad"))
    write(folder / "negative" / "bad.safetensors", 2, width, seed=1)
    os.utime(folder / "negative" / "bad.safetensors", (0, 0))  # also where the clock is coarse
    listed(server)
    assert drawn(server, "(bad:1.2)") != first
    (folder / "negative" / "bad.safetensors").unlink()
    assert listed(server)["loaded"] == {}
    assert drawn(server, "bad") == plain


def test_what_is_no_word_is_told_to_the_log(server, caplog):
    (server.folder / "embeddings" / "old.pt").write_bytes(b"PK\x03\x04")
    listed(server)
    assert "old.pt is no word here" in caplog.text and "This is a pickle" in caplog.text
