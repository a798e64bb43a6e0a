"""Shapes carried through a graph, against onnxruntime's real arrays and the onnx package's own inference."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, shape_inference

from perfusion.devices.graph_reader.onnx_file import read_graph
from perfusion.devices.graph_reader.shapes import trace
from perfusion.embedded import bundle_path
from perfusion.errors import BundleError

SIZES = {
    "batch": 2,
    "height": 8,
    "width": 12,
    "tokens": 14,
    "regions": 2,
    "concepts": 3,
    "picture_height": 64,
    "picture_width": 96,
}


def saved(tmp_path, nodes, inputs, outputs, initializers=(), opset=20):
    """A model written to a file; inputs and outputs are (name, kind, dims)."""
    given, made = ([helper.make_tensor_value_info(*end) for end in group] for group in (inputs, outputs))
    graph = helper.make_graph(nodes, "g", given, made, initializer=list(initializers))
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_every_inner_shape_of_a_real_graph_is_what_onnxruntime_computes(tmp_path, name):
    path = bundle_path() / f"{name}.onnx"
    traced = trace(read_graph(path), SIZES)
    model = onnx.load(path)
    names = [out for node in model.graph.node for out in node.output if out]
    model.graph.ClearField("output")
    model.graph.output.extend(onnx.ValueInfoProto(name=one) for one in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {
        end.name: np.zeros(
            [SIZES.get(dim, dim) for dim in end.shape], np.int64 if "int" in end.type else np.float32
        )
        for end in session.get_inputs()
    }
    for value, array in zip(names, session.run(names, feeds), strict=True):
        assert traced.shapes[value] == np.shape(array), value
        assert traced.bytes(value) == np.asarray(array).nbytes, value


OPERATORS = {
    "Concat": ([("a", [2, 3]), ("b", [2, 5])], {"axis": 1}),
    "Gemm": ([("a", [3, 4]), ("b", [5, 3]), ("c", [5])], {"transA": 1, "transB": 1}),
    "Conv": (
        [("a", [1, 4, 9, 8]), ("w", [6, 2, 3, 3])],
        {"group": 2, "strides": [2, 1], "pads": [1, 0, 1, 2]},
    ),
    "AveragePool": ([("a", [1, 4, 9, 8])], {"kernel_shape": [3, 2], "strides": [2, 2]}),
    "GlobalAveragePool": ([("a", [1, 4, 9, 8])], {}),
    "MatMul": ([("a", [5, 1, 2, 3]), ("b", [4, 3, 6])], {}),
    "Flatten": ([("a", [2, 3, 4])], {"axis": 2}),
    "Transpose": ([("a", [2, 3, 4])], {"perm": [2, 0, 1]}),
    "ArgMax": ([("a", [2, 3, 4])], {"axis": 1, "keepdims": 0}),
    "Softmax": ([("a", [2, 3])], {"axis": -1}),
    "Add": ([("a", [2, 1, 4]), ("b", [3, 1])], {}),
    "LayerNormalization": ([("a", [2, 3, 4]), ("s", [4])], {}),
    "Split": ([("a", [2, 8])], {"axis": 1, "num_outputs": 3}),
    "DynamicQuantizeLinear": ([("a", [2, 3])], {}),
}


@pytest.mark.parametrize("op", OPERATORS)
def test_an_operators_shape_is_what_the_onnx_package_infers(tmp_path, op):
    given, attributes = OPERATORS[op]
    count = 3 if op in ("DynamicQuantizeLinear", "Split") else 1
    outputs = [f"y{at}" for at in range(count)]
    inputs = [(name, TensorProto.FLOAT, dims) for name, dims in given]
    nodes = [helper.make_node(op, [name for name, _ in given], outputs, **attributes)]
    path = saved(tmp_path, nodes, inputs, [(one, TensorProto.UNDEFINED, None) for one in outputs])
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=one) for one in outputs)
    theirs = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    traced = trace(read_graph(path), {})
    for value in theirs.graph.output:
        kind = value.type.tensor_type
        assert traced.shapes[value.name] == tuple(dim.dim_value for dim in kind.shape.dim)
        assert traced.dtypes[value.name] == kind.elem_type


def test_integer_arithmetic_of_a_quantised_graph_keeps_its_widths(tmp_path):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["y"]),
    ]
    weight = helper.make_tensor("w", TensorProto.INT8, [4, 6], bytes(24), raw=True)
    path = saved(tmp_path, nodes, [("x", 1, ["batch", 4])], [("y", 1, ["batch", 6])], [weight])
    traced = trace(read_graph(path), {"batch": 10})
    assert [traced.bytes(name) for name in ("q", "w", "sum", "y")] == [40, 24, 240, 240]


def test_half_counts_float32_as_two_bytes_and_whole_numbers_as_they_are(tmp_path):
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    table = helper.make_tensor("table", TensorProto.FLOAT, [10, 4], bytes(160), raw=True)
    path = saved(tmp_path, nodes, [("ids", TensorProto.INT64, [3])], [("y", 1, [3, 4])], [table])
    traced = trace(read_graph(path), {}, half=True)
    assert (traced.bytes("table"), traced.bytes("ids"), traced.bytes("y")) == (80, 24, 24)


def test_attention_that_stays_in_float32_is_counted_so_in_an_export_in_half(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["query"]),
        helper.make_node("MatMul", ["query", "key"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "value"], ["attended"]),
        helper.make_node("Mul", ["attended", "attended"], ["y"]),
    ]
    inputs = [("x", 1, [10, 4]), ("key", 1, [4, 10]), ("value", 1, [10, 4])]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], bytes(64), raw=True)
    graph = read_graph(saved(tmp_path, nodes, inputs, [("y", 1, [10, 4])], [weight]))
    traced = trace(graph, {}, half=True, wide_attention=True)
    wide = ("query", "key", "scores", "shares", "value", "attended")
    assert [traced.bytes(name) for name in wide] == [160, 160, 400, 400, 160, 160]
    assert [traced.bytes(name) for name in ("x", "w", "y")] == [80, 32, 80]


def test_attention_as_one_operator_stays_in_float32_too(tmp_path):
    ends = [(name, 1, [1, 2, 10, 4]) for name in ("q", "k", "v")]
    nodes = [helper.make_node("Attention", ["q", "k", "v"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    graph = read_graph(saved(tmp_path, nodes, ends, [("y", 1, [1, 2, 10, 4])], opset=23))
    traced = trace(graph, {}, half=True, wide_attention=True)
    assert [traced.bytes(name) for name in ("q", "k", "v", "a", "y")] == [320, 320, 320, 320, 160]


def test_an_unknown_operator_is_named(tmp_path):
    path = saved(tmp_path, [helper.make_node("NonZero", ["x"], ["y"])], [("x", 1, [3])], [("y", 7, None)])
    with pytest.raises(BundleError, match=r"the operator NonZero on \[3\] cannot be followed"):
        trace(read_graph(path), {})


def test_sizes_that_do_not_suit_the_graph_are_refused():
    graph = read_graph(bundle_path() / "unet.onnx")
    with pytest.raises(BundleError, match=r"(Concat|Mul) on .* cannot be followed"):
        trace(graph, SIZES | {"height": 9})


def test_a_dimension_without_a_size_is_named():
    graph = read_graph(bundle_path() / "unet.onnx")
    with pytest.raises(BundleError, match="the size of sample's dimension 'height' is not known"):
        trace(graph, {"batch": 1})
