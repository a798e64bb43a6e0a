"""How numbers are stored: what 8 bits lose, what no storage may touch, and what a reader refuses."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from perfusion.concept.concept_file import Concept
from perfusion.concept.container import unpack
from perfusion.concept.storage import STORAGES, narrow, stored_as, widen
from perfusion.errors import ConceptError

FORMAT_PAGE = Path(__file__).parents[3] / "docs" / "format.md"
INT8 = ("superclass_encoding", "embeddings.0", "embeddings.1", "target_values", "target_keys")


@pytest.fixture
def concept(make_concept):
    words = tuple(np.random.default_rng(seed).normal(size=(2, 8 + seed)) for seed in range(2))
    return make_concept(rows=2, width=1280, embeddings=words)


def rebuilt(concept, **changes):
    """The int8 file of a concept, with tensors replaced, added, or removed where None."""
    data = concept.to_bytes("int8")
    length = int.from_bytes(data[:8], "little")
    arrays = {**safetensors.numpy.load(data), **changes}
    kept = {name: array for name, array in arrays.items() if array is not None}
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    del metadata["sha256"]  # of the tensors as they were
    return safetensors.numpy.save(kept, metadata)


# --- what is written


def test_an_int8_number_is_its_integer_times_the_scale_of_its_block(concept):
    stored = safetensors.numpy.load(concept.to_bytes("int8"))
    read = Concept.from_bytes(concept.to_bytes("int8"))
    for name in INT8:
        assert stored[name].dtype == np.int8
        scale = np.repeat(
            stored[name + ".scale"], stored[name].shape[1] // stored[name + ".scale"].shape[1], axis=1
        )
        array = read.embeddings[int(name[-1])] if name.startswith("embeddings.") else getattr(read, name)
        np.testing.assert_array_equal(array, stored[name] * scale)


def test_int8_loses_at_most_half_a_step_of_each_block(concept):
    exact = concept.target_values.reshape(2, 2, 640)
    read = Concept.from_bytes(concept.to_bytes("int8")).target_values.reshape(2, 2, 640)
    step = abs(exact).max(axis=2, keepdims=True) / 127 * (1 + 2**-15)  # scales have 16 significant bits
    assert (abs(read - exact) <= step / 2 * (1 + 1e-6)).all()
    assert abs(read - exact).max() > step.max() / 4


def test_a_block_of_small_numbers_is_not_drowned_by_its_neighbour(make_concept):
    values = np.random.default_rng(0).normal(size=(1, 1280))
    values[:, 640:] *= 1e-4
    read = Concept.from_bytes(
        make_concept(target_values=values, target_keys=None).to_bytes("int8")
    ).target_values
    small = values[:, 640:]
    assert np.linalg.norm(read[:, 640:] - small) < 0.01 * np.linalg.norm(small)


@pytest.mark.parametrize(
    "width, blocks", [(12480, 39), (83200, 130), (1344, 3), (640, 1), (128, 1), (24, 1), (997, 1), (1920, 3)]
)
def test_blocks_are_multiples_of_64_up_to_640_that_divide_a_row(make_concept, width, blocks):
    tensors = {"dual": np.ones((1, 4), np.float32), "target_values": np.ones((1, width), np.float32)}
    assert narrow(tensors, "int8")["target_values.scale"].shape == (1, blocks)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("keys", [True, False])
def test_what_was_read_is_written_again_as_the_same_bytes(make_concept, storage, keys):
    for seed in range(20):
        data = make_concept(width=192, seed=seed).to_bytes(storage, keys=keys)
        again = Concept.from_bytes(data)
        assert again.to_bytes(storage) == data
        assert (again.target_keys is None) != keys
        assert stored_as(unpack(data)[0]) == storage


def test_the_word_of_a_base_with_one_text_encoder_keeps_16_bits(make_concept):
    stored = safetensors.numpy.load(make_concept().to_bytes("int8"))
    assert stored["embeddings.0"].dtype == np.float16
    assert "embeddings.0.scale" not in stored


@pytest.mark.parametrize("storage", STORAGES)
def test_dual_and_energy_keep_every_bit_but_for_24_of_the_dual_in_int8(concept, storage):
    read = Concept.from_bytes(concept.to_bytes(storage))
    np.testing.assert_array_equal(read.energy, concept.energy)
    step = 2**-22 * abs(concept.dual).max(axis=1, keepdims=True)  # at most, and half of it is lost at most
    assert (abs(read.dual - concept.dual) <= (step / 2 if storage == "int8" else 0)).all()


def test_the_24_bits_of_a_dual_are_what_the_format_page_says(concept):
    stored = safetensors.numpy.load(concept.to_bytes("int8"))
    assert {name: stored[name].dtype.name for name in ("dual", "dual.fine", "dual.scale")} == {
        "dual": "int16", "dual.fine": "int8", "dual.scale": "float32",
    }  # fmt: skip
    integers = 256 * stored["dual"].astype(np.int64) + stored["dual.fine"]
    assert stored["dual.scale"].shape == (2, 1)
    assert (np.frexp(stored["dual.scale"])[0] == 0.5).all(), "powers of two"
    np.testing.assert_array_equal(
        Concept.from_bytes(concept.to_bytes("int8")).dual, integers * stored["dual.scale"]
    )
    assert (abs(integers).max(axis=1) > 2**21).all() and abs(integers).max() <= 32767 * 256


def test_an_int8_file_of_the_first_writers_has_a_dual_in_float32_and_is_read(concept):
    whole = {"dual": concept.dual, "dual.fine": None, "dual.scale": None}
    np.testing.assert_array_equal(Concept.from_bytes(rebuilt(concept, **whole)).dual, concept.dual)


def test_similarities_do_not_change_with_the_storage_and_the_projection_hardly(make_concept):
    from perfusion.concept.edit import project, similarity

    concept = make_concept(text_dim=64)
    encodings = np.random.default_rng(1).normal(size=(50, 64)) + 1
    for storage in ("float16", "int8"):
        read = Concept.from_bytes(concept.to_bytes(storage))
        moved = similarity(encodings, read.dual) - similarity(encodings, concept.dual)
        assert abs(moved).max() <= (1e-6 if storage == "int8" else 0)
        exact = project(encodings, concept.direction, concept.dual, concept.energy)
        found = project(encodings, read.direction, read.dual, read.energy)
        assert np.linalg.norm(found - exact) < 1e-3 * np.linalg.norm(exact)


def test_a_direction_that_its_dual_would_magnify_stays_float32():
    direction = np.array([[1.0, 1 + 2**-12]], np.float32)
    dual = np.array([[100 * (1 + 2**-12) + 1, -100]], np.float32)  # the product is 1 by cancellation
    assert abs((direction.astype(np.float16) * dual).sum() - 1) > 2e-3
    for storage in ("float16", "int8"):
        assert narrow({"direction": direction, "dual": dual}, storage)["direction"].dtype == np.float32
    tame = np.array([[1.0, 0.0]], np.float32)
    assert narrow({"direction": tame, "dual": tame}, "int8")["direction"].dtype == np.float16


def test_a_block_of_zeros_and_the_smallest_numbers_survive_int8(make_concept):
    values = np.zeros((1, 128), np.float32)
    values[0, 64:] = 1e-42
    read = Concept.from_bytes(make_concept(target_values=values).to_bytes("int8"))
    assert abs(read.target_values).max() <= 1e-38


def test_a_number_beyond_int8_is_refused(make_concept):
    concept = make_concept(target_values=np.full((1, 24), np.finfo(np.float32).max))
    with pytest.raises(ConceptError, match=r"'target_values' reaches 3\.40282e\+38, too much for int8"):
        concept.to_bytes("int8")


def test_int8_without_keys_leaves_room_for_what_it_promises(make_concept):
    concept = make_concept(text_dim=768, width=12480)
    sizes = {storage: len(concept.to_bytes(storage, keys=False)) for storage in STORAGES}
    assert sizes["int8"] < 0.62 * sizes["float16"] < 0.36 * sizes["float32"]


def test_the_sentence_on_int8_of_the_format_page_has_the_right_bytes(make_concept):
    integers, scale = re.findall(
        r"`((?:[0-9a-f]{2} ?)+)`", FORMAT_PAGE.read_text().split("In `int8` the last")[1]
    )[:2]
    stored = narrow(
        {"dual": np.ones((1, 2), np.float32), "target_values": np.array([[1, 2]], np.float32)}, "int8"
    )
    assert stored["target_values"].tobytes() == bytes.fromhex(integers)
    assert stored["target_values.scale"].tobytes() == bytes.fromhex(scale)


@pytest.mark.parametrize("base, words", [("sd15", (768,)), ("sd21", (1024,)), ("sdxl", (768, 1280))])
def test_the_table_of_sizes_on_the_format_page_is_true(make_concept, base, words):
    row = re.search(rf"^\| {base} \|(.+)\|$", FORMAT_PAGE.read_text(), re.M)
    assert row is not None
    text_dim, width, *sizes = (int(cell.replace(",", "")) for cell in row[1].split("|"))
    unit = np.full((1, text_dim), text_dim**-0.5)
    concept = make_concept(
        **{"token": "<teddy-bear>", "superclass": "teddy bear", "base": base, "energy": np.ones(1)},
        **dict.fromkeys(("direction", "dual", "superclass_encoding"), unit),
        **dict.fromkeys(("target_values", "target_keys"), np.ones((1, width))),
        embeddings=tuple(np.ones((1, hidden)) for hidden in words),
        created_with="perfusion-edge 0.1.0",
        training={"batch_size": "16", "pictures": "5", "seed": "0", "steps": "400"},
    )
    kinds = [(storage, keys) for storage in ("float16", "int8") for keys in (True, False)]
    assert [len(concept.to_bytes(storage, keys=keys)) for storage, keys in kinds] == sizes


# --- what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target_values.scale": None}, "'target_values' is int8 and lacks 'target_values.scale'"),
        (
            {"target_values.scale": np.full((2, 2), np.nan, np.float32)},
            "'target_values.scale' holds a scale that is not",
        ),
        (
            {"target_values.scale": np.full((2, 2), np.inf, np.float32)},
            "a scale that is not a positive number",
        ),
        ({"target_values.scale": np.full((2, 2), -1, np.float32)}, "a scale that is not a positive number"),
        ({"target_values.scale": np.zeros((2, 2), np.float32)}, "a scale that is not a positive number"),
        (
            {"target_values.scale": np.ones((2, 3), np.float32)},
            r"has shape \(2, 3\), expected \(rows, blocks\)",
        ),
        (
            {"target_values.scale": np.ones((2, 2560), np.float32)},
            "a number of blocks that divides its width",
        ),
        ({"target_values.scale": np.ones((1, 2), np.float32)}, r"has shape \(1, 2\)"),
        ({"target_values.scale": np.ones(2, np.float32)}, r"has shape \(2,\)"),
        (
            {"target_values.scale": np.ones((2, 2), np.float16)},
            "'target_values.scale' is float16, expected float32",
        ),
        ({"target_values.scale": np.ones((2, 2), np.int8)}, "'target_values.scale' is int8, expected float"),
        ({"target_values.scale": np.full((2, 2), 3e38, np.float32)}, "'target_values' holds NaN or infinity"),
        ({"target_values": np.ones(1280, np.int8)}, r"'target_values' of \(1280,\)"),
        (
            {"target_values": np.ones((2, 1280), np.float32)},
            "'target_values.scale' belongs to no int8 or int16 tensor",
        ),
        ({"target_keys": None}, "'target_keys.scale' belongs to no int8 or int16 tensor 'target_keys'"),
        ({"x.scale": np.ones((2, 1), np.float32)}, "'x.scale' belongs to no int8 or int16 tensor 'x'"),
        ({".scale": np.ones((2, 1), np.float32)}, "'.scale' belongs to no int8 or int16 tensor ''"),
        ({"direction": np.ones((2, 8), np.int8)}, "'direction' is int8, expected floating-point"),
        ({"dual": np.ones((2, 8), np.int8)}, "'dual' is int8, expected float32 or int16"),
        ({"dual": np.ones((2, 8), np.float16)}, "'dual' is float16, expected float32 or int16"),
        ({"dual.fine": None}, "'dual' is int16 and lacks 'dual.fine' of int8"),
        (
            {"dual.fine": np.ones((2, 7), np.int8)},
            "'dual' is int16 and lacks 'dual.fine' of int8 in the same shape",
        ),
        ({"dual.fine": np.ones((2, 8), np.int16)}, "'dual.fine' of int8"),
        ({"dual.scale": None}, "'dual' is int16 and lacks 'dual.scale'"),
        ({"dual.scale": np.full((2, 1), np.inf, np.float32)}, "a scale that is not a positive number"),
        ({"dual": np.ones((2, 8), np.float32)}, r"'dual\.\w+' belongs to no int"),
        (
            {"direction.fine": np.ones((2, 8), np.int8)},
            "'direction.fine' belongs to no int16 tensor 'direction'",
        ),
        (
            {"target_values": np.ones((2, 1280), np.int16)},
            "'target_values' is int16, which only 'dual' may be",
        ),
        ({"energy": np.ones(2, np.float16)}, "'energy' is float16, expected float32"),
    ],
)
def test_an_int8_file_that_contradicts_itself_is_refused_by_name(concept, changes, message):
    with pytest.raises(ConceptError, match=message) as caught:
        Concept.from_bytes(rebuilt(concept, **changes))
    assert str(caught.value).endswith(".")


def test_the_maker_of_broken_int8_files_makes_whole_ones_too(concept):
    assert Concept.from_bytes(rebuilt(concept)).rows == 2


def test_an_int8_header_cannot_make_the_reader_allocate(concept):
    data = concept.to_bytes("int8")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["target_values"]["shape"] = [1 << 20, 1 << 20]
    text = json.dumps(header).encode()
    with pytest.raises(ConceptError, match="by its data_offsets, expected"):
        Concept.from_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_widening_leaves_floating_point_tensors_alone():
    array = np.ones((1, 3), np.float16)
    assert widen({"target_values": array})["target_values"] is array
