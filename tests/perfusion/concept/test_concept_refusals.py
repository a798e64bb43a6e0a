"""What a reader of concept files tolerates, and what it refuses: by name, in a sentence, and with nothing else."""

import io
import json
import pickle
import random
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from perfusion.concept.concept_file import Concept
from perfusion.errors import ConceptError

TENSORS = (
    "direction",
    "dual",
    "energy",
    "superclass_encoding",
    "embeddings.0",
    "target_values",
    "target_keys",
)


def split(data):
    """The header as a dictionary, and the tensors' bytes."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def with_metadata(data, **changes):
    """The file with metadata replaced, or removed where the value is None."""
    header, body = split(data)
    metadata = {**header["__metadata__"], **changes}
    header["__metadata__"] = {name: text for name, text in metadata.items() if text is not None}
    return join(header, body)


def rebuilt(concept, **tensors):
    """The concept's file by the safetensors library, with tensors replaced, added, or removed where None."""
    data = concept.to_bytes("float32")
    arrays = {**safetensors.numpy.load(data), **tensors}
    kept = {name: array for name, array in arrays.items() if array is not None}
    metadata = split(data)[0]["__metadata__"]
    del metadata["sha256"]  # of the tensors as they were
    return safetensors.numpy.save(kept, metadata)


def with_entry(data, name, **changes):
    """The file with a tensor's description changed."""
    header, body = split(data)
    header[name] = {**header[name], **changes}
    return join(header, body)


# --- what is tolerated


def test_metadata_that_later_writers_add_is_ignored(make_concept):
    read = Concept.from_bytes(with_metadata(make_concept().to_bytes(), colour="blue"))
    assert read.token == "<cat>"


def test_defaults_may_be_left_out_of_the_metadata(make_concept):
    data = with_metadata(make_concept().to_bytes(), lock=None, bias=None, temperature=None, created_with=None)
    read = Concept.from_bytes(data)
    assert (read.lock, read.bias, read.temperature, read.created_with) == ("local", 0.75, 0.15, "")
    assert read.strength == 1


