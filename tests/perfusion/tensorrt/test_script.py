"""The script for a device that has TensorRT and not this package: its own code, run for real."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from perfusion.tensorrt import script
from perfusion.tensorrt.engine_store import find_engine
from perfusion.tensorrt.engines import EngineJob, build_engines
from perfusion.tensorrt.script import script_text, write_script

ROOT = Path(__file__).parents[3]


DEVICE = """
import ctypes, types
import tensorrt_rtx_bindings
tensorrt_rtx_bindings.__version__ = "11.4.0"
sys.modules["tensorrt"] = tensorrt_rtx_bindings
def answer(value):
    return lambda pointer, *_: ctypes.memmove(pointer, ctypes.byref(ctypes.c_int(value)), 4) and 0
attribute = lambda pointer, which, _: answer(8 if which == 75 else 7)(pointer)
ctypes.CDLL = lambda _: types.SimpleNamespace(
    cuInit=lambda _: 0, cuDriverGetVersion=answer(12060), cuDeviceGet=answer(0), cuDeviceGetAttribute=attribute
)
"""
"""An Orin with the full TensorRT, which is TensorRT for RTX."""


def run(path: Path, machine: str = "", *arguments: str) -> subprocess.CompletedProcess:
    """Run a script where this package cannot be imported, after what `machine` pretends."""
    block = (
        "import sys, runpy\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('perfusion', 'numpy', 'torch', 'onnx'):\n"
        "            raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        f"{machine}\n"
        f"sys.argv = {[str(path), *arguments]!r}\n"
        f"runpy.run_path({str(path)!r}, run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, check=False, cwd=path.parent
    )


@pytest.mark.trt_build
def test_the_script_builds_the_very_engine_that_the_command_builds(rtx, toy, tmp_path, text_job, settings):
    path = write_script(toy, [text_job], settings)
    done = run(path)
    assert done.returncode == 0, done.stderr
    made = find_engine(toy, "text_encoder", {}).engine
    assert made is not None
    assert str(made.file) in done.stdout
    plan = made.file.read_bytes()
    for file in made.file.parent.iterdir():
        file.unlink()
    (ours,) = build_engines(rtx, toy, [text_job], settings)
    assert ours.engine == made
    assert ours.engine.file.read_bytes() == plan
    again = run(path).stdout
    assert "was there" in again
    assert f"Next: perfusion-generate --bundle {toy} --provider trt-rtx --prompt" in again
    assert f"text_encoder: is there, {made.bytes / 1e6:.1f} MB" in run(path, "", "--dry-run").stdout


@pytest.mark.trt_build
def test_on_a_device_the_script_builds_for_it_by_the_full_tensorrt(rtx, toy, text_job, settings):
    path = write_script(toy, [text_job], replace(settings, flavour="trt", target="sm87"))
    done = run(path, DEVICE)
    assert done.returncode == 0, done.stderr
    engine = find_engine(toy, "text_encoder", {"target": "sm87", "version": "11.4.0", "driver": 12}).engine
    assert engine is not None
    assert str(engine.file) in done.stdout
    elsewhere = run(write_script(toy, [text_job], replace(settings, flavour="trt", target="sm110")), DEVICE)
    assert (elsewhere.returncode, elsewhere.stdout) == (1, "")
    assert "GPU is sm87 and the engines are to be for sm110" in elsewhere.stderr


def test_on_a_machine_without_tensorrt_the_script_says_what_is_missing(toy, text_job, settings):
    path = write_script(toy, [text_job], replace(settings, flavour="trt", target="sm87"))
    done = run(path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"{path.name}: TensorRT is not usable here: the module tensorrt is not installed."
    )
    assert done.stderr.count("\n") == 1


def test_a_dry_run_shows_graphs_sizes_and_room_and_needs_no_tensorrt(toy, text_job, settings):
    path = write_script(toy, [text_job], replace(settings, flavour="trt", target="sm87"))
    block = "sys.modules['tensorrt'] = None"
    done = run(path, block, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    size = (toy / text_job.file).stat().st_size
    assert f"text_encoder: up to {(16 * 2**20 + 2 * size) / 1e6:.0f} MB" in done.stdout
    assert "are free." in done.stdout
    assert not (toy / "engines").exists()


def test_the_script_has_help_and_refuses_what_it_does_not_know(toy, text_job, settings):
    path = write_script(toy, [text_job], replace(settings, flavour="trt", target="sm87"))
    shown = run(path, "", "--help")
    assert shown.returncode == 0 and "--dry-run" in shown.stdout and "for sm87" in shown.stdout
    assert run(path, "", "--dry").returncode == 2


def test_a_bundle_that_was_damaged_on_the_way_is_found(rtx, toy, text_job, settings):
    path = write_script(toy, [text_job], settings)
    (toy / "text_encoder.onnx").write_bytes(b"half")
    done = run(path)
    assert done.returncode == 1
    assert "does not have the checksum" in done.stderr


def test_the_script_imports_nothing_but_the_standard_library_and_tensorrt(text_job, settings):
    names = set()
    for module in script._MODULES:
        for node in ast.walk(ast.parse(script._source(f"perfusion.{module}"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    own = {name for name in names if name.partition(".")[0] == "perfusion"}
    assert own <= {"perfusion", *(f"perfusion.{module}" for module in script._MODULES)}
    assert {name.partition(".")[0] for name in names - own} <= set(sys.stdlib_module_names)


def test_the_script_carries_the_modules_word_for_word(text_job, settings):
    scope: dict = {"__name__": "script"}
    exec(compile(script_text([text_job], settings, "build.py"), "script", "exec"), scope)
    assert json.loads(scope["RECIPE"])["settings"]["target"] == "sm89"
    for name, source in scope["SOURCES"].items():
        path = ROOT / (name.replace(".", "/") + ".py")
        if path.exists():
            assert source == path.read_text()
    assert EngineJob.from_json(json.loads(scope["RECIPE"])["jobs"][0]) == text_job


def test_progress_is_a_line_for_a_graph_and_one_now_and_then(monkeypatch, capsys):
    times = iter([0, 1, 9, 10, 11, 12])
    monkeypatch.setattr("perfusion.tensorrt.script.time.monotonic", lambda: next(times))
    shown = script._Shown()
    for done in range(5):
        shown("unet", "Timing", done, 5)
    shown("vae_decoder", "Timing", 0, 7)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["unet: Timing 0/5", "unet: Timing 3/5", "vae_decoder: Timing 0/7"]


def test_scripts_of_both_flavours_for_one_gpu_lie_side_by_side(toy, text_job, settings):
    names = {write_script(toy, [text_job], replace(settings, flavour=one)).name for one in ("trt", "trt-rtx")}
    assert names == {"build_engines_trt-sm89.py", "build_engines_trt-rtx-sm89.py"}


@pytest.mark.parametrize("source", ["x = 'a'\n", "'''\n", "end \\", 'y = """b"""\n'])
def test_any_source_can_be_carried(source):
    assert ast.literal_eval(script._literal(source)) == source
