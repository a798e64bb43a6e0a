"""The committed toy bundle is what its script makes: the tests of the runtime rest on it."""

import json
from pathlib import Path

import onnx
import pytest

from perfusion.export.proof.parity import check_parity

TOY_BUNDLE = Path(__file__).parents[1] / "data" / "toy_bundle"
GRAPHS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")

HINT = "run tests/make_toy_bundle.py"


def test_its_manifest_is_what_an_export_writes_today(exported):
    """But for package versions, digests and measured differences, which may be of another day."""
    committed = json.loads((TOY_BUNDLE / "bundle.json").read_text(encoding="utf-8"))
    assert list(committed) == list(exported.manifest), HINT
    assert set(committed["files"]) == set(exported.manifest["files"]), HINT
    for field in set(committed) - {"files", "parity", "versions"}:
        assert committed[field] == exported.manifest[field], f"{field}: {HINT}"


@pytest.mark.parametrize("name", GRAPHS)
def test_its_graphs_compute_what_the_toy_model_computes(graphs, base, name):
    check_parity(graphs[name], TOY_BUNDLE / f"{name}.onnx", vocab_size=base.vocab_size)


@pytest.mark.parametrize("name", GRAPHS)
def test_its_graphs_have_the_ends_and_storage_that_an_export_gives_today(exported, name):
    committed, made = (onnx.load(folder / f"{name}.onnx") for folder in (TOY_BUNDLE, exported.folder))
    assert committed.graph.input == made.graph.input, HINT
    assert committed.graph.output == made.graph.output, HINT
    sizes = [sum(len(tensor.raw_data) for tensor in model.graph.initializer) for model in (committed, made)]
    assert abs(sizes[0] - sizes[1]) < 0.02 * sizes[1], HINT


def test_it_is_small_enough_to_commit():
    assert sum(path.stat().st_size for path in TOY_BUNDLE.iterdir()) < 400_000
