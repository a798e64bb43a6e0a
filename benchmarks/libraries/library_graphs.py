"""The graph of a UNet by each library that computes it, and a folder of the same weights as diffusers has it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perfusion.bundle.graph_io import GraphIO
from perfusion.bundle.reader import read_bundle
from perfusion.embedded import bundle_path
from perfusion.errors import DeviceError
from perfusion.runtime import GraphCall, MockBackend, Runtime, make_backend
from perfusion.runtime.compute.compiled_models import CompiledModels
from perfusion.runtime.compute.onnx_graph import OnnxGraph
from perfusion.runtime.compute.openvino_device import OpenVINODevice
from perfusion.runtime.compute.openvino_graph import OpenVINOGraph

__all__ = [
    "SIDE",
    "Subject",
    "libraries",
    "open_graph",
    "precisions",
    "prepare",
    "subjects",
    "with_concepts",
    "with_rows",
]

SIDE = 32  # of the latents: pictures of 256 pixels
_SHARED = ("concept_keys", "concept_values")  # by all rows of a call


@dataclass(frozen=True)
class Subject:
    """A UNet's graph, and a file of the inputs of one step with guidance."""

    model: str
    graph: Path
    feeds: Path


def subjects(folder: Path) -> tuple[Subject, Subject]:
    """The embedded model's UNet, and the one that `prepare` wrote into a folder, by its name there."""
    return (
        Subject("pocket", read_bundle(bundle_path()).unet.file, folder / "pocket_feeds.npz"),
        Subject((folder / "name").read_text(), folder / "unet.onnx", folder / "feeds.npz"),
    )


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


def with_rows(fed: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The inputs of a step of so many rows, made of the rows of a step with guidance."""
    return {
        name: array if name in _SHARED else np.concatenate([array] * (count // len(array)))
        for name, array in fed.items()
    }


def prepare(folder: Path, *, short: bool) -> None:
    """Write a pipeline of Stable Diffusion 1.5's size with random weights in half, and its UNet's graph and inputs.

    `short`: the graph of a narrow UNet, while the pipeline stays: stable-diffusion.cpp knows the real widths only.
    """
    from benchmarks.libraries.torch_unet import load_unet
    from benchmarks.models.random_model import save_random_model
    from benchmarks.step import CONFIG, SHORT, build_unet, export, feeds

    shutil.rmtree(folder, ignore_errors=True)
    pipeline = folder / "diffusers"
    save_random_model("sd15", pipeline)
    _name_as_published(pipeline / "text_encoder" / "model.safetensors")
    if short:
        unet = build_unet(json.loads(CONFIG.read_text())["unet"] | SHORT)
        unet.save_pretrained(folder / "unet")
    else:
        (folder / "unet").symlink_to(pipeline / "unet")
        unet = load_unet(folder)
    (folder / "name").write_text("narrow" if short else "sd15")
    export(unet, folder / "unet.onnx")
    arrays: Any = feeds(unet, SIDE)
    np.savez(folder / "feeds.npz", **arrays)
    np.savez(folder / "pocket_feeds.npz", **_pocket_feeds())


def _name_as_published(file: Path) -> None:
    """Give a text encoder's weights the names that stable-diffusion.cpp knows, which transformers now shortens."""
    from safetensors.torch import load_file, save_file

    prefix = "text_model."
    weights = {prefix + name.removeprefix(prefix): tensor for name, tensor in load_file(file).items()}
    save_file(weights, file)


def _pocket_feeds() -> dict[str, Any]:
    """What the embedded model's UNet is fed in the first step of a picture with a concept."""
    calls: list[dict[str, Any]] = []

    def answer(call: GraphCall) -> dict[str, Any]:
        if call.graph == "unet":
            calls.append({name: np.array(array) for name, array in call.feeds.items()})
        return call.compute()

    backend = MockBackend(answer, behind=make_backend(read_bundle(bundle_path()), "cpu"))
    with Runtime(provider=backend) as runtime:
        runtime.load_concept("school-bus")
        runtime.generate("a photo of a <school-bus>", num_inference_steps=1)
    return calls[0]
