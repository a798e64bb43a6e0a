"""The check that ends every export must be able to fail."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from perfusion.errors import ExportError
from perfusion.export.proof.parity import TOLERANCE, check_parity
from perfusion.export.proof.trials import cases, make_trials, open_session, relative_error, run_session
from perfusion.export.weights import save


def test_the_relative_error_is_that_of_the_euclidean_norm():
    expected = np.array([3.0, 4.0], np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(expected * 1.5, expected) == pytest.approx(0.5)
    assert relative_error(np.array([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert relative_error(expected[:1], expected) == np.inf
    assert np.isnan(relative_error(np.array([np.nan, 4.0]), expected))


def test_the_cases_cover_no_one_and_four_concepts_and_a_batch_of_mixed_rows(graphs, base):
    found = list(cases(graphs["unet"], vocab_size=base.vocab_size))
    assert [case.feeds["concept_keys"].shape[0] for case in found] == [0, 1, 4]
    mixed = found[-1].feeds["value_gate"]
    assert not mixed[0].any()
    assert not mixed[1, :, ::2].any()
    assert mixed[1, :, 1::2].all()
    assert mixed[2].all()
    shapes = {case.feeds["sample"].shape[2:] for case in found}
    assert len(shapes) == 2
    assert all(height != width for height, width in shapes)
    assert len({case.feeds["encoder_hidden_states"].shape[1] for case in found}) == 2
    assert not torch.equal(found[0].feeds["key_hidden_states"], found[0].feeds["encoder_hidden_states"])


def test_the_text_cases_use_every_concept_and_no_id_beyond(graphs, base):
    for case in cases(graphs["text_encoder"], vocab_size=base.vocab_size):
        concepts = case.feeds["concept_embeddings"].shape[0]
        assert case.feeds["input_ids"].max() < base.vocab_size + concepts
        assert case.feeds["input_ids"].min() >= 0


def test_the_exported_graphs_pass_with_room(graphs, base, exported):
    for name, graph in graphs.items():
        error = check_parity(graph, exported.folder / f"{name}.onnx", vocab_size=base.vocab_size)
        assert 0 < error < TOLERANCE / 10


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_a_weight_that_is_off_fails_with_the_graphs_name_and_the_number(
    graphs, base, converted, tmp_path, name
):
    model = converted[name].clone()
    value = next(
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > 500
    )
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
    save(model, tmp_path / "graph.onnx")
    with pytest.raises(
        ExportError,
        match=rf"^{name}: ONNX Runtime and torch differ by \d\.\de-0\d .*at most 1e-04; they part",
    ):
        check_parity(graphs[name], tmp_path / "graph.onnx", vocab_size=base.vocab_size)


def test_not_a_number_fails(graphs, base, converted, tmp_path):
    model = converted["vae_encoder"].clone()
    value = next(value for name, value in model.graph.initializers.items() if name.endswith("conv_out.bias"))
    assert value.const_value is not None
    value.const_value = ir.tensor(np.full_like(value.const_value.numpy(), np.nan), name=value.name)
    save(model, tmp_path / "graph.onnx")
    with pytest.raises(ExportError, match="differ by nan"):
        check_parity(graphs["vae_encoder"], tmp_path / "graph.onnx", vocab_size=base.vocab_size)


def test_a_graph_that_does_not_open_is_an_error_with_its_name(graphs, base, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="unet: ONNX Runtime does not accept the graph"):
        check_parity(graphs["unet"], tmp_path / "graph.onnx", vocab_size=base.vocab_size)


def test_a_graph_that_opens_and_does_not_run_is_an_error_with_its_name(graphs, base, converted, tmp_path):
    """A channel too few: nothing notices before the call."""
    model = converted["vae_encoder"].clone()
    value = next(v for name, v in model.graph.initializers.items() if name.endswith("quant_conv.weight"))
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy()[:, 1:].copy(), name=value.name)
    save(model, tmp_path / "graph.onnx")
    with pytest.raises(
        ExportError, match=r"vae_encoder: ONNX Runtime (cannot run|does not accept) the graph: "
    ):
        check_parity(graphs["vae_encoder"], tmp_path / "graph.onnx", vocab_size=base.vocab_size)


def test_a_call_that_fails_is_an_error_with_the_graphs_name(exported):
    session = open_session("vae_encoder", exported.folder / "vae_encoder.onnx")
    with pytest.raises(ExportError, match="vae_encoder: ONNX Runtime cannot run the graph: "):
        run_session("vae_encoder", session, {"sample": np.zeros((1, 5, 32, 32), np.float32)})


def test_a_model_with_damaged_weights_is_not_taken_for_a_bad_conversion(graphs, base):
    """Also where some rows are sound: torch itself has no number to hold the graph against."""
    weight = graphs["vae_encoder"].module.get_parameter("vae.quant_conv.bias")
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0] = float("nan")
    try:
        with pytest.raises(
            ExportError, match=r"^vae_encoder: torch itself gets no finite .* weights are damaged$"
        ):
            make_trials(graphs["vae_encoder"], vocab_size=base.vocab_size)
    finally:
        with torch.no_grad():
            weight.copy_(before)
