"""When a graph is wrong, the message names the layer: tried by damaging one."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from perfusion.errors import ExportError
from perfusion.export.locate import landmarks
from perfusion.export.parity import check_parity
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
