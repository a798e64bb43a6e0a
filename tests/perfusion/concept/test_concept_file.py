"""The concept file: what is written, what is read, and that nothing else is."""

import copy
import dataclasses
import hashlib
import json
import re
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from perfusion.concept.concept_file import Concept
from perfusion.concept.container import unpack
from perfusion.concept.edit import edited_projection
from perfusion.concept.storage import STORAGES
from perfusion.errors import ConceptError

FORMAT_PAGE = Path(__file__).parents[3] / "docs" / "format.md"
TENSORS = (
    "direction",
    "dual",
    "energy",
    "superclass_encoding",
    "embeddings.0",
    "target_values",
    "target_keys",
)


def arrays_of(concept):
    return {
        "direction": concept.direction,
        "dual": concept.dual,
        "energy": concept.energy,
        "superclass_encoding": concept.superclass_encoding,
        **{f"embeddings.{index}": array for index, array in enumerate(concept.embeddings)},
        "target_values": concept.target_values,
        **({} if concept.target_keys is None else {"target_keys": concept.target_keys}),
    }


# --- what is written


def test_the_bytes_are_known():
    concept = Concept(
        token="<a>",
        superclass="b",
        base="pocket",
        base_fingerprint="0" * 64,
        direction=np.array([[2.0, 0.0]]),
        dual=np.array([[0.5, 1.0]]),
        energy=np.array([4.0]),
        superclass_encoding=np.array([[1.0, -1.0]]),
        embeddings=(np.array([[0.5, 0.25, 0.0]]),),
        target_values=np.array([[1.0, 2.0]]),
        training={"seed": "7"},
    )
    floats = bytes.fromhex("0000003f 0000803f 00008040")
    halves = bytes.fromhex("0040 0000 003c 00bc 0038 0034 0000 003c 0040")
    header = (
        b'{"__metadata__":{"base":"pocket","base_fingerprint":"' + b"0" * 64 + b'","bias":"0.75",'
        b'"created_with":"","format":"perfusion-concept","format_version":"1","lock":"local",'
        b'"sha256":"'
        + hashlib.sha256(floats + halves).hexdigest().encode()
        + b'","superclass":"b","temperature":"0.15","token":"<a>","training.seed":"7"},'
        b'"dual":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
        b'"energy":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},'
        b'"direction":{"dtype":"F16","shape":[1,2],"data_offsets":[12,16]},'
        b'"superclass_encoding":{"dtype":"F16","shape":[1,2],"data_offsets":[16,20]},'
        b'"embeddings.0":{"dtype":"F16","shape":[1,3],"data_offsets":[20,26]},'
        b'"target_values":{"dtype":"F16","shape":[1,2],"data_offsets":[26,30]}}'
    )
    header += b" " * (-len(header) % 8)
    assert concept.to_bytes() == struct.pack("<Q", len(header)) + header + floats + halves


def test_a_strength_of_its_own_stands_in_the_file_and_the_usual_one_does_not(make_concept):
    """So files that have none keep their bytes, and older readers know every name in them."""
    usual, weak = make_concept(), make_concept(strength=0.8)
    assert b"strength" not in usual.to_bytes()
    assert b'"strength":"0.8"' in weak.to_bytes()
    assert Concept.from_bytes(weak.to_bytes()).strength == weak.settings.strength == 0.8
    assert Concept.from_bytes(usual.to_bytes()).strength == 1


def test_the_same_concept_gives_the_same_bytes_whatever_the_order_of_its_facts(make_concept):
    one = make_concept(training={"steps": "400", "seed": "1"})
    other = make_concept(training={"seed": "1", "steps": "400"})
    assert one.to_bytes() == other.to_bytes()
    assert Concept.from_bytes(one.to_bytes("float32")).to_bytes("float32") == one.to_bytes("float32")


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_the_safetensors_library_reads_what_is_written(make_concept, tmp_path, storage):
    concept = make_concept(rows=2)
    concept.save(tmp_path / "cat.safetensors", storage)
    read = safetensors.numpy.load_file(tmp_path / "cat.safetensors")
    assert set(read) == set(TENSORS)
    for name, array in arrays_of(concept).items():
        kind = np.float32 if name in ("dual", "energy") else np.dtype(storage)
        assert read[name].dtype == kind
        np.testing.assert_array_equal(read[name], array.astype(kind))
    with safetensors.safe_open(tmp_path / "cat.safetensors", "np") as file:
        assert file.metadata()["token"] == "<cat>"
        assert file.metadata()["format"] == "perfusion-concept"


