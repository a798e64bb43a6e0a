"""Graphs in float16: what stays in float32, that it does, and the numbers they are held against."""

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch
from diffusers.models.attention_processor import Attention
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from perfusion.base.attention import ConceptAttnProcessor, installed
from perfusion.base.base_model import load_base
from perfusion.errors import ExportError
from perfusion.export.convert import _free_dimensions, _weightless, example_inputs, to_onnx
from perfusion.export.graph_modules import End, Graph, graphs_of
from perfusion.export.half import check_places, in_half, kept_places
from perfusion.export.proof.overflow import first_overflow
from perfusion.export.proof.reference import answers
from perfusion.export.proof.trials import cases
from perfusion.export.weights import save


def with_config(base, part, **settings):
    """The base with other settings of a part; the part is a copy."""
    changed = copy.deepcopy(getattr(base, part))
    changed.register_to_config(**settings)
    return dataclasses.replace(base, **{part: changed})


def test_only_the_vae_of_sdxl_stays_in_float32_and_not_the_one_repaired_for_float16(base, xl_base):
    assert base.vae.config.force_upcast is True  # the default, which SD1's and SD2's VAEs say too
    assert kept_places(dataclasses.replace(base, family="sd15")) == ()
    assert kept_places(xl_base) == ("vae_decoder", "vae_encoder")
    assert kept_places(with_config(xl_base, "vae", force_upcast=False)) == ()


def test_the_attention_of_a_unet_that_asks_for_it_stays_in_float32(base):
    other = dataclasses.replace(base, family="sd21")  # the toy is of pocket's family, see below
    assert kept_places(with_config(other, "unet", upcast_attention=True)) == ("unet.attention",)


def test_what_a_user_keeps_is_added_once(xl_base):
    assert kept_places(xl_base, ["unet.mid_block", "vae_decoder"]) == (
        "vae_decoder", "vae_encoder", "unet.mid_block"
    )  # fmt: skip


@pytest.mark.parametrize(
    "place, message",
    [
        ("decoder", "'decoder' names no graph; expected one of text_encoder, unet, vae_decoder, vae_encoder"),
        (
            "unet.middle",
            r"unet has no module 'middle'; expected unet, unet\.attention, or a .* unet\.conv_in",
        ),
    ],
)
def test_a_place_that_is_not_there_is_refused_with_those_that_are(graphs, place, message):
    with pytest.raises(ExportError, match=message):
        check_places(list(graphs.values()), [place])
    check_places(list(graphs.values()), ["unet", "unet.attention", "unet.mid_block", "vae_decoder.decoder"])