@pytest.mark.parametrize("length", [896, 1152, 1408])
def test_a_header_whose_length_begins_like_a_pickle_is_read(make_concept, length):
    data = make_concept().to_bytes()
    header, body = split(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    padded = join(text.ljust(length), body)
    assert padded[0] == 0x80
    assert Concept.from_bytes(padded).token == "<cat>"


@pytest.mark.parametrize("storage", ["float16", "float32", "int8"])
def test_files_of_older_writers_without_a_checksum_are_read(make_concept, storage):
    data = make_concept().to_bytes(storage)
    older = with_metadata(data, sha256=None)
    assert b"sha256" not in older
    assert Concept.from_bytes(older).to_bytes(storage) == Concept.from_bytes(data).to_bytes(storage)


# --- what is refused


@pytest.mark.parametrize("storage", ["float16", "float32", "int8"])
def test_a_single_flipped_bit_of_any_tensor_is_refused(make_concept, storage):
    data = make_concept(rows=2, embeddings=(np.ones((2, 8)), np.ones((2, 5)))).to_bytes(storage)
    header, body = split(data)
    start = len(data) - len(body)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        for place in {entry["data_offsets"][0], entry["data_offsets"][1] - 1}:
            for bit in range(8):
                flipped = bytearray(data)
                flipped[start + place] ^= 1 << bit
                with pytest.raises(ConceptError, match=r"The tensors have SHA-256 .*: they were damaged"):
                    Concept.from_bytes(bytes(flipped))


@pytest.mark.parametrize("checksum", ["", "0" * 64, "no digest", "Ä"])
def test_a_checksum_that_is_not_that_of_the_tensors_is_refused(make_concept, checksum):
    data = with_metadata(make_concept().to_bytes(), sha256=checksum)
    with pytest.raises(
        ConceptError, match=r"SHA-256 .* the old checksum\. Copy or train the concept again\."
    ):
        Concept.from_bytes(data)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda data: b"", "0 bytes, expected at least 8"),
        (lambda data: data[:7], "7 bytes, expected at least 8"),
        (lambda data: data[:500], "claims .* bytes, but only 492 follow"),
        (lambda data: data[:-1], "the file is cut off"),
        (lambda data: data + b"\0", "1 bytes follow the last tensor"),
        (lambda data: struct.pack("<Q", 1 << 63) + data[8:], "claims 9223372036854775808 bytes"),
        (lambda data: pickle.dumps({"a": 1}), "This is a pickle"),
        (lambda data: b"PK\x03\x04" + data, "This is a pickle"),
        (lambda data: join(b"[" * 60000, b""), r"begins with b'\['"),
        (lambda data: join(b'{"a":' * 12000, b""), "not valid JSON"),
        (lambda data: join(b'{"a": 1' + b"\xff}", b""), "not valid JSON"),
        (lambda data: join(b"{}", b""), "no metadata"),
        (lambda data: join(b'{"__metadata__": {"a": NaN}}', b""), "NaN is no JSON"),
        (lambda data: join(b'{"__metadata__": {}, "__metadata__": {}}', b""), "names something twice"),
        (lambda data: join(b'{"__metadata__": {"a": "\\ud800"}}', b""), "not valid Unicode"),
        (lambda data: b"x" * (8 * 1024 * 1024 + 1), "more than 8388608 bytes"),
    ],
)
def test_bytes_that_are_no_concept_are_refused_with_a_sentence(make_concept, make, message):
    with pytest.raises(ConceptError, match=message) as caught:
        Concept.from_bytes(make(make_concept().to_bytes()))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "other"}, "format 'other', expected 'perfusion-concept'"),
        ({"format": None}, "format None, expected 'perfusion-concept'"),
        ({"format_version": "2"}, "version '2', this program reads 1. Install a newer"),
        ({"format_version": None}, "version None"),
        ({"token": None}, "lacks 'token'"),
        ({"token": "cat"}, "token is 'cat', expected a word in angle brackets"),
        ({"token": "<a b>"}, "expected a word in angle brackets"),
        ({"token": "<a><b>"}, "expected a word in angle brackets"),
        ({"token": "<>"}, "expected a word in angle brackets"),
        ({"token": "<" + "a" * 63 + ">"}, "at most 64 characters"),
        ({"superclass": " "}, "superclass is empty"),
        ({"superclass": "a\x1b[31m"}, "expected one line"),
        ({"superclass": "a" * 1001}, "at most 1000 characters"),
        ({"base": "SD 1.5"}, "base is 'SD 1.5', expected a model family"),
        ({"base_fingerprint": "A" * 64}, "expected 64 lower-case hex digits"),
        ({"lock": "loose"}, "lock is 'loose', expected one of local, global"),
        ({"bias": "much"}, "bias is 'much', expected a number"),
        ({"bias": "nan"}, "bias is nan, expected a finite number"),
        ({"temperature": "0"}, "temperature is 0.0, expected a number above 0"),
        ({"temperature": "-inf"}, "temperature is -inf"),
        ({"strength": "1.5"}, "strength is 1.5, expected 0"),
        ({"strength": "-0.1"}, "strength is -0.1, expected 0"),
        ({"strength": "much"}, "strength is 'much', expected a number"),
        ({"training.note": "two\nlines"}, "expected one line"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused_by_name(make_concept, changes, message):
    with pytest.raises(ConceptError, match=message):
        Concept.from_bytes(with_metadata(make_concept().to_bytes(), **changes))


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("dual", {"dtype": "F16"}, "'dual' of shape"),
        ("dual", {"dtype": "I32"}, "dtype 'I32', expected one of"),
        ("dual", {"dtype": ["F32"]}, "dtype"),
        ("dual", {"shape": [1, 9]}, "32 bytes by its data_offsets, expected 36"),
        ("dual", {"shape": [1, 1 << 61]}, "expected one or two positive numbers"),
        ("dual", {"shape": [1 << 40, 1 << 40]}, "by its data_offsets, expected"),
        ("dual", {"shape": []}, "expected one or two positive numbers"),
        ("dual", {"shape": [1, 8, 1]}, "expected one or two positive numbers"),
        ("dual", {"shape": [True, 8]}, "expected one or two positive numbers"),
        ("dual", {"shape": [-1, -8]}, "expected one or two positive numbers"),
        ("dual", {"shape": [1, 8.0]}, "expected one or two positive numbers"),
        ("dual", {"shape": [0, 8], "data_offsets": [0, 0]}, "expected one or two positive numbers"),
        ("dual", {"shape": [8]}, r"'dual' has shape \(8,\), expected \(1, 8\)"),
        ("dual", {"data_offsets": [16, 48]}, "gap or overlap"),
        ("dual", {"data_offsets": [64, 32]}, "-32 bytes by its data_offsets"),
        ("dual", {"data_offsets": "32"}, r"expected \[begin, end\]"),
        ("dual", {"extra": 1}, "expected dtype, shape, data_offsets"),
        ("target_keys", {"data_offsets": [1 << 40, (1 << 40) + 48]}, "gap or overlap"),
    ],
)
def test_tensors_that_lie_are_refused_by_name(make_concept, name, changes, message):
    with pytest.raises(ConceptError, match=message):
        Concept.from_bytes(with_entry(make_concept().to_bytes(), name, **changes))


