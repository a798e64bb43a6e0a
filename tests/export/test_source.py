"""How a model is stored, and whether its bundle has room."""

import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

from perfusion.errors import ExportError
from perfusion.export import export_bundle
from perfusion.export.source import check_room, open_model, room_for, stored_dtype

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
        "perfusion.export.exporter.to_onnx", lambda *_, **__: pytest.fail("the conversion began")
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


def test_the_estimate_of_a_half_bundle_counts_what_stays_in_float32(xl_model, xl_exported, monkeypatch):
    """Of SDXL's VAE every weight has four bytes; the files have little besides weights."""
    monkeypatch.setattr("perfusion.export.source._SPARE", 0)
    monkeypatch.setattr("perfusion.export.source.INLINE_LIMIT", 0)
    base = open_model(xl_model)
    files = xl_exported.manifest["files"]
    weights = sum(
        len(tensor.raw_data)
        for name in files
        if name.endswith(".onnx")
        for tensor in onnx.load(xl_exported.folder / name).graph.initializer
        if tensor.name.endswith(("weight", "bias"))  # the others are the causal masks
    )
    weights += files["key_projections.safetensors"]["bytes"] - 200  # its header
    kept = xl_exported.manifest["kept_fp32"]
    assert weights <= room_for(base, "fp16", kept) < 1.1 * weights
    unet = sum(weight.numel() for weight in base.unet.parameters())
    assert room_for(base, "fp16", [*kept, "unet.mid_block"]) == room_for(base, "fp16", kept) + 2 * unet


def test_the_estimate_of_a_half_bundle_has_room_for_the_copy_that_is_looked_into(toy_model, monkeypatch):
    base = open_model(toy_model)
    numbers = [sum(weight.numel() for weight in part.parameters()) for part in base.parts]
    without = room_for(base, "fp32")  # in as many bytes, since float16 holds this model exactly
    assert room_for(base, "fp16") == without + 2 * max(numbers)
    monkeypatch.setattr(
        "perfusion.export.source.INLINE_LIMIT", 1000
    )  # larger weights lie in a file of their own
    assert room_for(base, "fp16") == without + 1000


def test_keys_that_float16_does_not_hold_are_counted_in_float32(toy_model, tmp_path):
    base = open_model(toy_model)
    before = room_for(base, "fp16")
    base.unet.float()
    assert room_for(base, "fp16") - before == 2 * base.layers[-1].key_slice.stop * base.text_dim
