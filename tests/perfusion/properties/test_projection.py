"""Properties 1 to 5: the edited projection as every cross-attention layer meets it."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from perfusion.concept.conditioning import conditioned
from perfusion.concept.edit import project


@pytest.mark.property(number=1)
def test_a_row_without_a_concept_is_the_base_models_bit_for_bit(world):
    rows = world.rows("cat")
    texts = [world.encode(*text).hidden[0] for text in (("dog",), ("", "{}"), ("cat",), ("cat",))]
    uses = [rows.none(), rows.none(), replace(rows, strength=np.zeros(1)), rows]
    states = [conditioned(text.numpy(), use) for text, use in zip(texts, uses, strict=True)]
    found, plain = world.drawn(*states), world.observe(torch.stack(texts))
    assert found[:3].equals(plain[:3])
    assert not any(np.allclose(a, b, atol=1e-2) for a, b in zip(found[3].all, plain[3].all, strict=True))


@pytest.mark.property(number=2)
@pytest.mark.parametrize(
    "bias, temperature, opened", [(0.75, 0.1, 0.92414), (0.7, 0.15, 0.88080), (0.6, 0.5, None)]
)
def test_the_own_direction_becomes_its_target_and_an_orthogonal_one_hardly_moves(
    world, bias, temperature, opened
):
    edit = world.edit(bias=bias, temperature=temperature)
    own = edit.direction[0].numpy()
    apart = world.orthogonal(world.prompt.hidden[0, :1], edit.direction)[0]
    gates = 1 / (1 + np.exp(np.array([[bias - 1], [bias]]) / temperature))
    assert opened is None or gates[0, 0] == pytest.approx(opened, abs=1e-5)
    targets = edit.target_keys.numpy(), edit.target_values.detach().numpy()
    wanted = world.expected(np.stack([0 * apart, apart]), gates, *targets)
    world.same(world.trained(edit, np.stack([own, apart])).all, wanted)
    rows = world.rows("cat", bias=np.full(1, bias), temperature=np.full(1, temperature))
    tokens = np.stack([rows.direction[0], world.orthogonal(rows.direction + 1, rows.direction)[0]])
    wanted = world.expected(np.stack([0 * apart, tokens[1]]), gates, rows.keys, rows.values)
    world.same(world.drawn(conditioned(tokens, rows))[0].all, wanted)


@pytest.mark.property(number=2)
def test_an_infinite_bias_leaves_the_projection_and_nothing_of_the_own_direction(world):
    edit = world.edit(bias=math.inf)
    tokens = np.stack([edit.direction[0], world.prompt.hidden[0, 1]])
    wanted = np.stack([0 * tokens[0], world.orthogonal(tokens[1:], edit.direction)[0]])
    world.same(world.trained(edit, tokens).all, world.expected(wanted))


@pytest.mark.property(number=2)
def test_the_gate_is_half_open_where_similarity_equals_the_bias_and_nowhere_else(world):
    hidden = world.prompt.hidden[:, :9]
    similarity = world.similarity(hidden[0], world.start.direction)[:, 0]
    for at, bias in enumerate(similarity):
        edit = world.edit(bias=float(bias))
        gate = edit(hidden, edit.direction).gate[0, :, 0].detach().numpy()
        assert gate[at] == pytest.approx(0.5, abs=1e-4)
        np.testing.assert_array_equal((gate > 0.5)[similarity > bias + 1e-4], True)
        np.testing.assert_array_equal((gate < 0.5)[similarity < bias - 1e-4], True)


@pytest.mark.property(number=3)
@pytest.mark.parametrize("targets", ["any", "the base's own"])
def test_with_the_similarity_as_its_gate_the_unet_is_one_whose_weights_were_edited(world, targets):
    """ROME's Ŵ = W + (o* − W i*) w*ᵀ, written into a second UNet that diffusers runs."""
    rows, edited = world.rows("cat"), copy.deepcopy(world.base.unet)
    if targets != "any":
        own = world.expected(rows.direction)
        half = len(own) // 2
        keys, values = (np.float32(np.hstack(part)) for part in (own[:half], own[half:]))
        rows = replace(rows, keys=keys, values=values)
    for layer in world.base.layers:
        for name, target in (
            ("to_k", rows.keys[:, layer.key_slice]),
            ("to_v", rows.values[:, layer.value_slice]),
        ):
            weight = edited.get_submodule(f"{layer.name}.{name}").weight
            rank_one = (target[0] - weight.double().numpy() @ rows.direction[0])[:, None] * rows.dual
            weight.data.add_(torch.from_numpy(rank_one).float())
    hidden = world.prompt.hidden
    gate = torch.from_numpy(world.similarity(hidden, rows.direction)).float()
    found = world.drawn(conditioned(hidden[0].numpy(), rows), key_gate=gate, value_gate=gate)
    wanted = world.observe(hidden, unet=edited if targets == "any" else None)
    world.same([*found.all, found.output], [*wanted.all, wanted.output], 2e-5)


@pytest.mark.property(number=4)
def test_what_training_projects_is_orthogonal_to_the_direction_and_stays(world):
    edit = world.edit()
    once = edit(world.prompt.hidden, edit.direction).encodings.detach()
    assert np.abs(world.similarity(world.prompt.hidden, edit.direction)).max() > 0.4
    assert np.abs(world.similarity(once, edit.direction)).max() < 1e-5
    torch.testing.assert_close(edit(once, edit.direction).encodings, once, rtol=0, atol=5e-5)
    world.same([once[0].double().numpy()], [world.orthogonal(world.prompt.hidden[0], edit.direction)])


@pytest.mark.property(number=4)
def test_the_projection_for_drawing_is_orthogonal_in_the_measure_of_real_encodings(world):
    rows = world.rows("cat", "dog")
    e_perp = project(world.prompt.hidden[0].numpy(), rows.direction, rows.dual, rows.energy)
    scale = np.linalg.norm(rows.dual, axis=1).max() * np.abs(e_perp).max()
    assert np.abs(world.similarity(e_perp, rows.direction)).max() < 1e-12 * max(1.0, 10 * scale)


@pytest.mark.property(number=4)
@pytest.mark.parametrize("scale", [1e-6, 7.0, 1e6])
def test_scaling_the_covariance_changes_no_key_and_no_value(world, scale):
    plain = world.edit()
    scaled = world.edit(inverse_moment=plain.inverse_moment / scale)
    tokens = world.prompt.hidden[0]
    world.same(world.trained(scaled, tokens).all, world.trained(plain, tokens).all, 1e-6)


@pytest.mark.property(number=5)
def test_keys_and_values_are_affine_in_their_targets_with_the_gate_as_slope(world):
    rows = world.rows("cat", "dog")
    states = world.prompt.hidden[0].numpy()
    gates = world.gates(states, rows)
    step = world.rows("dog", "cat").values
    seen = [
        world.drawn(
            conditioned(states, replace(rows, values=rows.values + k * step, keys=rows.keys - k * step)),
        )
        for k in (0, 1, 5)
    ]
    for k, moved in ((1, seen[1]), (5, seen[2])):
        slopes = [(a[0] - b[0]) / k for a, b in zip(moved.all, seen[0].all, strict=True)]
        world.same(slopes, world.expected(0 * states, gates, -step, step))