@pytest.mark.parametrize("name", TENSORS)
def test_a_missing_tensor_is_named_and_only_keys_may_be_missing(make_concept, name):
    data = rebuilt(make_concept(), **{name: None})
    if name == "target_keys":
        assert Concept.from_bytes(data).target_keys is None
        return
    with pytest.raises(ConceptError, match=re.escape(f"lacks the tensors ['{name}']")):
        Concept.from_bytes(data)


@pytest.mark.parametrize("name", ["extra", "embeddings.1x", "embeddings.01", "embeddings.2", "position"])
def test_an_unknown_tensor_is_named(make_concept, name):
    data = rebuilt(make_concept(), **{name: np.ones((1, 2), dtype=np.float32)})
    with pytest.raises(ConceptError, match=r"unknown tensors|lacks the tensors \['embeddings\.1'\]"):
        Concept.from_bytes(data)


@pytest.mark.parametrize("name", ["dual", "energy"])
def test_float16_is_refused_where_it_would_lose_the_cancellation(make_concept, name):
    data = rebuilt(make_concept(), **{name: getattr(make_concept(), name).astype(np.float16)})
    with pytest.raises(ConceptError, match=f"'{name}' is float16, expected float32"):
        Concept.from_bytes(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", TENSORS)
def test_numbers_that_are_not_finite_are_refused_by_name(make_concept, name, value):
    array = safetensors.numpy.load(make_concept().to_bytes("float32"))[name]
    array.flat[-1] = value
    data = rebuilt(make_concept(), **{name: array})
    with pytest.raises(ConceptError, match=f"'{re.escape(name)}' holds NaN or infinity"):
        Concept.from_bytes(data)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"energy": np.array([0.0])}, r"energy is \[0\.\], expected numbers above 0"),
        ({"energy": np.array([-1.0])}, "expected numbers above 0"),
        ({"dual": np.ones((1, 8))}, "direction · dual is .*, expected 1 for every row"),
        ({"dual": np.ones((1, 7))}, r"'dual' has shape \(1, 7\), expected \(1, 8\)"),
        ({"energy": np.ones((1, 1))}, r"'energy' has shape \(1, 1\), expected \(1,\)"),
        ({"target_values": np.ones((2, 24))}, r"'target_values' has shape \(2, 24\), expected \(1, any\)"),
        ({"target_values": np.ones((1, 0))}, "'target_values' has shape"),
        ({"direction": np.ones(8)}, r"'direction' has shape \(8,\), expected \(rows, text_dim\)"),
        ({"direction": [[1.0]]}, "'direction' is list, expected a numpy array"),
        ({"target_keys": np.ones((1, 24), dtype=int)}, "'target_keys' is dtype int64"),
        ({"target_values": np.full((1, 24), 1e300)}, "'target_values' holds NaN or infinity"),
        ({"embeddings": ()}, "0 embeddings, expected 1 or 2"),
        ({"embeddings": np.ones((1, 8))}, "embeddings are ndarray, expected a tuple"),
        ({"bias": None}, "bias is None, expected a number"),
        ({"token": 7}, "'token' is 7, expected one line"),
        ({"base_fingerprint": None}, "base fingerprint is None"),
        ({"training": {"steps": 400}}, "'training.steps' is 400, expected one line"),
        ({"training": None}, "training facts are None"),
    ],
)
def test_a_concept_that_contradicts_itself_cannot_be_made(make_concept, fields, message):
    with pytest.raises(ConceptError, match=message):
        make_concept(**fields)


@pytest.mark.parametrize("name", ["missing.safetensors", "", "nul\0l", "x" * 300])
def test_a_path_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(ConceptError, match=r"cannot be read|is not a file"):
        Concept.load(f"{tmp_path}/{name}")


def test_an_endless_file_is_not_read(tmp_path):
    with pytest.raises(ConceptError, match="/dev/zero is not a file"):
        Concept.load("/dev/zero")


def test_an_error_in_a_file_names_the_file(make_concept, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(make_concept().to_bytes()[:-3])
    with pytest.raises(ConceptError, match=r"cut.safetensors: Tensor 'target_keys' ends at byte"):
        Concept.load(path)


def test_no_pickle_is_ever_run(tmp_path):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (ran,))

    array = io.BytesIO()
    np.save(array, np.array([Trap()], dtype=object), allow_pickle=True)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for data in (pickle.dumps(Trap(), protocol), array.getvalue()):
            with pytest.raises(ConceptError):
                Concept.from_bytes(data)
    assert not ran.exists()


