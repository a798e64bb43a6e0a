"""Every command that draws takes --provider and --precision alike."""

import importlib
from pathlib import Path

import pytest

SUBJECTS = Path(__file__).parents[3] / "examples" / "subjects"
PICTURE = ["--prompt", "a <gold-hat>", "--concept", "gold-hat"]
COMMANDS = {
    "generate": [*PICTURE, "--output", "out.png"],
    "sweep": [*PICTURE, "--grid", "out.png"],
    "evaluate": ["--subjects", str(SUBJECTS), "--output", "out"],
    "serve": ["--port", "0"],
}


@pytest.fixture(params=COMMANDS)
def draw(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERFUSION_DATA", str(tmp_path))
    if request.param == "serve":
        pytest.importorskip("uvicorn", reason="serving needs it")
    command = importlib.import_module(f"perfusion.commands.{request.param}")
    monkeypatch.setattr(command, "_subjects", lambda *_: {}, raising=False)  # concepts there are none of
    return lambda *options: command.main([*COMMANDS[request.param], "--quiet", *options])


@pytest.mark.parametrize("provider", ["rocm", "cpu:0", "openvino:"])
def test_a_provider_there_is_not_is_a_wrong_command_line(draw, provider, capsys):
    assert draw("--provider", provider) == 2
    assert f"'{provider}' is none of auto, cpu, " in capsys.readouterr().err


def test_a_precision_there_is_not_is_a_wrong_command_line(draw, capsys):
    assert draw("--precision", "int8") == 2
    assert "invalid choice: 'int8'" in capsys.readouterr().err


def test_the_precision_reaches_the_runtime_which_refuses_it_without_openvino(draw, capsys):
    assert draw("--provider", "cpu", "--precision", "bf16") == 1
    assert "Use the provider 'openvino'" in capsys.readouterr().err
