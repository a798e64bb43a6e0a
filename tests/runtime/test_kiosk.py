"""examples/7_kiosk.py: its library follows a folder, no picture's failure ends it, and SIGTERM does."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from perfusion.embedded import bundle_path
from perfusion.errors import PerfusionError
from perfusion.runtime import Runtime

PROGRAM = Path(__file__).parents[2] / "examples" / "7_kiosk.py"
SAMPLES = bundle_path() / "concepts"


@pytest.fixture(scope="module")
def kiosk() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kiosk", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_concepts_come_go_and_are_replaced_with_their_files(kiosk, tmp_path, caplog):
    with Runtime() as runtime:
        library = kiosk.Library(runtime, tmp_path)
        assert library.follow() == []
        shutil.copy(SAMPLES / "pink-cake.safetensors", tmp_path)
        (tmp_path / "broken.safetensors").write_bytes(b"half of a fi")
        assert library.follow() == library.follow() == ["<pink-cake>"]
        assert caplog.text.count("broken.safetensors is left out") == 1  # told once, though asked twice
        shutil.copy(SAMPLES / "gold-hat.safetensors", tmp_path / "broken.safetensors")
        os.utime(tmp_path / "broken.safetensors", ns=(1, 1))  # whatever the clock's grain
        assert library.follow() == ["<gold-hat>", "<pink-cake>"] == sorted(runtime.concepts)
        (tmp_path / "pink-cake.safetensors").unlink()
        assert library.follow() == ["<gold-hat>"] == list(runtime.concepts)


def test_a_full_disk_is_told_and_the_next_picture_is_drawn(kiosk, toy_bundle, tmp_path, caplog, monkeypatch):
    def full(*_: object) -> None:
        raise PerfusionError("now.png cannot be written: no space left on device.")

    with Runtime(toy_bundle) as runtime:
        with monkeypatch.context() as context:
            context.setattr(kiosk, "save", full)
            kiosk.draw(runtime, [], 0, tmp_path / "now.png")
        assert "no space left" in caplog.text and not list(tmp_path.iterdir())
        kiosk.draw(runtime, [], 1, tmp_path / "now.png")
    assert [path.name for path in tmp_path.iterdir()] == ["now.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_ends_it_without_a_fault_and_leaves_a_whole_picture(toy_bundle, tmp_path):
    words = [PROGRAM, tmp_path, tmp_path / "pictures", "--bundle", toy_bundle, "--every", "0"]
    process = subprocess.Popen([sys.executable, *map(str, words)], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "pictures" / "now.png").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in said
    (picture,) = (tmp_path / "pictures").iterdir()
    Image.open(picture).load()
