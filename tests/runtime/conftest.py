"""The toy bundle, the same model in torch, and concepts made up for it."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfusion import Concept
from perfusion.runtime import Bundle, Runtime, read_bundle

TESTS = Path(__file__).parents[1]
TOY_BUNDLE = TESTS / "data" / "toy_bundle"


@pytest.fixture(scope="session")
def toy_bundle() -> Path:
    """A committed bundle of random weights; no test may change it."""
    return TOY_BUNDLE


@pytest.fixture
def bundle_copy(tmp_path: Path) -> Path:
    """The toy bundle, to be broken."""
    return Path(shutil.copytree(TOY_BUNDLE, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return read_bundle(TOY_BUNDLE)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(TOY_BUNDLE, provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def toy_pipeline() -> Any:
    """The model behind the toy bundle as a diffusers pipeline, in float32."""
    import torch

    from perfusion.base import fingerprint

    spec = importlib.util.spec_from_file_location("make_toy_bundle", TESTS / "make_toy_bundle.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pipeline = module.build_toy_pipeline().to(torch.float16).to(torch.float32)  # bundles hold float16 weights
    pipeline.tokenizer = _transformers_tokenizer()
    pipeline.set_progress_bar_config(disable=True)
    encoder = pipeline.text_encoder.config
    found = fingerprint(pipeline.unet, encoder.vocab_size, encoder.hidden_size)
    assert found == read_bundle(TOY_BUNDLE).base_fingerprint, "run python tests/make_toy_bundle.py"
    return pipeline


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
