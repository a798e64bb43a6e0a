"""The toy bundle, the same model in torch, and concepts made up for it."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfusion import Concept
from perfusion.bundle.description import Bundle
from perfusion.bundle.reader import read_bundle
from perfusion.runtime import GraphCall, MockBackend, Runtime, make_backend

TESTS = Path(__file__).parents[1]
TOY_BUNDLE = TESTS / "data" / "toy_bundle"


@pytest.fixture(scope="session")
def provider(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What the tests of the runtime draw with; what one of them compiled, the others find."""
    name: str = request.config.getoption("--provider")
    with pytest.MonkeyPatch.context() as change:
        if name != "cpu":
            change.setenv("PERFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield name


@pytest.fixture
def runtime(provider: str) -> Iterator[Runtime]:
    with Runtime(TOY_BUNDLE, provider=provider, threads=1) as opened:
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


@pytest.fixture
def mocked() -> Iterator[Callable[..., Runtime]]:
    """Opens runtimes on a bundle (the toy one) whose graphs answer by a function; see `MockBackend`."""
    with ExitStack() as stack:

        def open_runtime(
            answer: Callable[[GraphCall], Any], folder: Path = TOY_BUNDLE, **options: Any
        ) -> Runtime:
            behind = make_backend(read_bundle(folder), "cpu", 1)
            return stack.enter_context(
                Runtime(folder, provider=MockBackend(answer, behind=behind), **options)
            )

        yield open_runtime


def computed_by_torch(base: Any, control: Any = ()) -> Callable[[GraphCall], dict[str, np.ndarray]]:
    """Answers with the torch modules that graphs are exported from: no minutes of exporting."""
    from perfusion.export.graph_modules import graphs_of

    graphs = {graph.name: graph for graph in graphs_of(base)}
    graphs |= {graph.name if graph.name == "unet_controlnet" else "controlnet": graph for graph in control}

    def answer(call: GraphCall) -> dict[str, np.ndarray]:
        import torch

        graph = graphs[call.graph]
        assert set(call.feeds) == {end.name for end in graph.inputs}
        with torch.no_grad():
            outputs = graph.module(*(torch.tensor(call.feeds[end.name]) for end in graph.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {end.name: value.numpy() for end, value in zip(graph.outputs, outputs, strict=True)}

    return answer


@pytest.fixture(scope="session")
def tiny_xl() -> Any:
    """Stable Diffusion XL in little, as a diffusers pipeline."""
    return module_at("perfusion/conftest.py").build_tiny_xl()


@pytest.fixture(scope="session")
def by_torch() -> Any:
    """See `drawn_by_torch`."""
    return drawn_by_torch


@contextmanager
def drawn_by_torch(pipeline: Any, folder: Path, *, controlnets: Any = None, **own: Any) -> Iterator[Runtime]:
    """A runtime on the bundle of a pipeline, its bundle.json as it is exported and its graphs run by torch."""
    from perfusion.base.attention import installed
    from perfusion.base.base_model import load_base
    from perfusion.base.usual_drawing import FAMILY_FILE
    from perfusion.export.control_parts import control_entry, control_graphs
    from perfusion.export.manifest import file_table, make_manifest

    model, bundle = folder / "model", folder / "bundle"
    pipeline.save_pretrained(model)
    (model / FAMILY_FILE).write_text(json.dumps({"family": "tiny", **own}))
    base = load_base(model)
    control = control_graphs(base, controlnets or {})
    bundle.mkdir()
    names = ["text_encoder.onnx", "text_encoder_2.onnx", "unet.onnx", "vae_decoder.onnx", "vae_encoder.onnx"]
    names += [f"{graph.name}.onnx" for graph in control]
    for name in (*names, "key_projections.safetensors"):
        (bundle / name).write_bytes(b"")
    base.tokenizer.backend_tokenizer.save(str(bundle / "tokenizer.json"))
    files = file_table(bundle, [*names, "tokenizer.json", "key_projections.safetensors"])
    manifest = make_manifest(base, files=files, parity={}, precision="fp32")
    if control:
        manifest["controlnets"] = control_entry(control, controlnets)
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with (
        installed(base.unet),
        Runtime(bundle, provider=MockBackend(computed_by_torch(base, control))) as runtime,
    ):
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