def test_a_header_cannot_make_the_reader_allocate(make_concept):
    data = make_concept().to_bytes()
    liars = [
        struct.pack("<Q", 1 << 40) + data[8:],
        with_entry(data, "target_keys", shape=[1, 1 << 39], data_offsets=[0, 1 << 40]),
        with_entry(data, "target_keys", shape=[1 << 24, 1 << 23]),
    ]
    for liar in liars:
        tracemalloc.start()
        with pytest.raises(ConceptError):
            Concept.from_bytes(liar)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


# --- files made to break the reader: nothing but ConceptError may come out


HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1.5, 1e308, 1 << 47, 1 << 200),
    *("", "F32", "F64", "BOOL", "<b>", "\0", "\ud800", "é" * 600),
    *([], [0, 0], [0, 1 << 62], [[1]]),
    *({}, {"dtype": "F32"}, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
)


def mutate_bytes(data, chance):
    """Flips, cuts, insertions, doublings and overwritten stretches anywhere in the file."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at:at] = chance.randbytes(chance.randrange(1, 20))
        elif kind == 3:
            changed[at:at] = changed[at : at + chance.randrange(200)]
        else:
            changed[at : at + 8] = chance.randbytes(8)
    return bytes(changed)


def mutate_header(data, chance):
    """One value anywhere in the header replaced, removed or added, the JSON still well-formed."""
    header, body = split(data)
    spots = [(header, key) for key in header]
    spots += [(entry, key) for entry in header.values() for key in entry]
    holder, key = chance.choice(spots)
    kind = chance.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[chance.choice(("x", "embeddings.1", "__metadata__", "token", "data_offsets"))] = chance.choice(
            HOSTILE
        )
    elif kind == 2 and isinstance(holder[key], list):
        holder[key] = [value + chance.choice((-1, 1, 8, 1 << 40)) for value in holder[key]]
    else:
        holder[key] = chance.choice(HOSTILE)
    return join(header, body)


def mutate_numbers(data, chance):
    """The tensors' bytes overwritten, the header untouched."""
    at = 8 + int.from_bytes(data[:8], "little")
    changed = bytearray(data)
    for _ in range(chance.choice((1, 4, 50))):
        changed[chance.randrange(at, len(data))] = chance.choice((0x00, 0x7F, 0x80, 0xFF, 0x7C, 0xFC))
    return bytes(changed)


@pytest.mark.parametrize("mutate", [mutate_bytes, mutate_header, mutate_numbers])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(make_concept, mutate):
    chance = random.Random(0)
    originals = [make_concept().to_bytes(), make_concept(rows=2, target_keys=None).to_bytes("float32")]
    originals += [make_concept(rows=2, width=128).to_bytes("int8")]
    refused: list[str] = []
    for _ in range(2500):
        data = mutate(chance.choice(originals), chance)
        try:
            concept = Concept.from_bytes(data)
        except ConceptError as error:
            refused.append(str(error))
        else:  # what was read is usable, and can be written and read again
            again = Concept.from_bytes(concept.to_bytes("float32"))
            assert (again.token, again.rows) == (concept.token, concept.rows)
    assert 250 < len(refused) < 2500  # most mutations matter, and some files stay valid
    assert all("\n" not in message and len(message) < 1000 for message in refused)


def test_every_truncation_is_refused(make_concept):
    data = make_concept().to_bytes()
    for length in range(len(data)):
        with pytest.raises(ConceptError):
            Concept.from_bytes(data[:length])


@pytest.mark.parametrize(
    ("names", "option"),
    [
        (["model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_in.bias"], "--model"),
        (["lora_unet_mid_block_attentions_0.lora_up.weight"], "--lora"),
        (["unet.mid_block.attentions.0.to_q.lora_A.weight"], "--lora"),
        (["emb_params"], "--embedding"),
        (["clip_g", "clip_l"], "--textual-inversion"),
        (["down_blocks.0.resnets.0.conv1.bias", "mid_block.resnets.0.conv1.bias"], "--model"),
    ],
)
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("size", [4, 3 << 20])
def test_a_file_that_is_something_else_is_told_where_it_belongs(names, option, metadata, size):
    tensors = {name: np.zeros((size // len(names), 1), np.float32) for name in names}
    with pytest.raises(ConceptError, match=f"expected a concept.*{option}"):
        Concept.from_bytes(safetensors.numpy.save(tensors, metadata))
