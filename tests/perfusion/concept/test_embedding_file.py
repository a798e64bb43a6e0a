"""Files of embeddings: what is read in each layout, and what is refused with which sentence."""

import hashlib
import io

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from perfusion.concept.embedding_file import Embedding
from perfusion.errors import ConceptError

TABLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
SECOND = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["emb_params", "<cat-toy>", "anything"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_table_is_read_whatever_its_name_and_numbers(name, dtype):
    loaded = Embedding.from_bytes(save({name: TABLE.to(dtype)}), "bad")
    (vectors,) = loaded.vectors
    np.testing.assert_array_equal(vectors, TABLE.to(dtype).float().numpy())
    assert loaded.rows == 3 and loaded.widths == (8,)


def test_a_single_vector_may_have_one_dimension():
    assert Embedding.from_bytes(save({"emb_params": TABLE[0]}), "bad").vectors[0].shape == (1, 8)


@pytest.mark.parametrize("pair", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_two_tables_come_in_the_order_of_the_text_encoders(pair):
    data = save({pair[1]: SECOND, pair[0]: TABLE})
    loaded = Embedding.from_bytes(data, "bad")
    np.testing.assert_array_equal(loaded.vectors[0], TABLE)
    np.testing.assert_array_equal(loaded.vectors[1], SECOND)


def test_the_files_name_is_the_word_and_its_hash_is_the_files(tmp_path):
    path = tmp_path / "EasyNegative.safetensors"
    save_file({"emb_params": TABLE}, path)
    loaded = Embedding.load(path)
    assert loaded.word == "EasyNegative"
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Embedding.load(path, "ugly").word == "ugly"


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_whatever_their_name(tmp_path, zipped):
    path, buffer = tmp_path / "bad.safetensors", io.BytesIO()
    torch.save({"string_to_param": {"*": TABLE}}, buffer, _use_new_zipfile_serialization=zipped)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ConceptError, match=r"bad.safetensors: This is a pickle.*get the embedding as"):
        Embedding.load(path)


@pytest.mark.parametrize(
    "tensors, sentence",
    [
        ({"a": TABLE, "b": TABLE + 1}, r"2 tensors \(a, b\), expected one table"),
        ({"emb_params": TABLE.long()}, "I64 of shape"),
        ({"emb_params": TABLE[None]}, r"F32 of shape \(1, 3, 8\)"),
        ({"emb_params": TABLE / 0}, "NaN or infinity"),
        ({"clip_l": TABLE, "clip_g": SECOND[:2]}, "clip_l has 3 vectors and clip_g 2"),
    ],
)
def test_what_is_no_embedding_is_told(tensors, sentence):
    with pytest.raises(ConceptError, match=sentence):
        Embedding.from_bytes(save(tensors), "bad")


@pytest.mark.parametrize("word", ["", " bad", "a(b", "a:b", "{bad}", "a BREAK b", "b\u200bad", "b" * 65])
def test_a_word_that_no_prompt_can_hold_is_refused(word):
    with pytest.raises(ConceptError, match=r"The embedding's word is .*another word\.$"):
        Embedding.from_bytes(save({"emb_params": TABLE}), word)


def test_damaged_and_missing_files_are_told(tmp_path):
    path = tmp_path / "bad.safetensors"
    with pytest.raises(ConceptError, match="cannot be read: no such file"):
        Embedding.load(path)
    path.write_bytes(save({"emb_params": TABLE})[:-4])
    with pytest.raises(ConceptError, match="no safetensors file, or a damaged one"):
        Embedding.load(path)
    with pytest.raises(ConceptError, match="is not a file"):
        Embedding.load(tmp_path)
