"""One place for all graphs: it says what it took and why, and what is wrong with a bundle before anything runs."""

import logging
import os
import shutil

import pytest

from perfusion.errors import BundleError, DeviceError
from perfusion.runtime import Runtime, read_bundle
from perfusion.runtime.compute.graphs import Graphs


def test_the_provider_and_the_reason_are_told_and_logged(bundle, caplog):
    with caplog.at_level(logging.INFO, "perfusion.runtime.compute.graphs"):
        graphs = Graphs(bundle, "auto", 1)
    assert graphs.provider == "cpu"
    for part in ("onnxruntime on the processor", "no TensorRT engines", "no CUDA here"):
        assert part in graphs.reason
    assert f"drawing with cpu: {graphs.reason}" in caplog.text
    assert Graphs(bundle, "cpu", 1).reason == "it was asked for"


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("memory", ["auto", "low"])
def test_a_folder_whose_name_is_not_utf8_is_refused_with_the_right_advice(toy_bundle, tmp_path, memory):
    folder = os.path.join(tmp_path, os.fsdecode(b"b\xff\xfe"))
    try:
        shutil.copytree(toy_bundle, folder)
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(BundleError, match=r"b.udcff.udcfe has a name that is not UTF-8.*Rename it"):
        Runtime(folder, provider="cpu", memory=memory)


def test_a_folder_with_letters_of_any_language_is_fine(toy_bundle, tmp_path):
    folder = shutil.copytree(toy_bundle, tmp_path / "bündel ß 画")
    assert Runtime(folder, provider="cpu", threads=1).generate("a cat", num_inference_steps=1).size == (
        32,
        32,
    )


@pytest.mark.parametrize("provider", ["trt", "trt-rtx"])
def test_tensorrt_that_cannot_be_had_is_an_error_and_never_the_cpu(toy_bundle, provider, monkeypatch):
    import perfusion.runtime.compute.engine_graph

    monkeypatch.setattr(perfusion.runtime.compute.engine_graph, "query_driver", lambda: None)
    with pytest.raises(DeviceError, match=r"not usable here|has no NVIDIA GPU"):
        Graphs(read_bundle(toy_bundle), provider, 1)


def test_a_released_graph_opens_again_and_a_closed_runtime_stays_closed(bundle):
    graphs = Graphs(bundle, "cpu", 1)
    graphs.release("unet")
    graphs.release("unet")
    assert "unet" not in graphs._opened
    graphs.close()
    graphs.close()
    assert not graphs._opened


def test_an_unknown_stage_is_a_mistake_of_ours(bundle):
    with pytest.raises(ValueError, match="stage is 'dream'"):
        Graphs(bundle, "cpu", 1).stage("dream")