def test_what_the_safetensors_library_writes_is_read(make_concept):
    concept = make_concept()
    metadata = unpack(concept.to_bytes())[1]
    del metadata["sha256"]  # of the tensors as we wrote them
    data = safetensors.numpy.save(arrays_of(concept), metadata)
    assert Concept.from_bytes(data).to_bytes("float32") == concept.to_bytes("float32")


def test_sizes_are_those_promised_for_stable_diffusion(make_concept):
    training = {"steps": "400", "seed": "0", "pictures": "5", "final_loss": "0.1234"}
    sd15 = make_concept(text_dim=768, width=12480, training=training)
    assert len(sd15.to_bytes()) <= 60_000
    assert len(sd15.to_bytes(keys=False)) <= 35_000
    words = (np.ones((1, 768)), np.ones((1, 1280)))
    unit = np.ones((1, 2048)) / np.sqrt(
        2048
    )  # a covariance of this width would take longer than all the rest
    vectors = {"direction": unit, "dual": unit, "energy": np.ones(1), "superclass_encoding": unit}
    values = np.random.default_rng(0).normal(size=(1, 83200))
    sdxl = make_concept(**vectors, embeddings=words, target_values=values, training=training)
    assert len(sdxl.to_bytes("int8", keys=False)) <= 100 * 1024


def test_a_number_beyond_float16_is_refused_and_fits_float32(make_concept):
    values = np.full((1, 24), 70000.0)
    concept = make_concept(target_values=values)
    with pytest.raises(ConceptError, match=r"'target_values' reaches 70000, .* storage='float32'"):
        concept.to_bytes()
    again = Concept.from_bytes(concept.to_bytes("float32"))
    np.testing.assert_array_equal(again.target_values, values.astype(np.float32))


def test_an_unknown_storage_is_refused(make_concept):
    with pytest.raises(
        ConceptError, match=re.escape("storage is 'int4', expected one of ['float16', 'float32', 'int8']")
    ):
        make_concept().to_bytes("int4")


def test_a_header_too_long_to_be_read_is_not_written(make_concept):
    concept = make_concept(training={f"fact {index}": "x" * 900 for index in range(80)})
    with pytest.raises(ConceptError, match=r"metadata takes .* bytes, expected at most 65536"):
        concept.to_bytes()


def test_a_concept_too_large_to_be_read_is_not_written(make_concept):
    with pytest.raises(ConceptError, match=r"concept takes .* bytes, expected at most 8388608"):
        make_concept(width=1 << 20).to_bytes("float32")


# --- what is read


def test_every_field_survives_the_file(make_concept, tmp_path):
    concept = make_concept(
        rows=2,
        token="<Käse-7>",
        superclass="teddy bear",
        base="sd15",
        lock="global",
        bias=0.1 + 0.2,
        temperature=1e-3,
        created_with="perfusion-edge 0.1.0",
        training={"steps": "400", "größe": "5 µm"},
    )
    concept.save(tmp_path / "c.safetensors", "float32")
    read = Concept.load(tmp_path / "c.safetensors")
    for field in dataclasses.fields(Concept):
        if field.name not in ("embeddings", *TENSORS):
            assert getattr(read, field.name) == getattr(concept, field.name), field.name
    for name, array in arrays_of(read).items():
        np.testing.assert_array_equal(array, arrays_of(concept)[name], err_msg=name)
    assert read.rows == 2


