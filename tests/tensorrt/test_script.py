"""The script for a device that has TensorRT and not this package: its own code, run for real."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from perfusion.tensorrt import script
from perfusion.tensorrt.cache import find_engine
from perfusion.tensorrt.engines import EngineJob, build_engines
from perfusion.tensorrt.script import script_text, write_script

ROOT = Path(__file__).parents[2]


def run(path: Path) -> subprocess.CompletedProcess:
    """Run a script where this package cannot be imported."""
    block = (
        "import sys, runpy\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('perfusion', 'numpy', 'torch', 'onnx'):\n"
        "            raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        f"sys.argv = [{str(path)!r}]\n"
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
    assert str(made.plan) in done.stdout
    plan = made.plan.read_bytes()
    for file in made.plan.parent.iterdir():
        file.unlink()
    (ours,) = build_engines(rtx, toy, [text_job], settings)
    assert ours.engine == made
    assert ours.engine.plan.read_bytes() == plan
    assert "was there" in run(path).stdout


def test_on_a_machine_without_tensorrt_the_script_says_what_is_missing(toy, text_job, settings):
    path = write_script(toy, [text_job], replace(settings, flavour="trt", target="sm87"))
    done = run(path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"{path.name}: TensorRT is not usable here: the module tensorrt is not installed."
    )
    assert done.stderr.count("\n") == 1


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
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    assert names - {"perfusion"} <= set(sys.stdlib_module_names)


def test_the_script_carries_the_modules_word_for_word(text_job, settings):
    scope: dict = {"__name__": "script"}
    exec(compile(script_text([text_job], settings, "build.py"), "script", "exec"), scope)
    assert json.loads(scope["RECIPE"])["settings"]["target"] == "sm89"
    for name, source in scope["SOURCES"].items():
        path = ROOT / (name.replace(".", "/") + ".py")
        if path.exists():
            assert source == path.read_text()
    assert EngineJob.from_json(json.loads(scope["RECIPE"])["jobs"][0]) == text_job


@pytest.mark.parametrize("source", ["x = 'a'\n", "'''\n", "end \\", 'y = """b"""\n'])
def test_any_source_can_be_carried(source):
    assert ast.literal_eval(script._literal(source)) == source
