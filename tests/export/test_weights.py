"""Storing weights as float16 and in other files: the numbers must not move by a bit."""

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.numpy

from perfusion.export.weights import (
    SMALLEST,
    exact_float16,
    link_weights,
    save,
    store_as_float16,
    stored_tensors,
)

WEIGHTS = ("text_encoder", "unet", "vae")


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, 65504.0, 2.0**-24, np.inf, -np.inf])
def test_numbers_that_float16_has_are_kept_to_the_bit(value):
    array = np.array([value, 1.0], np.float32)
    half = exact_float16(array)
    assert half is not None
    assert half.dtype == np.float16
    assert half.astype(np.float32).tobytes() == array.tobytes()


@pytest.mark.parametrize("value", [0.1, 1 + 2.0**-11, 65520.0, 2.0**-25, 1e30])
def test_one_number_that_float16_has_not_keeps_the_array_as_it_is(value):
    assert exact_float16(np.array([1.0, value], np.float32)) is None


def feeds_of(name: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    return {
        "text_encoder": {
            "input_ids": random.integers(0, 500, (2, 77)),
            "concept_embeddings": normal(1, 16),
        },
        "unet": {
            "sample": normal(2, 4, 8, 8),
            "timestep": np.full(2, 100, np.float32),
            "encoder_hidden_states": normal(2, 77, 16),
            "key_hidden_states": normal(2, 77, 16),
            "key_gate": normal(2, 77, 1),
            "value_gate": normal(2, 77, 1),
            "concept_keys": normal(1, 40),
            "concept_values": normal(1, 40),
            "regions": np.ones((2, 1, 8, 8), np.float32),
        },
        "vae_decoder": {"latent_sample": normal(1, 4, 8, 8)},
        "vae_encoder": {"sample": normal(1, 3, 32, 32)},
    }[name]


@pytest.fixture(scope="module")
def expected(converted, open_session, tmp_path_factory) -> dict[str, np.ndarray]:
    """What the graphs give with their weights stored as the exporter left them."""
    folder = tmp_path_factory.mktemp("float32")
    outputs = {}
    for name, model in converted.items():
        save(model.clone(), folder / f"{name}.onnx")
        outputs[name] = open_session(folder / f"{name}.onnx").run(None, feeds_of(name))[0]
    return outputs


GRAPHS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_stored_as_float16_give_the_same_output_bit_for_bit(
    converted, expected, open_session, tmp_path, name
):
    model = converted[name].clone()
    assert store_as_float16(model) > 5
    save(model, tmp_path / "graph.onnx")
    found = open_session(tmp_path / "graph.onnx").run(None, feeds_of(name))[0]
    np.testing.assert_array_equal(found, expected[name])
    large = [
        tensor
        for tensor in onnx.load(tmp_path / "graph.onnx").graph.initializer
        if len(tensor.raw_data) >= SMALLEST
    ]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("name", GRAPHS)
def test_linked_weights_give_the_same_output_bit_for_bit(
    converted, expected, open_session, toy_model, tmp_path, name
):
    folder = tmp_path / "model"
    copy_weights(toy_model, folder)
    model = converted[name].clone()
    linked, embedded = link_weights(model, folder, stored_tensors(folder, *WEIGHTS))
    assert linked > 5
    assert embedded <= 2  # the causal mask, which is no weight of the model
    save(model, folder / "graph.onnx")
    found = open_session(folder / "graph.onnx").run(None, feeds_of(name))[0]
    np.testing.assert_array_equal(found, expected[name])


def copy_weights(source, target):
    for part in WEIGHTS:
        (target / part).mkdir(parents=True)
        for path in (source / part).glob("*.safetensors"):
            (target / part / path.name).write_bytes(path.read_bytes())


def test_links_point_at_the_bytes_of_the_named_file(converted, toy_model):
    """Read with the onnx package, which knows nothing of safetensors."""
    model = converted["unet"].clone()
    link_weights(model, toy_model, stored_tensors(toy_model, *WEIGHTS))
    stored = safetensors.numpy.load_file(toy_model / "unet/diffusion_pytorch_model.safetensors")
    checked = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        original = stored.get(name.removeprefix("unet.").removesuffix(".float16"))
        if isinstance(tensor, ir.ExternalTensor) and original is not None:
            np.testing.assert_array_equal(tensor.numpy(), original)
            checked += 1
    assert checked > 20


def small_model(weight: np.ndarray) -> ir.Model:
    """y = x @ weight"""
    x = ir.Value(name="x", shape=ir.Shape(["batch", weight.shape[0]]), type=ir.TensorType(ir.DataType.FLOAT))
    held = ir.Value(name="weight", const_value=ir.tensor(weight, name="weight"))
    node = ir.node("MatMul", [x, held])
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["batch", weight.shape[1]]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[node], initializers=[held], opset_imports={"": 20}, name="main")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_is_found_in_either_layout(open_session, tmp_path, transposed):
    """Also at an odd offset: a safetensors header may have any length."""
    weight = np.random.default_rng(0).normal(size=(32, 24)).astype(np.float16)
    (tmp_path / "part").mkdir()
    stored = {"matrix": np.ascontiguousarray(weight.T if transposed else weight)}
    content = safetensors.numpy.save(stored)
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip() + b" " * 5
    shifted = len(header).to_bytes(8, "little") + header + content[8 + size :]
    (tmp_path / "part/weights.safetensors").write_bytes(shifted)
    model = small_model(weight.astype(np.float32))
    assert link_weights(model, tmp_path, stored_tensors(tmp_path, "part")) == (1, 0)
    save(model, tmp_path / "graph.onnx")
    x = np.eye(32, dtype=np.float32)
    found = open_session(tmp_path / "graph.onnx").run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, weight.astype(np.float32))
    assert (tmp_path / "graph.onnx").stat().st_size < weight.nbytes / 2


