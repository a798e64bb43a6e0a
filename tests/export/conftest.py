"""The toy pipeline of tests/make_toy_bundle.py, converted once, and an SDXL-shaped one: conversion is what takes the
time."""

import json
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers import UNet2DConditionModel

from perfusion.base.attention import installed
from perfusion.base.base_model import BaseModel, load_base
from perfusion.export import Exported, export_bundle
from perfusion.export import exporter as bundle
from perfusion.export.convert import to_onnx
from perfusion.export.graph_modules import Graph, graphs_of

OpenSession = Callable[[Path], onnxruntime.InferenceSession]
Run = Callable[..., np.ndarray]
"""Runs a graph of the bundle: ``run("unet", sample=..., ...)``."""


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder, weights in float16."""
    maker = runpy.run_path(str(Path(__file__).parents[1] / "make_toy_bundle.py"))
    folder = tmp_path_factory.mktemp("toy") / "model"
    maker["save_toy_model"](folder)
    return folder


@pytest.fixture(scope="session")
def xl_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder in SDXL's structure, weights in float16."""
    maker = runpy.run_path(str(Path(__file__).parents[1] / "perfusion" / "conftest.py"))
    folder = tmp_path_factory.mktemp("xl") / "model"
    maker["build_tiny_xl"]().to(torch.float16).save_pretrained(folder)
    (folder / "perfusion.json").write_text('{"family": "tinyxl"}')
    return folder


@pytest.fixture(scope="session")
def xl_base(xl_model: Path) -> BaseModel:
    return load_base(xl_model)


@pytest.fixture(scope="session")
def xl_exported(xl_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """That model as a float16 bundle."""
    return export_bundle(xl_model, tmp_path_factory.mktemp("xl-exported") / "bundle", precision="fp16")


@pytest.fixture(scope="session")
def consistency_model(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model as LCM has it: a UNet that reads the guidance scale."""
    folder = Path(shutil.copytree(toy_model, tmp_path_factory.mktemp("lcm") / "model"))
    settings = UNet2DConditionModel.load_config(folder / "unet") | {"time_cond_proj_dim": 12}
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(settings).half().save_pretrained(folder / "unet")
    scheduler = {"_class_name": "LCMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                 "beta_schedule": "scaled_linear", "original_inference_steps": 40}  # fmt: skip
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "LatentConsistencyModelPipeline", "scheduler": ["diffusers", "LCMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "perfusion.json").write_text('{"family": "pocket"}')
    return folder


@pytest.fixture(scope="session")
def base(toy_model: Path) -> BaseModel:
    return load_base(toy_model)


@pytest.fixture(scope="session")
def graphs(base: BaseModel) -> Iterator[dict[str, Graph]]:
    with installed(base.unet):
        yield {graph.name: graph for graph in graphs_of(base)}


@pytest.fixture(scope="session")
def converted(graphs: dict[str, Graph]) -> dict[str, ir.Model]:
    """The graphs as they leave the exporter; take a `clone()` to change one."""
    return {name: to_onnx(graph) for name, graph in graphs.items()}


@pytest.fixture
def fast_export(converted: dict[str, ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `export_bundle` of the toy model skip the conversion, and nothing else."""
    monkeypatch.setattr(bundle, "to_onnx", lambda graph, **_: converted[graph.name].clone())


@pytest.fixture(scope="session")
def exported(
    toy_model: Path, converted: dict[str, ir.Model], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle, "to_onnx", lambda graph, **_: converted[graph.name].clone())
        return export_bundle(toy_model, tmp_path_factory.mktemp("exported") / "bundle")


@pytest.fixture(scope="session")
def int8_exported(
    toy_model: Path, converted: dict[str, ir.Model], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle, "to_onnx", lambda graph, **_: converted[graph.name].clone())
        return export_bundle(toy_model, tmp_path_factory.mktemp("int8") / "bundle", precision="int8")


@pytest.fixture(scope="session")
def open_session() -> OpenSession:
    def opened(path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the order of sums, hence every bit, is the same each time
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    return opened


@pytest.fixture(scope="session")
def run(exported: Exported, open_session: OpenSession) -> Run:
    sessions: dict[str, onnxruntime.InferenceSession] = {}

    def run_graph(name: str, **feeds: np.ndarray | torch.Tensor) -> np.ndarray:
        if name not in sessions:
            sessions[name] = open_session(exported.folder / f"{name}.onnx")
        arrays = {key: np.asarray(feed) for key, feed in feeds.items()}
        return np.asarray(sessions[name].run(None, arrays)[0])

    return run_graph
