"""The attention processor against diffusers' own and against the formula in numpy."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.utils._python_dispatch import TorchDispatchMode

from perfusion.base import attention as module
from perfusion.base.attention import (
    ConceptAttnProcessor,
    attend_in_regions,
    install,
    installed,
    key_projections,
    layer_table,
    level_count,
    region_levels,
    uninstall,
    value_projections,
)
from perfusion.concept.edit import condition, edited_projection
from perfusion.errors import ModelError

TEXT_DIM, TOKENS = 12, 7


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(1)
    return Attention(query_dim=8, cross_attention_dim=TEXT_DIM, heads=2, dim_head=4).eval()


def predict(unet: UNet2DConditionModel, batch: int = 2, seed: int = 0, **edit: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 4, 4, 4, generator=generator)
    encodings = torch.randn(batch, TOKENS, TEXT_DIM, generator=generator)
    with torch.no_grad():
        noise_pred: torch.Tensor = unet(
            sample, torch.tensor([500.0]), encodings, cross_attention_kwargs=edit or None, return_dict=False
        )[0]
    return noise_pred


def edit_of(unet: UNet2DConditionModel, batch: int, concepts: int, seed: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = sum(layer.key_dim for layer in layer_table(unet))
    return {
        "key_gate": torch.rand(batch, TOKENS, concepts, generator=generator),
        "value_gate": torch.rand(batch, TOKENS, concepts, generator=generator),
        "concept_keys": torch.randn(concepts, width, generator=generator),
        "concept_values": torch.randn(concepts, width, generator=generator),
    }


def test_without_concept_tensors_the_processor_is_diffusers_own_bit_for_bit(unet):
    plain = predict(unet)
    with installed(unet):
        assert torch.equal(predict(unet), plain)


@pytest.mark.property(number=1)
@pytest.mark.parametrize("concepts", [0, 1, 4])
def test_closed_gates_change_no_bit(unet, concepts):
    plain = predict(unet)
    edit = edit_of(unet, 2, concepts)
    edit["key_gate"] = edit["value_gate"] = torch.zeros(2, TOKENS, concepts)
    with installed(unet):
        assert torch.equal(predict(unet, **edit), plain)


@pytest.mark.parametrize("missing", ["key_gate", "value_gate", "concept_keys", "concept_values"])
def test_half_an_edit_of_keys_or_values_adds_nothing(unet, missing):
    both = ("key_gate", "concept_keys") if "key" in missing else ("value_gate", "concept_values")
    edit = edit_of(unet, 2, 1)
    with installed(unet):
        half = predict(unet, **{name: tensor for name, tensor in edit.items() if name != missing})
        none = predict(unet, **{name: tensor for name, tensor in edit.items() if name not in both})
        assert torch.equal(half, none)
        assert not torch.equal(half, predict(unet, **edit))


@pytest.mark.property(number=10)
def test_a_row_of_a_batch_is_what_it_is_alone(unet):
    edit = edit_of(unet, 3, 2)
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(3, 4, 4, 4, generator=generator)
    encodings = torch.randn(3, TOKENS, TEXT_DIM, generator=generator)
    gates = ("key_gate", "value_gate")
    with installed(unet), torch.no_grad():
        together = unet(sample, 500, encodings, cross_attention_kwargs=edit).sample
        for row in range(3):
            own = {name: tensor[row : row + 1] if name in gates else tensor for name, tensor in edit.items()}
            alone = unet(
                sample[row : row + 1], 500, encodings[row : row + 1], cross_attention_kwargs=own
            ).sample
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)


def test_a_concept_reaches_only_the_rows_whose_gates_are_open(unet):
    edit = edit_of(unet, 2, 1)
    edit["key_gate"][0] = edit["value_gate"][0] = 0
    plain = predict(unet)
    with installed(unet):
        edited = predict(unet, **edit)
    assert torch.equal(edited[0], plain[0])
    assert not torch.allclose(edited[1], plain[1], atol=1e-3)


def test_the_order_of_the_concepts_does_not_matter(unet):
    edit = edit_of(unet, 2, 3)
    order = [2, 0, 1]
    turned = {name: tensor[..., order] if "gate" in name else tensor[order] for name, tensor in edit.items()}
    with installed(unet):
        torch.testing.assert_close(predict(unet, **edit), predict(unet, **turned), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lock", ["local", "global"])
def test_one_layer_is_the_formula_followed_by_attention(attention, make_concept, lock):
    """Keys and values by `edited_projection`, softmax(QKᵀ/√d)V written out, all in float64."""
    concept = make_concept(rows=2, text_dim=TEXT_DIM, width=8)
    random = np.random.default_rng(5)
    hidden = random.normal(size=(1, 6, 8))
    encodings = random.normal(size=(TOKENS, TEXT_DIM))
    superclass_encodings = random.normal(size=(TOKENS, TEXT_DIM))
    geometry = {"direction": concept.direction, "dual": concept.dual, "energy": concept.energy}
    knobs = {"bias": np.array([0.4, 0.7]), "temperature": 0.15}

    made = condition(
        encodings, **geometry, **knobs, strength=1.0, lock=lock, superclass_encodings=superclass_encodings
    )
    attention.set_processor(ConceptAttnProcessor(slice(0, 8), slice(0, 8)))
    with torch.no_grad():
        found = attention(
            torch.tensor(hidden, dtype=torch.float32),
            encoder_hidden_states=torch.tensor(made.value_states)[None],
            key_hidden_states=torch.tensor(made.key_states)[None],
            key_gate=torch.tensor(made.key_gate)[None],
            value_gate=torch.tensor(made.value_gate)[None],
            concept_keys=torch.tensor(concept.target_keys),
            concept_values=torch.tensor(concept.target_values),
        )

    def weight(name: str) -> np.ndarray:
        return attention.get_parameter(f"{name}.weight").detach().double().numpy()

    value = edited_projection(encodings, weight("to_v"), concept.target_values, **geometry, **knobs)
    key = edited_projection(encodings, weight("to_k"), concept.target_keys, **geometry, **knobs)
    if lock == "global":
        key = superclass_encodings @ weight("to_k").T
    expected = np.empty((6, 8))
    query = hidden[0] @ weight("to_q").T
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[:, head] @ key[:, head].T / np.sqrt(4)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        expected[:, head] = shares / shares.sum(axis=1, keepdims=True) @ value[:, head]
    expected = expected @ weight("to_out.0").T + attention.get_parameter("to_out.0.bias").detach().numpy()
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_gates_and_targets_meet_in_float32_under_autocast(attention):
    """1000 − 999.5 is a half in float32 and nothing in bfloat16, where both are 1000."""
    attention.set_processor(ConceptAttnProcessor(slice(0, 8), slice(0, 8)))
    with torch.no_grad():
        attention.to_v.weight.zero_()
        attention.to_out[0].weight.copy_(torch.eye(8))
        attention.to_out[0].bias.zero_()
        with torch.autocast("cpu", torch.bfloat16):
            out = attention(
                torch.randn(1, 6, 8),
                encoder_hidden_states=torch.randn(1, TOKENS, TEXT_DIM),
                value_gate=torch.ones(1, TOKENS, 2),
                concept_values=torch.tensor([[1000.0], [-999.5]]).expand(2, 8),
            )
    assert torch.equal(out.float(), torch.full((1, 6, 8), 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gates_and_targets_in_float16_as_a_graph_gets_them_meet_in_float16(attention, dtype):
    """TensorRT for RTX has no product in float32 for sm75, and what was rounded before gains nothing by one."""
    products = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                products.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    attention.to(torch.float16).set_processor(ConceptAttnProcessor(slice(0, 8), slice(0, 8)))
    edit = edit_of_layer(dtype)
    with torch.no_grad(), Seen():
        attention(torch.randn(2, 6, 8).half(), torch.randn(2, TOKENS, TEXT_DIM).half(), **edit)
    assert (torch.float32 in products) is (dtype == torch.float32)


def edit_of_layer(dtype):
    gate, targets = torch.rand(2, TOKENS, 3).to(dtype), torch.randn(3, 8).to(dtype)
    return {"key_gate": gate, "value_gate": gate, "concept_keys": targets, "concept_values": targets}


@pytest.mark.property(number=5)
def test_the_output_is_affine_in_the_values_and_its_gradient_is_the_slope(attention):
    attention.set_processor(ConceptAttnProcessor(slice(0, 8), slice(0, 8)))
    attention.requires_grad_(False)
    gate, hidden, encodings = torch.rand(1, TOKENS, 1), torch.randn(1, 6, 8), torch.randn(1, TOKENS, TEXT_DIM)

    def total(values: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = attention(
            hidden, encoder_hidden_states=encodings, value_gate=gate, concept_values=values
        )
        return out.sum()

    values = torch.zeros(1, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(total(values), values)
    step = torch.randn(1, 8)
    for size in (1.0, 10.0):  # so long a step is exact for an affine function only
        rise = total(size * step) - total(torch.zeros(1, 8))
        torch.testing.assert_close(rise, size * (slope * step).sum(), rtol=1e-4, atol=1e-5)


def test_a_mask_hides_tokens_as_it_does_in_diffusers(attention):
    hidden, encodings = torch.randn(2, 6, 8), torch.randn(2, TOKENS, TEXT_DIM)
    mask = torch.zeros(2, 1, TOKENS)
    mask[..., 4:] = -10000.0
    attention.set_processor(AttnProcessor2_0())
    expected = attention(hidden, encoder_hidden_states=encodings, attention_mask=mask)
    attention.set_processor(ConceptAttnProcessor(slice(0, 8), slice(0, 8)))
    assert torch.equal(attention(hidden, encoder_hidden_states=encodings, attention_mask=mask), expected)


def test_the_layer_table_lists_the_cross_attentions_in_module_order(unet):
    layers = layer_table(unet)
    in_order = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
    assert [layer.name for layer in layers] == in_order
    assert len(layers) == 4
    for layer, following in itertools.pairwise(layers):
        assert following.key_offset == layer.key_offset + layer.key_dim
        assert following.value_offset == layer.value_offset + layer.value_dim


def test_stacked_projections_are_sliced_by_the_layer_table(unet):
    keys, values = key_projections(unet), value_projections(unet)
    for layer in layer_table(unet):
        assert torch.equal(keys[layer.key_slice], unet.get_parameter(f"{layer.name}.to_k.weight"))
        assert torch.equal(values[layer.value_slice], unet.get_parameter(f"{layer.name}.to_v.weight"))


def test_each_layer_reads_its_own_part_of_the_targets(unet):
    """The columns of one layer change what that layer's to_out gives and, upstream of it, nothing."""
    layers = layer_table(unet)
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        unet.get_submodule(layer.name).register_forward_hook(
            lambda _, __, out, name=layer.name: outputs.__setitem__(name, out)
        )
        for layer in layers
    ]
    edit = edit_of(unet, 2, 1)
    run_order = [layer for layer in layers if "down" in layer.name]
    run_order += [layer for layer in layers if "mid" in layer.name]
    run_order += [layer for layer in layers if "up" in layer.name]
    with installed(unet):
        predict(unet, **edit)
        before = dict(outputs)
        for place, layer in enumerate(run_order):
            moved = {name: tensor.clone() for name, tensor in edit.items()}
            moved["concept_values"][:, layer.value_slice] += 1
            predict(unet, **moved)
            changed = [
                other for other in run_order if not torch.equal(outputs[other.name], before[other.name])
            ]
            assert changed == run_order[place:]
    for hook in hooks:
        hook.remove()


