"""A float16 bundle that overflows on what it is really fed is refused, with the place and the remedy."""

import shutil

import numpy as np
import onnx
import pytest

from perfusion.errors import ExportError
from perfusion.export.proof.overflow import first_overflow
from perfusion.export.proof.probe import make_probe, probe

GRAPHS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture
def paths(xl_exported, tmp_path):
    return {
        name: shutil.copy(xl_exported.folder / f"{name}.onnx", tmp_path / f"{name}.onnx") for name in GRAPHS
    }


@pytest.fixture(scope="module")
def given(xl_base):
    return make_probe(xl_base, 64)


def test_it_feeds_a_prompt_and_noise_of_the_pictures_size(given, xl_base):
    assert given.latents == (1, 4, 16, 16)
    assert make_probe(xl_base, 4096).latents == (1, 4, 32, 32)
    first, second = given.input_ids
    assert (first[0, -1], second[0, -1]) == tuple(t.pad_token_id for t in xl_base.tokenizers)


def test_a_sound_bundle_passes(given, paths):
    probe(given, paths)


def enlarge(model, layer, change):
    (tensor,) = [t for t in model.graph.initializer if t.name.endswith(f"{layer}.weight")]
    array = change(onnx.numpy_helper.to_array(tensor).astype(np.float32)).astype(np.float16)
    assert np.isfinite(array).all()
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize(
    "graph, layer, where, remedy",
    [
        ("text_encoder_2", "encoder.layers.0.mlp.fc2", r"at [\w.]*encoder\.layers\.0\.mlp\.fc2", "text_encoder_2"),
        ("unet", "mid_block.resnets.0.conv1", r"at mid_block\.resnets\.0\.conv1", "unet"),
        (
            "unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            r"in the attention after down_blocks\.1\.attentions\.0\.transformer_blocks\.0\.attn1\.to_\w",
            r"unet\.attention",
        ),
    ],
)  # fmt: skip
def test_a_value_beyond_float16_is_told_with_its_place_and_what_to_keep(
    given, paths, graph, layer, where, remedy
):
    model = onnx.load(paths[graph])
    # the scores overflow where neither queries nor keys do; elsewhere finite weights of which a sum is too large
    enlarge(
        model, layer, lambda array: array * 1e4 if layer.endswith("to_q") else np.where(array < 0, -6e4, 6e4)
    )
    if layer.endswith("to_q"):
        enlarge(model, layer.replace("to_q", "to_k"), lambda array: array * 1e3)
    onnx.save(model, paths[graph])
    with pytest.raises(
        ExportError,
        match=rf"^{graph}: a real prompt gives [\d.e+]+ {where}, .* --keep-fp32 {remedy}, or export with",
    ):
        probe(given, paths)
    assert sorted(path.name for path in paths[graph].parent.iterdir()) == sorted(
        f"{name}.onnx" for name in GRAPHS
    )


def test_the_largest_number_is_seen_where_onnxruntime_does_not_round_it(open_session, tmp_path):
    """(x · 1000) · 0.001 with x = 100: finite in float32, in which ONNX Runtime computes both, and not on a GPU."""
    half = onnx.TensorProto.FLOAT16
    nodes = [
        onnx.helper.make_node("Mul", ["x", "large"], ["product"]),
        onnx.helper.make_node("Mul", ["product", "small"], ["y"]),
    ]
    factors = [
        onnx.helper.make_tensor(name, half, [1], [value])
        for name, value in (("large", 1000), ("small", 1e-3))
    ]
    ends = [onnx.helper.make_tensor_value_info(name, half, ["n"]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "main", ends[:1], ends[1:], factors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "graph.onnx")
    for x, largest in ((100, 1e5), (10, None)):
        _, overflow = first_overflow("trial", tmp_path / "graph.onnx", {"x": np.array([x], np.float16)})
        assert (overflow and overflow.largest) == largest


@pytest.mark.parametrize("position", range(3))
def test_a_number_that_is_none_is_seen_wherever_it_stands(tmp_path, position):
    """ONNX Runtime's largest of three numbers is a number where the second one is none."""
    half = onnx.TensorProto.FLOAT16
    ends = [onnx.helper.make_tensor_value_info(name, half, ["n"]) for name in ("x", "y")]
    node = onnx.helper.make_node("Sub", ["x", "x"], ["y"])
    graph = onnx.helper.make_graph([node], "main", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "graph.onnx")
    feed = np.ones(3, np.float16)
    assert first_overflow("trial", tmp_path / "graph.onnx", {"x": feed})[1] is None
    feed[position] = np.inf  # ∞ − ∞
    _, overflow = first_overflow("trial", tmp_path / "graph.onnx", {"x": feed})
    assert overflow is not None
    assert np.isnan(overflow.largest)