def test_a_weight_that_differs_in_one_bit_is_not_linked(tmp_path):
    weight = np.random.default_rng(0).normal(size=(32, 24)).astype(np.float16)
    (tmp_path / "part").mkdir()
    other = weight.copy()
    other.view(np.uint16)[5, 5] ^= 1
    safetensors.numpy.save_file({"matrix": other}, tmp_path / "part/weights.safetensors")
    tensors = stored_tensors(tmp_path, "part")
    assert link_weights(small_model(weight.astype(np.float32)), tmp_path, tensors) == (0, 1)


def test_weights_that_float16_cannot_hold_stay_float32(tmp_path):
    weight = np.full((32, 24), 0.1, np.float32)
    model = small_model(weight)
    assert store_as_float16(model) == 0
    assert link_weights(model, tmp_path, {}) == (0, 0)
    assert [node.op_type for node in model.graph] == ["MatMul"]


def test_weights_beyond_a_file_s_limit_go_beside_it(monkeypatch, open_session, tmp_path):
    monkeypatch.setattr("perfusion.export.weights.INLINE_LIMIT", 1000)
    weight = np.random.default_rng(0).normal(size=(32, 24)).astype(np.float32)
    save(small_model(weight), tmp_path / "graph.onnx")
    assert (tmp_path / "graph.onnx.data").stat().st_size == weight.nbytes
    found = open_session(tmp_path / "graph.onnx").run(None, {"x": np.eye(32, dtype=np.float32)})[0]
    np.testing.assert_array_equal(found, weight)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a file's size is Linux's here")
@pytest.mark.parametrize("free, message", [(1000, "No space left on device"), (10**9, "Input/output error")])
def test_a_weight_that_is_cut_short_beside_the_graph_says_why(monkeypatch, tmp_path, free, message):
    """numpy tells how much was written and not why; whether the disk was full is for us to find."""
    import resource

    monkeypatch.setattr("perfusion.export.weights.INLINE_LIMIT", 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, free=free))
    weight = np.random.default_rng(0).normal(size=(320, 24)).astype(np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=message):
            save(small_model(weight), tmp_path / "graph.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
