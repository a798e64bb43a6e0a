"""From torch to ONNX: the names and dimensions of the contract, and nothing of this machine in the file."""

import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from perfusion.errors import ExportError
from perfusion.export.convert import OPSET, to_onnx
from perfusion.export.graph_modules import End, Graph

EXPECTED = {
    "text_encoder": (
        {"input_ids": ("batch", 77), "concept_embeddings": ("concepts", 16)},
        {"last_hidden_state": ("batch", 77, 16)},
    ),
    "unet": (
        {
            "sample": ("batch", 4, "height", "width"),
            "timestep": ("batch",),
            "encoder_hidden_states": ("batch", "tokens", 16),
            "key_hidden_states": ("batch", "tokens", 16),
            "key_gate": ("batch", "tokens", "concepts"),
            "value_gate": ("batch", "tokens", "concepts"),
            "concept_keys": ("concepts", 40),
            "concept_values": ("concepts", 40),
            "regions": ("batch", "regions", "height", "width"),
        },
        {"out_sample": ("batch", 4, "height", "width")},
    ),
    "vae_decoder": (
        {"latent_sample": ("batch", 4, "height", "width")},
        {"sample": ("batch", 3, "picture_height", "picture_width")},
    ),
    "vae_encoder": (
        {"sample": ("batch", 3, "picture_height", "picture_width")},
        {"latent_sample": ("batch", 4, "height", "width")},
    ),
}


def ends(values):
    return {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_inputs_and_outputs_are_those_of_the_contract(exported, name):
    graph = onnx.load(exported.folder / f"{name}.onnx").graph
    assert (ends(graph.input), ends(graph.output)) == EXPECTED[name]
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds.pop("input_ids", onnx.TensorProto.INT64) == onnx.TensorProto.INT64
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_graph_is_valid_onnx_of_the_promised_opset(exported, name):
    model = onnx.load(exported.folder / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": OPSET}
    assert not model.functions


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_holds_no_path_and_no_trace_of_where_it_was_made(exported, name):
    model = onnx.load(exported.folder / f"{name}.onnx")
    assert not model.metadata_props
    assert not model.graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not model.graph.value_info
    content = (exported.folder / f"{name}.onnx").read_bytes()
    here = [str(Path(__file__).parents[2]), str(Path.home()), sys.prefix, str(exported.folder)]
    for trace in (*here, "site-packages", ".py", "torch.nn"):
        assert trace.encode() not in content


def test_the_weights_are_in_the_graph_once(exported):
    """No constant of size hides in a node."""
    for name in EXPECTED:
        for node in onnx.load(exported.folder / f"{name}.onnx").graph.node:
            assert node.ByteSize() < 2048, (name, node.op_type, node.name)


class Fails(nn.Module):
    def forward(self, sample: Tensor) -> Tensor:
        if float(sample.sum()) > 0:  # a branch on data, which no graph can hold
            return sample
        return -sample


class Doubles(nn.Module):
    def forward(self, sample: Tensor) -> Tensor:
        return torch.cat([sample, sample])


def graph_of(module: nn.Module, *, output: End) -> Graph:
    sample = End(name="sample", dims=("batch", 3))
    return Graph(name="trial", module=module, inputs=(sample,), outputs=(output,), example={"batch": 2})


def test_a_module_that_no_graph_can_hold_is_an_error_of_one_line_with_the_graphs_name():
    with pytest.raises(ExportError, match=r"^trial: torch\.onnx could not convert it: ") as refused:
        to_onnx(graph_of(Fails(), output=End(name="out", dims=("batch", 3))))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dims", [("batch", 4), ("batch", "width"), (4, 3), ("batch", 3, 1)])
def test_an_output_of_other_dimensions_than_declared_is_an_error(dims):
    with pytest.raises(ExportError, match=r"trial: the exporter made out \(.*, 3\), expected out \("):
        to_onnx(graph_of(Doubles(), output=End(name="out", dims=dims)))
