"""Concepts that come with requests: each request's own, whatever others call theirs."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from perfusion.concept.concept_file import Concept
from tests.perfusion.serving import http
from tests.perfusion.serving.conftest import picture_of

STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def concept_data(toy_concept, tmp_path_factory):
    def data(seed, **fields):
        path = tmp_path_factory.mktemp("rider") / "rider.safetensors"
        toy_concept(seed=seed, **fields).save(path)
        return path.read_bytes()

    return data


def text_of(data):
    return base64.b64encode(data).decode()


def pixels(server, address, fields):
    answer = http.post(server.address + address, json=fields)
    assert answer.status_code == 200, answer.text
    (picture,) = (
        answer.json()["images"]
        if "images" in answer.json()
        else [each["b64_json"] for each in answer.json()["data"]]
    )
    return np.asarray(picture_of(picture))


def expected(server, data, **options):
    server.runtime.load_concept(data, token="<expected>")
    try:
        return np.asarray(server.runtime.generate("a <expected> here", seed=3, **STEPS | options))
    finally:
        server.runtime.unload_concept("<expected>")


def test_two_requests_of_one_word_draw_their_own_concepts(server, concept_data):
    """Also one whose word the library has."""
    pictures = [
        pixels(
            server, "/v1/images/generations",
            {"prompt": "a <cat> here", "seed": 3, "exact": True, "concept_files": {"<cat>": text_of(data)}, **STEPS},
        )
        for data in (concept_data(5), concept_data(6))
    ]  # fmt: skip
    for picture, data in zip(pictures, (concept_data(5), concept_data(6)), strict=True):
        assert np.array_equal(picture, expected(server, data))
    own = pixels(
        server, "/v1/images/generations", {"prompt": "a <cat> here", "seed": 3, "exact": True, **STEPS}
    )
    assert np.array_equal(own, np.asarray(server.runtime.generate("a <cat> here", seed=3, **STEPS)))


def test_settings_and_tags_of_a_rider_are_its_own(server, concept_data):
    files, usual = {"concept_files": {"<cat>": text_of(concept_data(5))}}, server.runtime.bundle.defaults
    changed = pixels(
        server, "/v1/images/generations",
        {"prompt": "a <cat> here", "seed": 3, "exact": True, "concepts": {"<cat>": {"strength": 0.5}}} | STEPS | files,
    )  # fmt: skip
    assert np.array_equal(
        changed, expected(server, concept_data(5), concept_settings={"<expected>": {"strength": 0.5}})
    )
    tagged = pixels(
        server, "/sdapi/v1/txt2img",
        {"prompt": "a <lora:cat:0.5> here", "seed": 3, "steps": 2, "cfg_scale": usual.guidance_scale,
         "width": usual.width, "height": usual.height, **files},
    )  # fmt: skip
    assert tagged.shape == changed.shape and np.abs(tagged.astype(int) - changed).max() <= 1


def test_a_job_takes_riders_too(server, concept_data):
    fields = {
        "prompt": "a <dog> here",
        "seed": 3,
        "exact": True,
        "concept_files": {"<dog>": text_of(concept_data(7))},
    }
    with http.client(base_url=server.address) as client:
        job = client.post("/api/jobs", json=fields | STEPS).json()
        with client.stream("GET", f"/api/jobs/{job['id']}/events?previews=no") as answer:
            done = json.loads([line for line in answer.iter_lines() if line.startswith("data: ")][-1][6:])
        picture = Image.open(io.BytesIO(client.get(done["pictures"][0]).content))
    assert np.array_equal(np.asarray(picture), expected(server, concept_data(7)))


@pytest.mark.parametrize(
    "files, sentence",
    [
        ([], None),
        (["<cat>"], "no object of words"),
        ({"cat": "AAAA"}, "no object of words"),
        ({"<cat>": "no base64!"}, "no base64"),
        ({"<cat>": "AAAA"}, "The file has 3 bytes"),
        ({f"<c{number}>": "AAAA" for number in range(9)}, "9 concept files, expected at most 8"),
    ],
)
def test_what_is_no_rider_is_refused(server, files, sentence):
    answer = http.post(
        f"{server.address}/v1/images/generations", json={"prompt": "a cat", "concept_files": files, **STEPS}
    )
    assert answer.status_code == (400 if sentence else 200)
    assert sentence is None or sentence in answer.json()["error"]["message"]


def test_riders_leave_when_others_come(serve, concept_data):
    server = serve(riders=8)
    for seed in range(12):
        pixels(
            server, "/v1/images/generations",
            {"prompt": "a <cat>", "concept_files": {"<cat>": text_of(concept_data(seed))}, "num_inference_steps": 1},
        )  # fmt: skip
    held = [concept for token, concept in server.runtime.concepts.items() if token.startswith("<cat.")]
    assert len(held) == 8 and all(isinstance(concept, Concept) for concept in held)