def test_uninstalling_puts_the_very_processors_back(unet):
    before = dict(unet.attn_processors)
    install(unet)
    install(unet)
    assert all(isinstance(processor, ConceptAttnProcessor) for processor in unet.attn_processors.values())
    uninstall(unet)
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())


def test_a_block_of_installed_inside_another_leaves_the_outer_one_in_place(unet):
    with installed(unet):
        with installed(unet):
            pass
        assert all(isinstance(processor, ConceptAttnProcessor) for processor in unet.attn_processors.values())
    assert not any(isinstance(processor, ConceptAttnProcessor) for processor in unet.attn_processors.values())


def test_diffusers_warns_of_no_unexpected_argument(unet, capfd):
    with installed(unet):
        predict(unet, **edit_of(unet, 2, 1))
    assert "not expected" not in capfd.readouterr().err


def test_a_unet_without_cross_attention_is_refused():
    unet = UNet2DConditionModel(
        sample_size=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
    )
    with pytest.raises(ModelError, match="no cross-attention layer"):
        install(unet)


def test_a_norm_between_encoding_and_key_is_refused_by_name(unet):
    module = unet.get_submodule(layer_table(unet)[0].name)
    module.norm_k = torch.nn.LayerNorm(4)
    try:
        with pytest.raises(ModelError, match=r"attn2 has norm_k.*plain projections"):
            layer_table(unet)
    finally:
        module.norm_k = None


