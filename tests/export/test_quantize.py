"""Int8 graphs against onnxruntime's own quantiser, and what stays as it was."""

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from perfusion.errors import ExportError
from perfusion.export.proof.parity import TOLERANCES, check_parity
from perfusion.export.proof.trials import make_trials, relative_error
from perfusion.export.quantize import quantize
from perfusion.export.weights import save


@pytest.fixture(scope="module")
def quantized(converted, tmp_path_factory):
    """The text encoder and the UNet in int8, by name, and how many products each has."""
    folder = tmp_path_factory.mktemp("int8")
    made = {}
    for name in ("text_encoder", "unet"):
        model = converted[name].clone()
        count = quantize(model)
        save(model, folder / f"{name}.onnx")
        made[name] = folder / f"{name}.onnx", count
    return made


@pytest.mark.parametrize("name", ["text_encoder", "unet"])
@pytest.mark.filterwarnings("ignore")
def test_it_is_as_near_to_torch_as_onnxruntimes_quantiser_with_the_same_range(
    quantized, converted, graphs, base, open_session, tmp_path, name
):
    save(converted[name].clone(), tmp_path / "plain.onnx")
    quantize_dynamic(
        tmp_path / "plain.onnx", tmp_path / "theirs.onnx", op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
    )  # fmt: skip
    (trial, *_) = make_trials(graphs[name], vocab_size=base.vocab_size)
    errors = [
        relative_error(open_session(path).run(None, trial.feeds)[0], trial.expected[0])
        for path in (quantized[name][0], tmp_path / "theirs.onnx")
    ]
    assert 1e-4 < errors[0] < TOLERANCES["int8"]
    assert errors[0] == pytest.approx(errors[1], rel=0.2)


@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_every_product_by_a_weight_is_in_eight_bits_and_nothing_else(quantized, converted, name):
    path, count = quantized[name]
    model, plain = onnx.load(path), converted[name]
    operators = [node.op_type for node in model.graph.node]
    before = [node.op_type for node in plain.graph]
    assert operators.count("MatMulInteger") == count
    inner = sum(
        node.op_type == "MatMul" and not node.inputs[1].is_initializer() for node in plain.graph
    )  # attention's own and the concepts'
    assert operators.count("MatMul") == inner
    assert operators.count("Conv") == before.count("Conv")
    eight = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert len(eight) == count
    for tensor in eight:  # seven of the eight bits, see `perfusion.export.quantize`
        assert np.abs(onnx.numpy_helper.to_array(tensor)).max() == 63
    onnx.checker.check_model(model, full_check=True)


def test_rows_of_a_gemm_with_and_without_a_bias_are_the_product(open_session, tmp_path):
    """Weights that eight bits hold exactly and inputs that do: the product is exact."""
    import onnx_ir as ir

    random = np.random.default_rng(0)
    weight = random.integers(-63, 64, (24, 16)).astype(np.float32)
    weight[:, 0] = 63
    weight[0] = 0
    weight[0, 0] = 63
    bias = random.normal(size=24).astype(np.float32)
    x = ir.Value(name="x", shape=ir.Shape(["n", 16]), type=ir.TensorType(ir.DataType.FLOAT))
    held = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name))
        for name, array in (("w", weight), ("b", bias))
    ]
    node = ir.node("Gemm", [x, *held], {"transB": 1})
    node.outputs[0].name = "y"
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(["n", 24]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=held, opset_imports={"": 20}, name="main")
    model = ir.Model(graph, ir_version=10)
    assert quantize(model) == 1
    save(model, tmp_path / "graph.onnx")
    feed = random.integers(0, 256, (5, 16)).astype(np.float32)
    feed[:, :2] = (0, 255)  # the whole range, so that a step is one
    found = open_session(tmp_path / "graph.onnx").run(None, {"x": feed})[0]
    np.testing.assert_allclose(found, feed @ weight.T + bias, rtol=1e-6, atol=1e-3)


def test_a_whole_int8_export_says_how_far_it_is_off(exported, int8_exported):
    assert int8_exported.manifest["precision"] == "int8"
    assert 1e-3 < int8_exported.parity["unet"] < TOLERANCES["int8"]
    for name in ("vae_decoder.onnx", "vae_encoder.onnx"):  # convolutions stay
        assert int8_exported.manifest["files"][name] == exported.manifest["files"][name]


def test_the_first_diverging_layer_is_found_in_int8_too(quantized, graphs, base):
    path, _ = quantized["unet"]
    with pytest.raises(ExportError, match=r"they part first at \w+\.[\w.]+, by "):
        check_parity(graphs["unet"], path, vocab_size=base.vocab_size, tolerance=1e-3)


def test_quantising_twice_gives_the_same_bytes(quantized, converted, tmp_path):
    path, _ = quantized["unet"]
    model = converted["unet"].clone()
    quantize(model)
    save(model, tmp_path / "graph.onnx")
    assert (tmp_path / "graph.onnx").read_bytes() == path.read_bytes()