class Attends(nn.Module):
    """A cross-attention layer whose scores pass what float16 holds, and whose output does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = Attention(query_dim=8, cross_attention_dim=8, heads=1, dim_head=8)
        self.attention.set_processor(ConceptAttnProcessor(slice(0, 8), slice(0, 8)))
        for layer in (self.attention.to_q, self.attention.to_k):
            layer.weight.data *= 500

    def forward(self, sample: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        out: Tensor = self.attention(sample, encoder_hidden_states=encoder_hidden_states)
        return out


def attends() -> Graph:
    states = ("batch", "tokens", 8)
    return Graph(
        name="unet",
        module=Attends(),
        inputs=(End(name="sample", dims=states), End(name="encoder_hidden_states", dims=states)),
        outputs=(End(name="out", dims=states),),
        example={"batch": 2, "tokens": 5},
    )


@pytest.mark.parametrize("places, finite", [((), False), (("unet.attention",), True), (("unet",), True)])
def test_attention_scores_that_overflow_are_finite_where_they_are_kept(
    open_session, tmp_path, places, finite
):
    graph = attends()
    save(to_onnx(in_half(graph, places)), tmp_path / "graph.onnx")
    random = np.random.default_rng(0)
    feeds = {
        name: random.normal(size=(2, 5, 8)).astype(np.float16) for name in ("sample", "encoder_hidden_states")
    }
    with np.errstate(all="ignore"):
        found = np.asarray(next(iter(ReferenceEvaluator(str(tmp_path / "graph.onnx")).run(None, feeds))))
    assert found.dtype == np.float16
    assert np.isfinite(found).all() == finite
    if finite:
        (expected,) = answers(graph, tuple(torch.tensor(feed) for feed in feeds.values()))
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=5e-3)
    processor: object = graph.module.get_submodule("attention").processor
    assert type(processor) is ConceptAttnProcessor


def test_a_weight_that_float16_has_no_room_for_is_an_error_with_its_name(tmp_path):
    graph = attends()
    graph.module.get_parameter("attention.to_v.weight").data[0, 0] = 70_000
    model = to_onnx(in_half(graph, ()))
    with pytest.raises(
        ExportError, match=r"weight attention\.to_v\.weight goes up to 7e\+04 and float16 to 65504"
    ):
        save(model, tmp_path / "graph.onnx")


@pytest.mark.parametrize("opset", [20, 23])
def test_converting_twice_gives_the_same_bytes_in_either_opset(tmp_path, opset):
    for name in ("one", "two"):
        save(to_onnx(in_half(attends(), ["unet.attention"]), opset=opset), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    model = onnx.load(tmp_path / "one")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == opset
    assert [node.op_type for node in model.graph.node].count("Attention") == (opset == 23)


def test_a_conversion_leaves_the_module_with_its_own_weights():
    graph = attends()
    before = dict(graph.module.named_parameters())
    to_onnx(in_half(graph, ()))
    assert all(tensor is before[name] for name, tensor in graph.module.named_parameters())


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_the_reference_of_a_model_stored_in_half_is_that_of_the_model_in_float32(
    toy_model, graphs, base, name
):
    """Weights widened module by module, against weights widened at once: the same numbers to the bit."""
    stored = load_base(toy_model, torch.float16)
    with installed(stored.unet):
        graph = next(graph for graph in graphs_of(stored) if graph.name == name)
        case = next(iter(cases(graphs[name], vocab_size=base.vocab_size)))
        inputs = tuple(case.feeds.values())
        for ours, expected in zip(answers(graph, inputs), answers(graphs[name], inputs), strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)
        if name == "unet":
            assert stored.unet.dtype == torch.float16  # back as it was


def test_the_embedded_models_encoder_passes_float16_and_is_kept(tmp_path):
    """Or the command would fail on the model that it takes when none is named."""
    base = load_base(None)
    assert kept_places(base) == ("vae_encoder",)
    graph = next(graph for graph in graphs_of(base) if graph.name == "vae_encoder")
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float16)
    largest = []
    handles = [
        part.register_forward_hook(lambda _, given, output: largest.append(float(output.abs().max())))
        for part in graph.module.modules()
        if isinstance(part, nn.Conv2d)
    ]
    (expected,) = answers(graph, (torch.tensor(picture),))
    for handle in handles:
        handle.remove()
    assert max(largest) > 65504
    save(to_onnx(in_half(graph, kept_places(base))), tmp_path / "graph.onnx")
    outputs, overflow = first_overflow("vae_encoder", tmp_path / "graph.onnx", {"sample": picture})
    assert overflow is None
    assert outputs[0].dtype == np.float16
    np.testing.assert_allclose(outputs[0], expected.numpy(), rtol=0, atol=1e-2 * float(expected.abs().max()))


def test_a_half_graph_is_traced_at_the_first_try_with_its_batch_free():
    """Where that fails, torch.onnx takes another way that needs twice the time, and says nothing."""
    graph = in_half(attends(), ())
    mode = FakeTensorMode()
    with torch.no_grad(), _weightless(graph.module.eval(), graph.weight_dtype, mode):
        torch.export.export(
            graph.module,
            tuple(mode.from_tensor(tensor) for tensor in example_inputs(graph, graph.example)),
            dynamic_shapes=_free_dimensions(graph),
            strict=False,
        )
