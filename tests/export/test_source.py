"""How a model is stored, and whether its bundle has room."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch

from perfusion.errors import ExportError
from perfusion.export import export_bundle
from perfusion.export.source import check_room, open_model, stored_dtype

UNET = "unet/diffusion_pytorch_model.safetensors"


def test_a_model_in_half_is_opened_in_half_and_any_other_in_float32(toy_model, tmp_path):
    assert stored_dtype(toy_model) == torch.float16
    folder = shutil.copytree(toy_model, tmp_path / "model")
    assert stored_dtype(folder) == torch.float16
    weights = safetensors.numpy.load_file(folder / UNET)
    weights["conv_in.bias"] = weights["conv_in.bias"].astype(np.float32)
    safetensors.numpy.save_file(weights, folder / UNET)
    assert stored_dtype(folder) == torch.float32
    assert open_model(folder).unet.dtype == torch.float32
    assert stored_dtype(folder / UNET) == torch.float32
    (folder / UNET).write_bytes(b"no safetensors")
    assert stored_dtype(folder) == torch.float16  # who opens it says what is wrong
    assert stored_dtype(tmp_path / "nothing") == torch.float32


def test_too_little_room_is_told_before_the_conversion_with_both_numbers(toy_model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "perfusion.export.bundle.to_onnx", lambda *_, **__: pytest.fail("the conversion began")
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, free=5_000_000))
    with pytest.raises(ExportError, match=r"needs about 0\.1 GB and .* has 0\.0 GB free; make room"):
        export_bundle(toy_model, tmp_path / "deep" / "bundle")
    assert not list(tmp_path.iterdir())


def test_the_estimate_covers_the_bundle(exported, toy_model, monkeypatch, tmp_path):
    base = open_model(toy_model)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, free=exported.size))
        with pytest.raises(ExportError):
            check_room(base, tmp_path / "bundle", "fp32")
    numbers = sum(weight.numel() for part in base.parts for weight in part.parameters())
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, free=2 * numbers + (70 << 20))
    )
    check_room(base, tmp_path / "bundle", "fp32")
