"""The reader of .onnx files against the onnx package's own, and files that try to break it."""

import mmap

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfusion.devices.graph_reader.onnx_file import read_graph
from perfusion.embedded import bundle_path
from perfusion.errors import BundleError

GRAPHS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_real_graph_reads_as_the_onnx_package_reads_it(name):
    path = bundle_path() / f"{name}.onnx"
    ours, theirs = read_graph(path), onnx.load(path, load_external_data=False).graph
    assert [(node.op, list(node.inputs), list(node.outputs)) for node in ours.nodes] == [
        (node.op_type, list(node.input), list(node.output)) for node in theirs.node
    ]
    for node, other in zip(ours.nodes, theirs.node, strict=True):
        wanted = {one.name: helper.get_attribute_value(one) for one in other.attribute}
        assert set(node.attributes) == set(wanted)
        for key, value in wanted.items():
            if isinstance(value, onnx.TensorProto):
                np.testing.assert_array_equal(node.attributes[key].values, numpy_helper.to_array(value))
            elif isinstance(value, bytes):
                assert node.attributes[key] == value.decode()
            else:
                assert node.attributes[key] == pytest.approx(value)
    assert {name: (one.dtype, one.shape) for name, one in ours.initializers.items()} == {
        one.name: (one.data_type, tuple(one.dims)) for one in theirs.initializer
    }
    for end, other in zip((*ours.inputs, *ours.outputs), (*theirs.input, *theirs.output), strict=True):
        dims = [dim.dim_param or dim.dim_value for dim in other.type.tensor_type.shape.dim]
        assert (end.name, end.dtype, list(end.dims)) == (other.name, other.type.tensor_type.elem_type, dims)


def tensor_model(*tensors):
    return helper.make_model(helper.make_graph([], "g", [], [], initializer=list(tensors)))


def save(tmp_path, model):
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["float32", "int64", "int32", "bool", "float64"])
def test_small_tensors_keep_their_numbers_however_they_are_stored(tmp_path, kind, raw):
    values = np.asarray([[-3, 0, 1], [7, 100, 2]]).astype(kind)
    dtype = helper.np_dtype_to_tensor_dtype(values.dtype)
    content = values.tobytes() if raw else values.ravel().tolist()
    tensor = helper.make_tensor("t", dtype, values.shape, content, raw=raw)
    read = read_graph(save(tmp_path, tensor_model(tensor))).initializers["t"]
    np.testing.assert_array_equal(read.values, values)
    assert read.bytes == values.nbytes


@pytest.mark.parametrize(
    ("dtype", "bytes_"),
    [
        (TensorProto.FLOAT16, 2000),
        (TensorProto.INT8, 1000),
        (TensorProto.INT4, 500),
        (TensorProto.BFLOAT16, 2000),
    ],
)
def test_weights_are_counted_in_their_own_width(tmp_path, dtype, bytes_):
    tensor = onnx.TensorProto(name="w", data_type=dtype, dims=[10, 100], raw_data=bytes(bytes_))
    graph = read_graph(save(tmp_path, tensor_model(tensor)))
    assert graph.weights == bytes_


def test_weights_that_lie_in_another_file_are_counted_and_not_looked_for(tmp_path):
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1000, 1000], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="not-there.data")
    assert read_graph(save(tmp_path, tensor_model(tensor))).weights == 4_000_000


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\xff" * 64, b"PK\x03\x04 a zip file", b'{"format": "json"}', bytes(range(256))]
)
def test_a_file_that_is_no_graph_is_refused_with_a_sentence(tmp_path, data):
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(
        BundleError, match=r"broken\.onnx is not a graph that can be read .*\. Export the bundle again"
    ):
        read_graph(path)


def test_a_graph_cut_off_anywhere_is_refused_or_shorter_and_never_a_crash(tmp_path):
    whole = (bundle_path() / "vae_decoder.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(whole), len(whole) // 60):
        path.write_bytes(whole[:length])
        try:
            assert len(read_graph(path).nodes) <= 236
        except BundleError:
            pass


def test_a_missing_file_is_refused_with_the_systems_reason(tmp_path):
    with pytest.raises(BundleError, match="cannot be read: no such file"):
        read_graph(tmp_path / "none.onnx")


def test_the_file_is_mapped_and_not_read(monkeypatch):
    mapped = []

    def recorded(*arguments, _map=mmap.mmap, **keywords):
        mapped.append(arguments)
        return _map(*arguments, **keywords)

    monkeypatch.setattr(mmap, "mmap", recorded)
    read_graph(bundle_path() / "vae_decoder.onnx")
    assert len(mapped) == 1
