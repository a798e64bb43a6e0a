"""perfusion-export as a user meets it: exit codes, one line of errors, and the same bytes each time."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from perfusion.commands.export import main
from perfusion.errors import ExportError
from perfusion.export.convert import to_onnx
from perfusion.export.weights import save, store_as_float16
from perfusion.tensorrt.targets import TARGETS


@pytest.mark.parametrize("name", ["text_encoder", "vae_decoder", "vae_encoder"])
def test_converting_a_graph_twice_gives_the_same_bytes(graphs, exported, tmp_path, name):
    model = to_onnx(graphs[name])
    store_as_float16(model)
    save(model, tmp_path / "graph.onnx")
    assert (tmp_path / "graph.onnx").read_bytes() == (exported.folder / f"{name}.onnx").read_bytes()


@pytest.mark.slow
def test_the_command_writes_the_same_bundle_in_another_process_and_from_another_path(
    exported, toy_model, tmp_path
):
    model = shutil.copytree(toy_model, tmp_path / "somewhere else")
    done = subprocess.run(
        [sys.executable, "-m", "perfusion.commands.export", "--model", model, "--output", "made", "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    result = json.loads(done.stdout)
    assert (result["output"], result["base"], result["bytes"]) == ("made", "pocket", exported.size)
    assert done.stderr.splitlines()[-1].endswith("stage done")
    for path in exported.folder.iterdir():
        if path.name != "bundle.json":  # it holds measured differences, to their second digit
            assert (tmp_path / "made" / path.name).read_bytes() == path.read_bytes(), path.name
    made = json.loads((tmp_path / "made" / "bundle.json").read_text())
    assert made | {"parity": exported.parity} == exported.manifest


@pytest.mark.slow
@pytest.mark.trt_build
def test_one_command_makes_engines_of_a_model_for_every_gpu_there_is_to_build_for(
    toy_model, tmp_path, capsys
):
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra trt-rtx is not installed")
    targets = ",".join(name for name, one in TARGETS.items() if one.rtx)
    arguments = ["--model", str(toy_model), "--output", str(tmp_path / "bundle"), "--engine", "trt-rtx"]
    assert main([*arguments, "--target", targets, "--batch", "1", "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["precision"] == "fp16"
    assert [(one["key"]["graph"], one["key"]["target"]) for one in result["engines"]] == [
        (name, targets.replace(",", "+")) for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder")
    ]
    assert targets.startswith("sm75")


def test_help_is_there_before_anything_heavy_is_imported():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "perfusion.commands.export", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "numpy", "onnx", "diffusers", "perfusion.export"}
    for option in ("--model", "--engine", "--precision", "--resolution", "--output", "--json", "--quiet"):
        assert option in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--output"],
        ["--output", "x", "--engine", "magic"],
        ["--output", "x", "--precision", "half"],
        ["--output", "x", "--resolution", "large"],
        ["--output", "x", "--concepts", "4"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_one_line(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("perfusion-export: ")


def test_success_is_exit_code_0_and_one_line_on_stdout(fast_export, exported, toy_model, tmp_path, capsys):
    output = tmp_path / "bundle"
    assert main(["--model", str(toy_model), "--output", str(output), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    size = f"{exported.size / 1e6:.1f} MB"
    assert captured.out.startswith(f"{output}: pocket, fp32, {size}; largest difference from torch ")
    assert captured.out.count("\n") == 1


def test_a_single_file_is_exported_with_the_settings_of_a_folder(monkeypatch, tmp_path, capsys):
    calls = []

    def export_bundle(model, output, **options):
        calls.append((model, output, options["config"]))
        raise ExportError("That is all.")

    monkeypatch.setattr("perfusion.export.export_bundle", export_bundle)
    file, settings, output = (tmp_path / name for name in ("model.safetensors", "settings", "bundle"))
    arguments = ["--model", str(file), "--config", str(settings), "--output", str(output)]
    assert main(arguments) == 1
    assert calls == [(file, output, settings)]
    assert main(["--bundle", "x", "--engine", "trt", "--config", "y"]) == 2
    assert "--config: not with --bundle" in capsys.readouterr().err


def test_json_holds_what_a_program_would_ask(fast_export, exported, toy_model, tmp_path, capsys):
    arguments = [
        "--model",
        str(toy_model),
        "--output",
        str(tmp_path / "bundle"),
        "--json",
        "--resolution",
        "64",
    ]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["output"] == str(tmp_path / "bundle")
    assert result["parity"] == exported.parity
    assert result["defaults"]["width"] == 64
    assert "stage done" in captured.err


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "perfusion.export")
    monkeypatch.setitem(sys.modules, "perfusion.export.exporter", None)
    assert main(["--output", "x"]) == 1
    assert "Install perfusion-edge[export,cpu]." in capsys.readouterr().err


FAILURES = {
    "a folder that is no model": (["--model", "{tmp}"], "not a diffusers model"),
    "a folder that is not there": (["--model", "{tmp}/nothing"], "no such folder"),
    "a resolution that does not fit": (["--resolution", "33"], "multiples of 8"),
    "an output that is somebody's": (["--output", "{tmp}"], "holds files but no bundle.json"),
    "an output that cannot be made": (["--output", "/proc/bundle"], "cannot be written"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_cannot_be_done_is_exit_code_1_and_one_line(toy_model, tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr("perfusion.export.exporter.to_onnx", lambda _: pytest.fail("the conversion began"))
    (tmp_path / "letter.txt").write_text("dear reader")
    options, message = FAILURES[case]
    given = [option.format(tmp=tmp_path) for option in options]
    defaults = {"--model": str(toy_model), "--output": str(tmp_path / "bundle")}
    for name, value in defaults.items():
        given += [] if name in given else [name, value]
    assert main([*given, "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("perfusion-export: ")
    assert message in captured.err
