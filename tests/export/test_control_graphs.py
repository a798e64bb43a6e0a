"""ControlNets in an export: the second UNet shares the first one's weights, and pictures are diffusers'."""

import json
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from PIL import Image

from perfusion.bundle.reader import read_bundle
from perfusion.devices.planning.memory_plan import plan_memory
from perfusion.errors import ExportError
from perfusion.export import export_bundle, weights
from perfusion.export.control_parts import local_controlnets
from perfusion.export.weights import save, share_weights
from perfusion.runtime import Runtime
from tests.runtime.test_bases import decibels, theirs

CALL: dict[str, Any] = {"width": 32, "height": 32, "num_inference_steps": 3, "guidance_scale": 4.0}


def model_of(**arrays):
    """A graph of nothing but weights."""
    values = [ir.Value(name=name, const_value=ir.Tensor(array, name=name)) for name, array in arrays.items()]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 20}, name="main")
    return ir.Model(graph, ir_version=10)


def externals(path):
    model = onnx.load(path, load_external_data=False)
    return {tensor.name for tensor in model.graph.initializer if tensor.external_data}


def test_equal_weights_of_one_name_are_shared_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "INLINE_LIMIT", 0)
    numbers = np.arange(4096, dtype=np.float32)
    save(model_of(same=numbers, other=numbers), tmp_path / "unet.onnx")
    second = model_of(same=numbers, other=numbers + 1, own=numbers)
    assert share_weights(second, tmp_path / "unet.onnx") == 1
    monkeypatch.setattr(weights, "INLINE_LIMIT", 1 << 30)
    save(second, tmp_path / "second.onnx")
    assert externals(tmp_path / "second.onnx") == {"same"}
    loaded = onnx.load(tmp_path / "second.onnx")
    (same,) = (tensor for tensor in loaded.graph.initializer if tensor.name == "same")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(same), numbers)


def test_weights_beyond_one_file_go_to_a_file_of_their_own_and_shared_ones_stay_where_they_are(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(weights, "INLINE_LIMIT", 0)
    numbers = np.arange(4096, dtype=np.float32)
    save(model_of(same=numbers), tmp_path / "unet.onnx")
    second = model_of(same=numbers, own=numbers + 1, small=numbers[:8])
    share_weights(second, tmp_path / "unet.onnx")
    save(second, tmp_path / "second.onnx")
    assert externals(tmp_path / "second.onnx") == {"same", "own"}
    assert (tmp_path / "second.onnx.data").stat().st_size == numbers.nbytes
    loaded = {tensor.name: onnx.numpy_helper.to_array(tensor)
              for tensor in onnx.load(tmp_path / "second.onnx").graph.initializer}  # fmt: skip
    np.testing.assert_array_equal(loaded["same"], numbers)
    np.testing.assert_array_equal(loaded["own"], numbers + 1)


def test_a_graph_that_holds_its_weights_shares_none(tmp_path):
    numbers = np.arange(4096, dtype=np.float32)
    save(model_of(same=numbers), tmp_path / "unet.onnx")
    assert share_weights(model_of(same=numbers), tmp_path / "unet.onnx") == 0


def test_a_name_that_is_no_files_is_refused():
    with pytest.raises(ExportError, match="is no name for a ControlNet"):
        local_controlnets({"../Canny": "canny"})


@pytest.fixture(scope="module")
def canny(toy_model, tmp_path_factory):
    """A ControlNet of the toy model, with zero convolutions that are none."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        toy_model, subfolder="unet", torch_dtype=torch.float32
    )
    torch.manual_seed(5)
    controlnet = diffusers.ControlNetModel.from_unet(
        unet, load_weights_from_unet=False, conditioning_embedding_out_channels=(8, 16, 32)
    )
    with torch.no_grad():
        for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block,
                      controlnet.controlnet_cond_embedding.conv_out):  # fmt: skip
            layer.weight.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("canny") / "canny"
    controlnet.eval().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_an_exported_controlnet_draws_diffusers_picture_and_the_plain_graph_stays(
    toy_model, canny, tmp_path, monkeypatch
):
    monkeypatch.setattr(weights, "INLINE_LIMIT", 10_000)
    plain = export_bundle(toy_model, tmp_path / "plain").folder
    folder = export_bundle(toy_model, tmp_path / "bundle", controlnets={"canny": canny}).folder
    for file in ("unet.onnx", "unet.onnx.data", "text_encoder.onnx"):
        assert (folder / file).read_bytes() == (plain / file).read_bytes()
    shared, own = externals(folder / "unet_controlnet.onnx"), externals(folder / "unet.onnx")
    assert own and len(shared & own) > 0.9 * len(own)
    assert not (folder / "unet_controlnet.onnx.data").exists()
    manifest = json.loads((folder / "bundle.json").read_text())
    assert [model["name"] for model in manifest["controlnets"]["models"]] == ["canny"]
    assert {"unet_controlnet", "controlnet_canny"} <= set(manifest["parity"])

    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        toy_model, controlnet=diffusers.ControlNetModel.from_pretrained(canny), safety_checker=None
    ).to(torch.float32)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    expected = theirs(pipeline, prompt="a cat", image=image, **CALL)
    with Runtime(folder, provider="cpu", threads=1) as runtime:
        assert decibels(runtime.generate("a cat", seed=3, control_image=image, **CALL), expected) >= 40
        assert decibels(runtime.generate("a cat", seed=3, **CALL), expected) < 36
    with Runtime(folder, provider="cpu", threads=1, memory="low") as runtime:
        assert decibels(runtime.generate("a cat", seed=3, control_image=image, **CALL), expected) >= 40

    bundle = read_bundle(folder)
    size = {"budget": 1 << 34}
    usual = plan_memory(bundle, bundle.usual_call, **size)
    controlled = plan_memory(bundle, replace(bundle.usual_call, control=True), **size)
    assert controlled.resident["denoise"] > {"controlnet", "unet_controlnet"}
    assert "unet" not in controlled.needs and controlled.peak > usual.peak
