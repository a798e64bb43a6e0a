"""perfusion-export's engines as a user meets them: exit codes, one line of errors, what is printed."""

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from perfusion.commands import engine_steps
from perfusion.commands.export import main
from perfusion.tensorrt import engines, flavour
from perfusion.tensorrt.build import Built
from perfusion.tensorrt.driver import Driver


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(engines, "query_driver", lambda: None)
    monkeypatch.setattr(flavour, "driver_ready", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.fixture
def builder(monkeypatch):
    """In the place of TensorRT and its builder: engines are made of what was asked for."""
    asked = []

    def build(trt, graph, **options):
        asked.append((graph.name, options))
        options["progress"]("building", 1, 2)
        engine = memoryview(f"{graph.name} {options['shape_ranges']}".encode())
        return Built(engine=engine, inputs={}, outputs={}, timing=None)

    module = SimpleNamespace(__version__="1.7.1")
    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr("perfusion.tensorrt.flavour.import_tensorrt", lambda *_, **__: module)
    return SimpleNamespace(asked=asked, module=module)


WRONG = {
    "neither a bundle nor an output": ([], "--output"),
    "a bundle for onnxruntime": (["--bundle", "b"], "needs --engine trt, trt-rtx or openvino"),
    "a bundle and a model": (
        ["--bundle", "b", "--engine", "trt", "--model", "m"],
        "--model: not with --bundle",
    ),
    "a bundle and an opset": (
        ["--bundle", "b", "--engine", "trt", "--opset", "23"],
        "--opset: not with --bundle",
    ),
    "a bundle and an fp32 list": (
        ["--bundle", "b", "--engine", "trt", "--keep-fp32", "x"],
        "--keep-fp32: not with",
    ),
    "a script for onnxruntime": (["--output", "x", "--script"], "--script: only with --engine"),
    "slots for onnxruntime": (["--output", "x", "--concepts", "4"], "--concepts: only with --engine"),
    "a level for onnxruntime": (
        ["--output", "x", "--optimization-level", "0"],
        "--optimization-level: only with",
    ),
    "batches that are no numbers": (
        ["--output", "x", "--engine", "trt", "--batch", "1,x"],
        "'1,x' is not a number",
    ),
    "cores for onnxruntime": (["--output", "x", "--build-cores", "1"], "--build-cores: only with --engine"),
    "pruning where nothing is built": (
        ["--output", "x", "--engine", "trt", "--script", "--prune"],
        "--prune: not with --script",
    ),
    "a level there is not": (
        ["--output", "x", "--engine", "trt", "--optimization-level", "6"],
        "invalid choice",
    ),
    "a precision there is not": (["--output", "x", "--precision", "half"], "choose from fp32, fp16, int8"),
    "an engine there is not": (["--output", "x", "--engine", "tvm"], "invalid choice"),
    "a device of no library": (["--output", "x", "--engine", "trt:GPU"], "invalid choice"),
    "a GPU for openvino": (
        ["--bundle", "b", "--engine", "openvino", "--target", "sm86"],
        "--target: only with --engine trt or trt-rtx",
    ),
    "a profile for openvino": (
        ["--bundle", "b", "--engine", "openvino", "--device", "orin-nano-8"],
        "--device: not with --engine openvino",
    ),
    "threads for an engine": (
        ["--bundle", "b", "--engine", "trt", "--threads", "2"],
        "--threads: only with --engine openvino",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_line_is_exit_code_2_and_one_line(case, capsys, monkeypatch):
    monkeypatch.setattr(
        "perfusion.commands.export._export_bundle", lambda *_: pytest.fail("the export began")
    )
    arguments, message = WRONG[case]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


FAILURES = {
    "no gpu": (["--engine", "trt"], "no NVIDIA GPU.*add --script"),
    "no tensorrt": (
        ["--engine", "trt", "--device", "orin-nano-8"],
        "module tensorrt is not installed.*--script.*'trt-rtx', which builds without a GPU",
    ),
    "a script for nothing": (["--engine", "trt", "--script"], "name it with --device or --target"),
    "an unknown device": (["--engine", "trt", "--device", "orin-nanu-8"], "Did you mean orin-nano-8"),
    "an engine the device lacks": (
        ["--engine", "trt-rtx", "--device", "orin-nano-8"],
        "expected onnx or trt",
    ),
    "a precision the device lacks": (
        ["--engine", "trt-rtx", "--device", "rtx-3060", "--precision", "fp8"],
        "RTX 3060 has no fp8; it has .*fp16",
    ),
    "a precision the target lacks": (
        ["--engine", "trt-rtx", "--target", "sm86", "--precision", "fp8"],
        "sm86 .*has no fp8; it has fp32, fp16",
    ),
    "another target than the device": (
        ["--engine", "trt-rtx", "--device", "rtx-4070", "--target", "sm86"],
        "not rtx-4070's, which is sm89",
    ),
    "a target nobody builds for": (["--engine", "trt-rtx", "--target", "sm99"], "expected sm75"),
    "int8 for tensorrt": (["--engine", "trt-rtx", "--precision", "int8"], "Use --precision fp16"),
    "no slots": (["--engine", "trt-rtx", "--concepts", "0"], "0 concept slots, expected 1 to 64"),
    "no pictures": (["--engine", "trt-rtx", "--batch", "0"], "expected numbers from 1 to 64"),
    "no cores": (["--engine", "trt-rtx", "--build-cores", "0"], "cores for a build are 0"),
    "no workspace": (["--engine", "trt-rtx", "--workspace", "nan"], "workspace is nan GB"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_cannot_be_built_is_refused_before_the_export_begins(
    case, no_gpu, tmp_path, capsys, monkeypatch
):
    def export(*_):
        pytest.fail("the export began")

    monkeypatch.setattr("perfusion.commands.export._export_bundle", export)
    if "tensorrt" not in case:
        monkeypatch.setattr(engine_steps, "find_tensorrt", lambda *_: None)
    arguments, message = FAILURES[case]
    assert main([*arguments, "--output", str(tmp_path / "bundle")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("perfusion-export: ")
    assert re.search(message, captured.err), captured.err


def other_lines(stderr: str) -> list[str]:
    """What is told besides that the toy bundle is in float32, for cards that are twice as fast in float16."""
    return [line for line in stderr.splitlines() if "is in fp32, so its engines are too" not in line]


BUNDLE_FAILURES = {
    "no such folder": (["--bundle", "/nowhere"], "is not a folder"),
    "no bundle": (["--bundle", "{parent}"], "holds no bundle.json"),
    "another precision": (["--bundle", "{toy}", "--precision", "fp16"], "is in fp32, and fp16 was asked for"),
    "a resolution that does not fit": (["--bundle", "{toy}", "--resolution", "33"], "multiples of 8 pixels"),
    "a precision turing lacks": (["--bundle", "{toy}", "--target", "sm75"], "--precision fp16"),
}


@pytest.mark.parametrize("case", BUNDLE_FAILURES)
def test_a_bundle_that_cannot_be_built_from_is_refused_in_one_line(case, toy, builder, capsys):
    arguments, message = BUNDLE_FAILURES[case]
    given = [argument.format(toy=toy, parent=toy.parent) for argument in arguments]
    assert main([*given, "--engine", "trt-rtx"]) == 1
    captured = capsys.readouterr()
    (line,) = other_lines(captured.err)
    assert captured.out == "" and message in line
    assert builder.asked == []


def test_engines_of_a_bundle_are_built_once_and_every_option_reaches_the_builder(toy, builder, capsys):
    arguments = ["--bundle", str(toy), "--engine", "trt-rtx", "--device", "rtx-4070", "--batch", "2,1"]
    arguments += ["--concepts", "3", "--resolution", "64", "--optimization-level", "1", "--workspace", "0.5"]
    assert main([*arguments, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and other_lines(captured.err) == []
    assert all("trt-rtx-sm89" in line and "built in" in line for line in captured.out.splitlines())
    graphs = dict(builder.asked)
    assert list(graphs) == ["text_encoder.onnx", "unet.onnx", "vae_decoder.onnx", "vae_encoder.onnx"]
    unet = graphs["unet.onnx"]
    pairs = [(profile["regions"][0], profile["batch"][0]) for profile in unet["shape_ranges"]]
    assert pairs == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert unet["shape_ranges"][0]["height"] == (16, 16, 16)
    assert unet["shape_ranges"][0]["concepts"] == (3, 3, 3)
    assert unet["targets"] == ["sm89"]
    assert (unet["options"].workspace, unet["options"].optimization_level) == (500_000_000, 1)
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().out.count("was there and fits") == 4
    assert len(builder.asked) == 4


def test_the_workspace_is_the_devices_where_none_is_given(toy, builder):
    from perfusion.devices import find_profile

    assert main(["--bundle", str(toy), "--engine", "trt-rtx", "--device", "rtx-3060", "--quiet"]) == 0
    assert builder.asked[0][1]["options"].workspace == find_profile("rtx-3060").workspace


@pytest.mark.parametrize(
    "device, options, level, cores",
    [
        ("orin-nano-8", [], 2, 1),
        ("orin-nx-16", [], None, None),
        ("orin-nano-8", ["--optimization-level", "4"], 4, 1),
        ("orin-nano-8", ["--build-cores", "3"], 2, 3),
    ],
)
def test_the_builders_effort_is_the_devices_where_none_is_given(toy, device, options, level, cores):
    command = ["--bundle", str(toy), "--engine", "trt", "--device", device, "--quiet", "--script"]
    assert main([*command, *options]) == 0
    scope: dict = {"__name__": "script"}
    exec((toy / "build_engines_trt-sm87.py").read_text(), scope)
    settings = json.loads(scope["RECIPE"])["settings"]
    assert (settings["options"]["optimization_level"], settings["cores"]) == (level, cores)


def test_another_release_of_tensorrt_is_explained_and_pruned_on_request_only(toy, builder, capsys):
    arguments = ["--bundle", str(toy), "--engine", "trt-rtx", "--quiet"]
    assert main(arguments) == 0
    builder.module.__version__ = "1.8.0"
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("TensorRT's version is 1.7.1, expected 1.8.0") == 4
    assert len(list(toy.rglob("*.engine"))) == 8
    assert main([*arguments, "--prune"]) == 0
    assert capsys.readouterr().out.count(": removed") == 4
    assert len(list(toy.rglob("*.engine"))) == 4


def test_json_holds_every_engine_with_its_key(toy, builder, capsys):
    assert main(["--bundle", str(toy), "--engine", "trt-rtx", "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["output"] == str(toy)
    assert [one["key"]["graph"] for one in result["engines"]] == [
        "text_encoder", "unet", "vae_decoder", "vae_encoder",
    ]  # fmt: skip
    assert all(one["built"] and one["key"]["target"] == "portable" for one in result["engines"])


def test_progress_names_the_graph_and_what_is_done_to_it(toy, builder, capsys):
    assert main(["--bundle", str(toy), "--engine", "trt-rtx"]) == 0
    assert "engines for portable 4/4" in capsys.readouterr().err


def test_a_script_is_written_where_nothing_can_be_built(toy, no_gpu, capsys):
    arguments = ["--bundle", str(toy), "--engine", "trt", "--device", "orin-nano-8", "--script", "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["target"] == "sm87"
    assert result["script"] == str(toy / "build_engines_trt-sm87.py")
    compile((toy / "build_engines_trt-sm87.py").read_text(), "script", "exec")


def test_on_the_device_itself_the_target_is_its_own_gpu(toy, builder, monkeypatch, capsys):
    monkeypatch.setattr(engines, "query_driver", lambda: Driver(cuda=(12, 6), compute_capability=(8, 7)))
    assert main(["--bundle", str(toy), "--engine", "trt", "--json", "--quiet"]) == 0
    key = json.loads(capsys.readouterr().out)["engines"][0]["key"]
    assert (key["flavour"], key["target"], key["driver"]) == ("trt", "sm87", 12)
    assert main(["--bundle", str(toy), "--engine", "trt", "--device", "agx-thor", "--quiet"]) == 1
    assert main(["--bundle", str(toy), "--engine", "trt", "--target", "sm89", "--quiet"]) == 1
    assert "This machine's GPU is sm87 and the engines are to be for sm89" in capsys.readouterr().err


def test_a_disk_with_too_little_room_is_refused_before_the_build(toy, builder, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert main(["--bundle", str(toy), "--engine", "trt-rtx", "--quiet"]) == 1
    assert "the engine of text_encoder may take 0.0 GB and 0.0 GB are free" in capsys.readouterr().err
    assert builder.asked == []


def limited(monkeypatch, usable):
    """An RTX 4070 of which so many bytes are left for us."""
    from perfusion.devices import PROFILES, profiles

    card = PROFILES["rtx-4070"]
    card = replace(card, memory=card.memory - card.usable + usable)
    monkeypatch.setattr(profiles, "PROFILES", {"rtx-4070": card})
    return card


LARGE = ("--engine", "trt-rtx", "--device", "rtx-4070", "--resolution", "512", "--quiet")


def needs(toy, budget, batch=1):
    """The bytes that pictures of 512 pixels need of a device or of a number of bytes."""
    from perfusion.bundle.call_size import CallSize
    from perfusion.bundle.reader import read_bundle
    from perfusion.devices import plan_memory

    size = CallSize(width=512, height=512, batch=batch, concepts=4)
    return plan_memory(read_bundle(toy), size, budget=budget).peak


def test_engines_are_built_for_the_batches_that_the_device_has_memory_for(toy, builder, monkeypatch, capsys):
    nothing = limited(monkeypatch, 0)
    assert needs(toy, nothing, 1) < needs(toy, nothing, 2)
    limited(monkeypatch, needs(toy, nothing, 1))
    assert main(["--bundle", str(toy), *LARGE]) == 0
    assert other_lines(capsys.readouterr().err) == []
    assert {profile["batch"][0] for profile in dict(builder.asked)["unet.onnx"]["shape_ranges"]} == {2}


def test_the_decoders_engine_is_built_for_the_tiles_of_the_plan(toy, builder, monkeypatch):
    whole = needs(toy, limited(monkeypatch, 64 << 30))
    limited(monkeypatch, whole - 1)
    assert main(["--bundle", str(toy), *LARGE, "--batch", "1"]) == 0
    graphs = dict(builder.asked)
    assert graphs["vae_decoder.onnx"]["shape_ranges"][0]["height"] == (64, 64, 64)
    assert graphs["vae_encoder.onnx"]["shape_ranges"][0]["height"] == (
        128,
        128,
        128,
    )  # only decoding is tiled


def test_a_batch_that_was_asked_for_is_built_with_a_warning_where_it_does_not_fit(
    toy, builder, monkeypatch, capsys
):
    limited(monkeypatch, needs(toy, limited(monkeypatch, 0)))
    assert main(["--bundle", str(toy), *LARGE, "--batch", "1,2"]) == 0
    assert "memory for batches of 1, not of 2" in capsys.readouterr().err
    assert {profile["batch"][0] for profile in dict(builder.asked)["unet.onnx"]["shape_ranges"]} == {2, 4}


@pytest.mark.parametrize(("usable", "warned"), [(1, True), (1 << 30, False)])
def test_an_export_for_onnxruntime_on_a_device_without_the_memory_warns(
    toy, monkeypatch, capsys, usable, warned
):
    limited(monkeypatch, usable)
    exported = SimpleNamespace(folder=toy)
    monkeypatch.setattr("perfusion.commands.export._export_bundle", lambda *_: exported)
    monkeypatch.setattr("perfusion.commands.export.as_lines", lambda *_: ["written"])
    assert main(["--output", str(toy), "--device", "rtx-4070"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "written\n"
    assert ("warning: GeForce RTX 4070: " in captured.err) is warned


def test_a_device_with_too_little_memory_is_a_warning(toy, builder, monkeypatch, capsys):
    from perfusion.devices import PROFILES, profiles

    tiny = replace(PROFILES["rtx-4070"], memory=1 << 20)
    monkeypatch.setattr(profiles, "PROFILES", {"rtx-4070": tiny})
    assert main(["--bundle", str(toy), "--engine", "trt-rtx", "--device", "rtx-4070", "--quiet"]) == 0
    (line, *_) = other_lines(capsys.readouterr().err)
    assert line.startswith("perfusion-export: warning: GeForce RTX 4070: ")
