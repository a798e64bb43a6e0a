"""The toy bundle, the same model in torch, and concepts made up for it."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfusion import Concept
from perfusion.bundle.call_size import CallSize
from perfusion.bundle.description import Bundle
from perfusion.bundle.reader import read_bundle
from perfusion.runtime import Runtime

TESTS = Path(__file__).parents[1]
TOY_BUNDLE = TESTS / "data" / "toy_bundle"


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(TOY_BUNDLE, provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def toy_pipeline() -> Any:
    """The model behind the toy bundle as a diffusers pipeline, in float32."""
    torch = pytest.importorskip("torch")

    from perfusion.base.base_model import fingerprint

    pipeline = (
        module_at("make_toy_bundle.py").build_toy_pipeline().to(torch.float16).to(torch.float32)
    )  # bundles hold float16 weights
    pipeline.tokenizer = _transformers_tokenizer()
    pipeline.set_progress_bar_config(disable=True)
    encoder = pipeline.text_encoder.config
    found = fingerprint(pipeline.unet, encoder.vocab_size, encoder.hidden_size)
    assert found == read_bundle(TOY_BUNDLE).base_fingerprint, "run python tests/make_toy_bundle.py"
    return pipeline


def module_at(name: str) -> Any:
    """Another file of the tests."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, TESTS / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TorchGraphs:
    """A bundle's graphs as the torch modules they are exported from: another backend, and no minutes of exporting."""

    provider, reason = "torch", "a test asked for it"

    def __init__(self, base: Any) -> None:
        from perfusion.export.graph_modules import graphs_of

        self._graphs = {graph.name: graph for graph in graphs_of(base)}
        self.calls: list[str] = []

    def stage(self, stage: str) -> None:
        pass

    def admit(self, size: CallSize) -> None:
        pass

    def close(self) -> None:
        pass

    def run(self, name: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        import torch

        self.calls.append(name)
        graph = self._graphs[name]
        assert set(feeds) == {end.name for end in graph.inputs}
        with torch.no_grad():
            given = graph.module(*(torch.tensor(feeds[end.name]) for end in graph.inputs))
        outputs = given if isinstance(given, tuple) else (given,)
        names = [end.name for end in graph.outputs]
        return {key: value.numpy() for key, value in zip(names, outputs, strict=True)}


@pytest.fixture(scope="session")
def tiny_xl() -> Any:
    """Stable Diffusion XL in little, as a diffusers pipeline."""
    return module_at("perfusion/conftest.py").build_tiny_xl()


@pytest.fixture(scope="session")
def by_torch() -> Any:
    """See `drawn_by_torch`."""
    return drawn_by_torch


@contextmanager
def drawn_by_torch(pipeline: Any, folder: Path, **own: Any) -> Iterator[Runtime]:
    """A runtime on the bundle of a pipeline, its bundle.json as it is exported and its graphs run by torch."""
    from perfusion.base.attention import installed
    from perfusion.base.base_model import FAMILY_FILE, load_base
    from perfusion.export.manifest import file_table, make_manifest
    from perfusion.runtime import pipeline as module

    model, bundle = folder / "model", folder / "bundle"
    pipeline.save_pretrained(model)
    (model / FAMILY_FILE).write_text(json.dumps({"family": "tiny", **own}))
    base = load_base(model)
    bundle.mkdir()
    names = ["text_encoder.onnx", "text_encoder_2.onnx", "unet.onnx", "vae_decoder.onnx", "vae_encoder.onnx"]
    for name in (*names, "key_projections.safetensors"):
        (bundle / name).write_bytes(b"")
    base.tokenizer.backend_tokenizer.save(str(bundle / "tokenizer.json"))
    files = file_table(bundle, [*names, "tokenizer.json", "key_projections.safetensors"])
    manifest = make_manifest(base, files=files, parity={}, precision="fp32")
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.MonkeyPatch.context() as patch, installed(base.unet):
        patch.setattr(module, "Graphs", lambda *_, **__: TorchGraphs(base))
        with Runtime(bundle) as runtime:
            yield runtime


def _transformers_tokenizer() -> Any:
    """The bundle's vocabulary in transformers' tokenizer; nothing else is read from the file."""
    from transformers import CLIPTokenizer

    model = json.loads((TOY_BUNDLE / "tokenizer.json").read_bytes())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=77
    )


@pytest.fixture(scope="session")
def make_concept(bundle: Bundle) -> Callable[..., Concept]:
    """Concepts with random numbers of sensible size that fit the toy bundle; keywords replace fields."""

    def made(seed: int = 0, *, rows: int = 1, **fields: Any) -> Concept:
        rng = np.random.default_rng(seed)

        def normal(width: int) -> np.ndarray:
            return rng.standard_normal((rows, width)).astype(np.float32)

        mixing = rng.standard_normal((bundle.text_dim, bundle.text_dim))
        inverse = np.linalg.inv(mixing @ mixing.T / bundle.text_dim + np.eye(bundle.text_dim))
        direction = normal(bundle.text_dim)
        dual = direction @ inverse
        energy = np.einsum("rd,rd->r", direction, dual)
        values: dict[str, Any] = {
            "token": "<cat>",
            "superclass": "cat",
            "base": bundle.base,
            "base_fingerprint": bundle.base_fingerprint,
            "direction": direction,
            "dual": (dual / energy[:, None]).astype(np.float32),
            "energy": energy.astype(np.float32),
            "superclass_encoding": normal(bundle.text_dim),
            "embeddings": (normal(bundle.text_encoder.hidden_size),),
            "target_values": normal(bundle.unet.value_width),
            "target_keys": normal(bundle.unet.key_width),
            "bias": 0.1,  # random encodings hold little of a random direction: a low bias opens the gates
            "temperature": 0.3,
        }
        return Concept(**{**values, **fields})

    return made
