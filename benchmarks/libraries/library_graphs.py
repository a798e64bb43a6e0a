"""The graph of a UNet by each library that computes it, and a folder of the same weights as diffusers has it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT
from perfusion.bundle.graph_io import GraphIO
from perfusion.errors import DeviceError
from perfusion.runtime.compute.compiled_models import CompiledModels
from perfusion.runtime.compute.onnx_graph import OnnxGraph
from perfusion.runtime.compute.openvino_device import OpenVINODevice
from perfusion.runtime.compute.openvino_graph import OpenVINOGraph

__all__ = ["FOLDER", "libraries", "open_graph", "precisions", "prepare", "with_concepts"]

FOLDER = ROOT / "build" / "providers"
SIDE = 32  # of the latents: pictures of 256 pixels


def open_graph(
    library: str, path: Path, inputs: tuple[str, ...], threads: int, *, cached: bool = False
) -> Any:
    """A graph by one of the libraries: "onnxruntime", "openvino", "openvino bf16"."""
    if library == "onnxruntime":
        return OnnxGraph(path, inputs, "out_sample", "cpu", threads)
    device = OpenVINODevice("CPU", threads, library.partition(" ")[2] or "fp32")
    ends = GraphIO(file=path, inputs=inputs, outputs=("out_sample",))
    return OpenVINOGraph(device, ends, path.name, CompiledModels() if cached else None)


def precisions() -> list[str]:
    """What OpenVINO computes in here."""
    known = []
    for precision in ("fp32", "bf16", "fp16"):
        try:
            OpenVINODevice(precision=precision)
        except DeviceError:
            continue
        known.append(precision)
    return known


def libraries() -> list[str]:
    """ONNX Runtime, and OpenVINO in each of its precisions."""
    return ["onnxruntime", *("openvino" if name == "fp32" else f"openvino {name}" for name in precisions())]


def with_concepts(fed: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The inputs with so many rows of concepts, whose gates stay closed so that torch computes the same."""
    axes = {"key_gate": 2, "value_gate": 2, "concept_keys": 0, "concept_values": 0}
    return {
        name: np.repeat(array, count, axes[name]) if name in axes else array for name, array in fed.items()
    }


def prepare(*, short: bool) -> None:
    """Write the graph of a UNet with random weights, its inputs, and a pipeline of diffusers with these weights."""
    from benchmarks.step import CONFIG, SHORT, build_unet, export, feeds

    settings = json.loads(CONFIG.read_text())
    unet = build_unet(settings["unet"] | (SHORT if short else {}))
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "diffusers").mkdir(parents=True)
    unet.save_pretrained(FOLDER / "diffusers" / "unet")
    if not short:
        _save_rest(FOLDER / "diffusers", settings)
    export(unet, FOLDER / "unet.onnx")
    arrays: Any = feeds(unet, SIDE)
    np.savez(FOLDER / "feeds.npz", **arrays)


def _save_rest(folder: Path, settings: Mapping[str, Any]) -> None:
    """The text encoder and the VAE, without which stable-diffusion.cpp opens no model, under the names it knows."""
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    (text_encoder,) = settings["text_encoders"]
    weights = CLIPTextModel(CLIPTextConfig(**text_encoder)).state_dict()
    prefix = "text_model."
    tensors = {prefix + name.removeprefix(prefix): tensor.contiguous() for name, tensor in weights.items()}
    (folder / "text_encoder").mkdir()
    save_file(tensors, folder / "text_encoder" / "model.safetensors")
