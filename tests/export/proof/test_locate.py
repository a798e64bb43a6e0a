"""When a graph is wrong, the message names the layer: tried by damaging one."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from perfusion.errors import ExportError
from perfusion.export.proof.locate import landmarks
from perfusion.export.proof.parity import check_parity
from perfusion.export.weights import save, store_as_float16


def damaged(model, weight, change):
    """A copy of the graph with one weight changed."""
    model = model.clone()
    value = model.graph.initializers[weight]
    value.const_value = ir.tensor(change(value.const_value.numpy()).astype(np.float32), name=weight)
    return model


@pytest.mark.parametrize(
    "graph, layer",
    [
        ("unet", "conv_in"),
        ("unet", "time_embedding.linear_2"),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"),
        ("unet", "up_blocks.1.resnets.1.conv2"),
        ("text_encoder", "encoder.layers.0.mlp.fc1"),
        ("vae_decoder", "decoder.mid_block.resnets.0.conv1"),
        ("vae_encoder", "quant_conv"),
    ],
)
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_a_damaged_layer_is_the_one_that_is_named(graphs, base, converted, tmp_path, graph, layer, stored):
    name = f"{next(iter(dict(graphs[graph].module.named_children())))}.{layer}.weight"
    model = damaged(converted[graph], name, lambda array: array * np.float32(1.25))
    if stored == "float16":
        assert store_as_float16(model) > 5
    save(model, tmp_path / "graph.onnx")
    with pytest.raises(
        ExportError, match=rf"^{graph}: .*; they part first at {layer.replace('.', '[.]')}, by \d\.\de-0\d"
    ):
        check_parity(graphs[graph], tmp_path / "graph.onnx", vocab_size=base.vocab_size)
    assert [path.name for path in tmp_path.iterdir()] == ["graph.onnx"]


def test_every_linear_and_convolution_of_a_unet_is_a_landmark(graphs, exported):
    from torch import nn

    found = landmarks(onnx.load(exported.folder / "unet.onnx"))
    layers = {
        name
        for name, module in graphs["unet"].module.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert layers <= set(found)
    assert len(set(found.values())) == len(found)


LAYER = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def rewired(model, wrong, right, *, only=""):
    """A copy in which the nodes that have an input named with `only` read `wrong` in the place of `right`."""
    model = model.clone()
    ends = {value.name: value for value in model.graph.inputs}
    touched = 0
    for node in model.graph:
        names = [value.name for value in node.inputs if value is not None]
        if right in names and any(only in name for name in names):
            node.replace_input_with(names.index(right), ends[wrong])
            touched += 1
    assert touched
    return model


@pytest.mark.parametrize(
    "wrong, right, only, layer",
    [
        (
            "encoder_hidden_states",
            "key_hidden_states",
            f"{LAYER}.to_k",
            f"{LAYER}.to_k",
        ),  # keys are not locked
        ("key_gate", "value_gate", "", "attn2.to_out.0"),  # gates in the wrong order
        ("concept_keys", "concept_values", "", "attn2.to_out.0"),
    ],
)
def test_a_concept_input_that_is_read_in_the_wrong_place_is_found_with_its_layer(
    graphs, base, converted, tmp_path, wrong, right, only, layer
):
    save(rewired(converted["unet"], wrong, right, only=only), tmp_path / "graph.onnx")
    with pytest.raises(ExportError, match=rf"they part first at [\w.]*{layer.replace('.', '[.]')}, by "):
        check_parity(graphs["unet"], tmp_path / "graph.onnx", vocab_size=base.vocab_size)


def test_concepts_of_one_row_of_a_batch_in_all_of_them_are_found(graphs, base, converted, tmp_path):
    """The gates of the first row for every row, which no batch of one shows."""
    model = converted["unet"].clone()
    gate = next(value for value in model.graph.inputs if value.name == "value_gate")
    first = ir.Value(name="first", const_value=ir.tensor(np.array([0], np.int64), name="first"))
    model.graph.register_initializer(first)
    node = ir.node("Gather", [gate, first], {"axis": 0})
    gate.replace_all_uses_with(node.outputs[0])
    node.replace_input_with(0, gate)
    model.graph.insert_before(model.graph[0], [node])
    save(model, tmp_path / "graph.onnx")
    with pytest.raises(ExportError, match=r"batch 3 of mixed rows, .* first at [\w.]*attn2\.to_out\.0, by "):
        check_parity(graphs["unet"], tmp_path / "graph.onnx", vocab_size=base.vocab_size)


@pytest.mark.parametrize("layer", ["time_embedding.linear_2", "conv_in"])
def test_a_damaged_bias_is_found_with_its_layer(graphs, base, converted, tmp_path, layer):
    model = damaged(converted["unet"], f"unet.{layer}.bias", lambda array: array + np.float32(0.5))
    save(model, tmp_path / "graph.onnx")
    with pytest.raises(ExportError, match=rf"they part first at {layer.replace('.', '[.]')}, by "):
        check_parity(graphs["unet"], tmp_path / "graph.onnx", vocab_size=base.vocab_size)