def test_attention_under_a_gradient_equals_the_fused_kernel_in_values_and_gradients():
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, tokens, 8, generator=generator) for tokens in (20, 7, 7)]
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        query, key, value = states = [part.to(dtype).requires_grad_() for part in made]
        fused = torch.nn.functional.scaled_dot_product_attention
        ours = dtype == torch.bfloat16
        out = module._attend(query, key, value, None) if ours else fused(query, key, value)
        gradients = torch.autograd.grad(out.double().square().sum(), states)
        results.append([out.detach().double(), *(part.double() for part in gradients)])
    for found, exact in zip(*results, strict=True):
        assert float((found - exact).norm() / exact.norm()) < 2e-2


def test_plain_products_are_taken_only_where_they_are_faster(monkeypatch):
    state = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    assert module._faster_written_out(state, state, state)
    with torch.no_grad():
        assert not module._faster_written_out(state, state, state)
    single = state.detach().float().requires_grad_()
    assert not module._faster_written_out(single, single, single)
    monkeypatch.setattr(module, "_MAX_SCORES", 15)
    assert not module._faster_written_out(state, state, state)


# --- regions


def heads(batch, positions, dim=8, seed=0):
    return torch.randn(batch, 2, positions, dim, generator=torch.Generator().manual_seed(seed))


