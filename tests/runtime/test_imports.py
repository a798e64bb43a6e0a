"""The promise of the folder: numpy, onnxruntime and small libraries, never torch."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import perfusion.runtime

ROOT = Path(__file__).parents[2]
FORBIDDEN = ("torch", "diffusers", "transformers", "onnx", "accelerate")
BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
"""


def run(code: str) -> str:
    """What a new interpreter prints, in which the forbidden packages cannot be imported."""
    process = subprocess.run(
        [sys.executable, "-c", BLOCK + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_module_of_the_runtime_imports_without_torch():
    modules = [f"perfusion.runtime.{one.name}" for one in pkgutil.iter_modules(perfusion.runtime.__path__)]
    assert len(modules) > 8
    run("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules))


def test_a_picture_is_drawn_without_torch(toy_bundle, tmp_path, make_concept):
    make_concept().save(tmp_path / "cat.safetensors")
    assert run(f"""
from perfusion.runtime import Runtime
runtime = Runtime({str(toy_bundle)!r}, provider="cpu")
runtime.load_concept({str(tmp_path / "cat.safetensors")!r})
print(runtime.generate("a <cat>", lock="global").size)
""") == "(32, 32)\n"  # fmt: skip


def test_importing_the_runtime_leaves_the_slow_libraries_for_later():
    loaded = run("import perfusion.runtime; print(*sys.modules)").split()
    assert "numpy" in loaded
    assert not {"onnxruntime", "PIL", "tokenizers", "safetensors"} & set(loaded)


@pytest.mark.skipif(os.name == "nt", reason="the home folder is found in another way")
def test_drawing_writes_nothing_into_the_home_folder(toy_bundle, tmp_path, monkeypatch):
    for name in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run(
        f"from perfusion.runtime import Runtime; Runtime({str(toy_bundle)!r}, provider='cpu').generate('a cat')"
    )
    assert not list(tmp_path.iterdir())
