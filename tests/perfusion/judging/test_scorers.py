"""The scorer of two ONNX graphs, on graphs whose answers can be computed by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from perfusion.errors import ModelError
from perfusion.judging.scorer import OnnxScorer, unit
from recipes.pocket.tokenizer import build_tokenizer

LENGTH = 8
TOKENIZER = build_tokenizer(["a", "cat", "red"], context_length=LENGTH)


def graph(path: Path, name: str, shape: list[int | str], kind: int, node, extra: list | None = None) -> None:
    """One operator from the graph's input to its embeddings."""
    made = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)],
        extra or [],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture's embedding is its mean colour, a text's its token ids."""
    mean = helper.make_node("ReduceMean", ["pictures"], ["embeddings"], axes=[2, 3], keepdims=0)
    graph(tmp_path / "image.onnx", "pictures", ["batch", 3, 4, 4], TensorProto.FLOAT, mean)
    cast = helper.make_node("Cast", ["input_ids"], ["embeddings"], to=TensorProto.FLOAT)
    graph(tmp_path / "text.onnx", "input_ids", ["batch", LENGTH], TensorProto.INT64, cast)
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.backend_tokenizer.to_str())
    return tmp_path


def test_pictures_reach_the_graph_in_its_size_and_between_minus_one_and_one(folder: Path) -> None:
    pictures = [Image.new("RGB", (4, 4), (255, 0, 51)), Image.new("RGBA", (9, 7), (0, 255, 255, 255))]
    found = OnnxScorer(folder).embed_pictures(pictures)
    np.testing.assert_allclose(found, unit(np.array([[1, -1, -0.6], [-1, 1, 1]])), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_texts_are_framed_padded_and_cut_as_by_the_models_own_tokenizer(folder: Path) -> None:
    texts = ["a cat", "A RED cat a red cat a red cat", ""]
    expected = TOKENIZER(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np")
    found = OnnxScorer(folder).embed_texts(texts)
    np.testing.assert_allclose(found, unit(expected.input_ids), atol=1e-6)


def test_many_pictures_are_judged_as_one_by_one(folder: Path) -> None:
    pictures = [Image.new("RGB", (4, 4), (level, 9, 200)) for level in range(70)]
    scorer = OnnxScorer(folder)
    alone = np.concatenate([scorer.embed_pictures([picture]) for picture in pictures])
    np.testing.assert_allclose(scorer.embed_pictures(pictures), alone, atol=1e-6)


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", "tokenizer.json"])
def test_missing_and_damaged_files_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x00 no such thing")
    with pytest.raises(ModelError, match=rf"{name} is not a "):
        OnnxScorer(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"has no {name}, expected a scorer's folder with image.onnx"):
        OnnxScorer(folder)


def test_graphs_with_other_ends_are_refused(folder: Path) -> None:
    cast = helper.make_node("Cast", ["input_ids"], ["embeddings"], to=TensorProto.FLOAT)
    graph(folder / "text.onnx", "input_ids", ["batch", "length"], TensorProto.INT64, cast)
    with pytest.raises(ModelError, match=r"text\.onnx takes .* expected input_ids of 2 dimensions"):
        OnnxScorer(folder)
    mean = helper.make_node("ReduceMean", ["pictures"], ["features"], axes=[2, 3], keepdims=0)
    graph(folder / "image.onnx", "pictures", ["batch", 3, 4, 4], TensorProto.FLOAT, mean)
    with pytest.raises(ModelError, match=r"image\.onnx takes .* gives features, expected pictures"):
        OnnxScorer(folder)


def test_rows_of_zeros_have_no_direction_and_stay() -> None:
    np.testing.assert_array_equal(unit(np.array([[0.0, 0.0], [3.0, 4.0]])), np.float32([[0, 0], [0.6, 0.8]]))