def test_one_reading_everywhere_is_plain_attention():
    query, key, value = heads(2, 12), heads(2, 7, seed=1), heads(2, 7, seed=2)
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend_in_regions(query, key, value, torch.ones(2, 1, 12)), plain)


def test_each_place_reads_the_readings_by_its_shares():
    query, key, value = heads(2, 12), heads(2, 15, seed=1), heads(2, 15, seed=2)
    shares = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(3))
    plain = torch.nn.functional.scaled_dot_product_attention
    expected = sum(
        shares[:, r, None, :, None]
        * plain(query, key[:, :, 5 * r : 5 * r + 5], value[:, :, 5 * r : 5 * r + 5])
        for r in range(3)
    )
    torch.testing.assert_close(attend_in_regions(query, key, value, shares), expected)


def test_levels_of_regions_keep_their_sum_and_halve_their_sides():
    regions = torch.rand(2, 3, 8, 16).softmax(1)
    levels = region_levels(regions, 4)
    assert [level.shape for level in levels] == [(2, 3, 128), (2, 3, 32), (2, 3, 8), (2, 3, 2)]
    torch.testing.assert_close(levels[3], regions.unflatten(3, (2, 8)).mean((2, 4)))
    for level in levels:
        torch.testing.assert_close(level.sum(1), torch.ones_like(level[:, 0]))


def test_every_cross_attention_layer_knows_the_level_that_it_reads(unet):
    seen: dict[int, int] = {}

    class Watching(ConceptAttnProcessor):
        def attend(self, query, key, value, mask, regions=None):
            if regions is not None:
                seen[self.level] = seen.get(self.level, 0) + 1
                assert regions.shape[-1] == query.shape[2]
            return super().attend(query, key, value, mask, regions)

    with installed(unet):
        for layer in (part for part in unet.modules() if hasattr(part, "processor")):
            own = layer.processor
            if isinstance(own, ConceptAttnProcessor):
                layer.set_processor(Watching(own.key_slice, own.value_slice, level=own.level))
        side = unet.config.sample_size
        latents = torch.randn(1, unet.config.in_channels, side, side)
        states = torch.randn(1, 6, unet.config.cross_attention_dim)
        regions = region_levels(torch.ones(1, 2, side, side) / 2, level_count(unet))
        unet(latents, 10, states, cross_attention_kwargs={"regions": regions})
    assert sum(seen.values()) == len(layer_table(unet))