def test_keys_may_be_left_out_and_a_second_encoder_may_be_there(make_concept):
    embeddings = (np.ones((1, 8)), np.full((1, 5), 2.0))
    read = Concept.from_bytes(make_concept(target_keys=None, embeddings=embeddings).to_bytes())
    assert read.target_keys is None
    assert [array.shape for array in read.embeddings] == [(1, 8), (1, 5)]


@pytest.mark.property(number=14)
def test_a_saved_concept_projects_exactly_as_before(make_concept):
    concept = make_concept(rows=2)
    encodings = np.random.default_rng(1).normal(size=(77, 8))
    weight = np.random.default_rng(2).normal(size=(24, 8))

    def project(one):
        rows = (one.direction, one.dual, one.energy)
        return edited_projection(encodings, weight, one.target_values, *rows, one.bias, one.temperature)

    np.testing.assert_array_equal(project(Concept.from_bytes(concept.to_bytes("float32"))), project(concept))
    half = project(Concept.from_bytes(concept.to_bytes("float16"))) - project(concept)
    assert 0 < np.abs(half).max() < 6e-3  # i* and o* were rounded, w* was not


def test_arrays_are_float32_contiguous_and_cannot_be_written(make_concept):
    for concept in (make_concept(), Concept.from_bytes(make_concept().to_bytes())):
        for array in arrays_of(concept).values():
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        with pytest.raises(TypeError):
            concept.training["steps"] = "0"  # type: ignore[index]


def test_a_concept_does_not_share_the_arrays_it_was_made_of(make_concept):
    values = np.zeros((1, 24), dtype=np.float32)
    concept = make_concept(target_values=values)
    values[...] = 1
    assert not concept.target_values.any()


def test_a_concept_is_printed_by_its_names_and_not_its_numbers(make_concept):
    assert repr(make_concept()) == "Concept(token='<cat>', superclass='cat', base='pocket', rows=1)"


@pytest.mark.parametrize("storage", STORAGES)
def test_loading_takes_less_than_a_millisecond(make_concept, tmp_path, storage):
    path = tmp_path / "c.safetensors"
    make_concept(text_dim=768, width=12480).save(path, storage)
    best = float("inf")
    for _ in range(50):  # the best of many: other programs may run
        start = time.perf_counter()
        Concept.load(path)
        best = min(best, time.perf_counter() - start)
    assert best < 1e-3


# --- the page that describes the format


def page_blocks():
    """The fenced blocks of the format page, by the word behind the fence."""
    return dict(re.findall(r"```(\w+)\n(.*?)```", FORMAT_PAGE.read_text(), re.S))


def test_the_example_on_the_format_page_is_a_concept_byte_for_byte():
    blocks = page_blocks()
    header = "".join(line.strip() for line in blocks["json"].splitlines()).encode()
    numbers = bytes.fromhex("".join(line.split("#")[0] for line in blocks["hex"].splitlines()))
    length, body = numbers[:8], numbers[8:]
    data = length + header.ljust(int.from_bytes(length, "little")) + body
    assert json.loads(header)["__metadata__"]["sha256"] == hashlib.sha256(body).hexdigest()
    concept = Concept.from_bytes(data)
    assert concept.to_bytes() == data
    assert concept.token == "<cat>"
    assert concept.direction.tolist() == [[2.0, 0.0]]


def test_the_reader_on_the_format_page_reads_what_we_write(make_concept):
    scope: dict[str, Any] = {}
    exec(page_blocks()["python"], scope)
    concept = make_concept(rows=2)
    metadata, tensors = scope["read"](concept.to_bytes("float32"))
    assert metadata["token"] == "<cat>"
    assert set(tensors) == set(arrays_of(concept))
    for name, array in arrays_of(concept).items():
        np.testing.assert_array_equal(tensors[name], array)


def test_a_concept_can_be_copied(make_concept):
    concept = make_concept(rows=2, training={"steps": "300"})
    for other in (copy.copy(concept), copy.deepcopy(concept)):
        assert other.to_bytes("float32") == concept.to_bytes("float32")
