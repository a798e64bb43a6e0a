"""Compiling for OpenVINO ahead: what perfusion-export does, a drawing finds done."""

import json

import pytest

from perfusion.commands.export import main as export
from perfusion.commands.generate import main as generate
from perfusion.runtime.compute.onnx_graph import OnnxGraph


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def draw(folder, tmp_path, *options, prompt="a cat"):
    arguments = ["--bundle", folder, "--output", tmp_path / "cat.png", "--prompt", prompt, *options]
    return generate(
        ["--provider", "openvino", "--threads", "1", "--steps", "1", "--force", *map(str, arguments)]
    )


def test_a_drawing_finds_what_was_compiled_ahead(cache, toy_bundle, make_concept, tmp_path, capsys):
    ahead = ["--engine", "openvino", "--bundle", str(toy_bundle), "--threads", "1"]
    assert export(ahead) == 0
    lines = capsys.readouterr()
    assert [line.split(":")[0] for line in lines.out.splitlines()] == [
        "text_encoder", "vae_encoder", "unet", "vae_decoder",
    ]  # fmt: skip
    assert all(f"kept in {cache}" in line for line in lines.out.splitlines())
    assert "compiling for openvino 4/4" in lines.err
    make_concept().save(tmp_path / "cat.safetensors")
    assert draw(toy_bundle, tmp_path, "--concept", tmp_path / "cat.safetensors", prompt="a <cat>") == 0
    (tmp_path / "cat.png").rename(tmp_path / "first.png")
    assert draw(toy_bundle, tmp_path, "--image", tmp_path / "first.png", "--steps", "2") == 0
    assert "OpenVINO compiles" not in capsys.readouterr().err
    assert export([*ahead, "--json"]) == 0
    compiled = json.loads(capsys.readouterr().out)["compiled"]
    assert [graph["compiled"] for graph in compiled] == [False] * 4
    assert compiled[2]["sizes"] == {
        "batch": 2, "regions": 1, "tokens": 77, "concepts": 4, "height": 8, "width": 8,
    }  # fmt: skip


def test_the_sizes_asked_for_are_compiled(cache, toy_bundle, tmp_path, capsys):
    sizes = ["--resolution", "16", "--batch", "1,2", "--concepts", "5", "--threads", "1"]
    assert export(["--engine", "openvino", "--bundle", str(toy_bundle), *sizes, "--json"]) == 0
    compiled = json.loads(capsys.readouterr().out)["compiled"]
    unets = [graph["sizes"] for graph in compiled if graph["graph"] == "unet"]
    assert [(unet["batch"], unet["concepts"], unet["width"]) for unet in unets] == [(2, 8, 4), (4, 8, 4)]


def test_somebody_who_waits_is_told_of_compiling_and_who_is_quiet_is_not(cache, toy_bundle, tmp_path, capsys):
    assert draw(toy_bundle, tmp_path, "--width", "16", "--height", "16", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert draw(toy_bundle, tmp_path, "--width", "16", "--height", "24") == 0
    told = capsys.readouterr().err
    assert "perfusion-generate: OpenVINO compiles unet.onnx for CPU, once for these sizes" in told
    assert "perfusion-generate: compiled unet.onnx in " in told
    assert "text_encoder" not in told


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--engine", "openvino:XPU"], "device XPU was asked for"),
        (["--engine", "openvino", "--concepts", "99"], "99 concept slots, expected 1 to 64"),
        (["--engine", "openvino", "--precision", "int8"], "--compute says what OpenVINO computes in"),
    ],
)
def test_what_nothing_is_compiled_for_is_refused(cache, toy_bundle, capsys, options, sentence):
    assert export([*options, "--bundle", str(toy_bundle)]) == 1
    assert sentence in capsys.readouterr().err
    assert not cache.exists()


def test_a_shorter_precision_is_compared_with_float32(cache, toy_bundle, capsys, monkeypatch):
    """A device without the precision computes in float32 where it is not refused, so the distance is rounding alone."""
    import openvino

    answer = openvino.Core.get_property
    monkeypatch.setattr(
        openvino.Core,
        "get_property",
        lambda core, device, name: (
            [*answer(core, device, name), "BF16"]
            if name == "OPTIMIZATION_CAPABILITIES"
            else answer(core, device, name)
        ),
    )
    ahead = ["--engine", "openvino", "--bundle", str(toy_bundle), "--threads", "1", "--compute", "bf16"]
    assert export([*ahead, "--json"]) == 0
    graphs = json.loads(capsys.readouterr().out)["compiled"]
    assert len(graphs) == 4
    assert all(0 < graph["distance"] < 3e-2 for graph in graphs)
    run = OnnxGraph.run
    monkeypatch.setattr(
        OnnxGraph, "run", lambda *args, **feeds: {name: 2 * end for name, end in run(*args, **feeds).items()}
    )
    assert export([*ahead, "--json"]) == 0
    graphs = json.loads(capsys.readouterr().out)["compiled"]
    assert all(abs(graph["distance"] - 0.5) < 0.02 for graph in graphs)
