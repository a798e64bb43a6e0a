"""Engines without a GPU: a bundle to build from, TensorRT for RTX where there is, and plans that are only bytes."""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from perfusion.bundle.reader import read_bundle
from perfusion.tensorrt.build import BuildOptions, Built
from perfusion.tensorrt.engines import EngineJob, EngineSettings
from perfusion.tensorrt.flavour import import_tensorrt
from perfusion.tensorrt.jobs import engine_jobs
from perfusion.tensorrt.keys import EngineKey
from perfusion.tensorrt.shape_ranges import ShapeOptions

TOY = Path(__file__).parents[2] / "data" / "toy_bundle"


@pytest.fixture(scope="session")
def rtx() -> Any:
    """TensorRT for RTX. Its wheels are for Linux and Windows; where they are missing nothing here can build."""
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip('TensorRT for RTX is not installed: pip install "perfusion-edge[trt-rtx]"')
    return import_tensorrt("trt-rtx")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A bundle to write engines into."""
    return Path(shutil.copytree(TOY, tmp_path / "toy"))


@pytest.fixture
def text_job(toy: Path) -> EngineJob:
    """The smallest graph there is to build: a third of a second."""
    return next(job for job in engine_jobs(read_bundle(toy), ShapeOptions()) if job.graph == "text_encoder")


@pytest.fixture
def settings() -> EngineSettings:
    return EngineSettings(flavour="trt-rtx", target="sm89", precision="fp32", options=BuildOptions())


def _make_key(**fields: Any) -> EngineKey:
    values: dict[str, Any] = {
        "graph": "unet",
        "graph_sha256": "ab" * 32,
        "flavour": "trt",
        "version": "10.3.0",
        "platform": "linux-aarch64",
        "target": "sm87",
        "driver": 12,
        "precision": "fp16",
        "shape_ranges": (
            {"batch": (2, 2, 2), "height": (64, 64, 64)},
            {"batch": (4, 4, 4), "height": (64, 64, 64)},
        ),
        "options": asdict(BuildOptions()),
    }
    return EngineKey(**(values | fields))


@pytest.fixture
def key() -> EngineKey:
    return _make_key()


@pytest.fixture
def built() -> Built:
    """A plan that is no plan: the cache does not look inside."""
    return Built(
        engine=memoryview(bytes(range(256)) * 64),
        inputs={"sample": ("half", ("batch", 4, "height", "width")), "timestep": ("float", (1,))},
        outputs={"out_sample": ("half", (-1, 4, -1, -1))},
        timing=None,
    )


@pytest.fixture(scope="session")
def make_key() -> Callable[..., EngineKey]:
    """Makes a valid key; keywords replace fields."""
    return _make_key
