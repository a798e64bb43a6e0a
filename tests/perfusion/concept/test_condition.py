"""What a prompt becomes before cross-attention: strengths, locks, and the base model where nothing is active."""

import numpy as np
import pytest

from perfusion.concept.edit import condition, edited_projection, locked_keys
from perfusion.errors import RequestError

TEXT_DIM = 24


def prompt(space, **changes):
    """Arguments of `condition` for a prompt that has two concepts."""
    direction, dual, energy = space.rows
    usual = {
        "direction": direction,
        "dual": dual,
        "energy": energy,
        "bias": np.array([0.75, 0.6]),
        "temperature": np.array([0.15, 0.1]),
        "strength": np.array([1.0, 1.0]),
    }
    return {**usual, **changes}


def applied(states, gates, weight, targets):
    """What the graph computes from a conditioning."""
    return states.astype(np.float64) @ weight.T + gates.astype(np.float64) @ targets


def fed(conditioning):
    """What the UNet reads of it, and not what the gates were opened by."""
    return {name: array for name, array in vars(conditioning).items() if name not in ("response", "weight")}


@pytest.mark.parametrize("gates", ["similarity", "coordinates"])
@pytest.mark.parametrize("strength", [[1.0, 1.0], [0.3, 0.9], [1.0, 0.5]])
def test_a_conditioned_prompt_gives_the_reference_projection(make_space, strength, gates):
    space = make_space(concepts=2)
    arguments = prompt(space, strength=np.array(strength), gates=gates)
    made = condition(space.encodings, **arguments)
    expected = edited_projection(space.encodings, space.weight, space.targets, **arguments)
    assert {array.dtype for array in fed(made).values()} == {np.dtype(np.float32)}
    assert made.value_states.shape == space.encodings.shape
    assert made.value_gate.shape == (50, 2)
    for states, gates in ((made.key_states, made.key_gate), (made.value_states, made.value_gate)):
        np.testing.assert_allclose(applied(states, gates, space.weight, space.targets), expected, atol=1e-5)


@pytest.mark.property(number=1)
@pytest.mark.parametrize("lock", ["local", "global"])
def test_with_every_strength_zero_the_base_model_is_met_exactly(make_space, lock):
    space = make_space(concepts=2)
    other = space.encodings[::-1].astype(np.float32)
    made = condition(space.encodings, **prompt(space, strength=0.0), lock=lock, superclass_encodings=other)
    for states in (made.key_states, made.value_states):
        np.testing.assert_array_equal(states, space.encodings.astype(np.float32))
    assert not made.key_gate.any()
    assert not made.value_gate.any()


def test_a_prompt_without_concepts_is_the_base_model_exactly(make_space):
    space = make_space(concepts=2)
    none = {name: value[:0] for name, value in prompt(space).items()}
    made = condition(space.encodings, **none)
    np.testing.assert_array_equal(made.value_states, space.encodings.astype(np.float32))
    assert made.value_gate.shape == (50, 0)


def test_a_concept_of_strength_zero_is_absent_for_the_others(make_space):
    space = make_space(concepts=2)
    made = condition(space.encodings, **prompt(space, strength=np.array([1.0, 0.0])))
    alone = {name: value[:1] for name, value in prompt(space).items()}
    expected = condition(space.encodings, **alone)
    np.testing.assert_array_equal(made.value_states, expected.value_states)
    np.testing.assert_array_equal(made.value_gate[:, :1], expected.value_gate)
    assert not made.value_gate[:, 1].any()
    both = condition(space.encodings, **prompt(space))
    assert not np.allclose(
        made.value_states, both.value_states, atol=1e-3
    )  # the second does count when it is on


@pytest.mark.parametrize("gates", ["similarity", "coordinates"])
@pytest.mark.parametrize("lock", ["local", "global"])
def test_a_small_strength_is_hardly_more_than_none(make_space, gates, lock):
    space = make_space(concepts=3)
    options = {"lock": lock, "gates": gates, "superclass_encodings": space.encodings[::-1]}
    three = {"bias": 0.6, "temperature": 0.1}
    without, nearly = (
        condition(space.encodings, **prompt(space, strength=np.array([1.0, least, 0.7]), **three), **options)
        for least in (0.0, 1e-6)
    )
    for name, expected in fed(without).items():
        np.testing.assert_allclose(fed(nearly)[name], expected, atol=1e-4)


def test_one_concept_and_orthogonal_ones_have_the_same_gates_of_both_kinds(make_space):
    space = make_space()
    alone = {name: value[:1] for name, value in prompt(space).items()}
    by_similarity, by_coordinates = (
        condition(space.encodings, **alone, gates=gates) for gates in ("similarity", "coordinates")
    )
    np.testing.assert_array_equal(by_similarity.value_gate, by_coordinates.value_gate)
    apart = np.eye(2, TEXT_DIM)  # C = 1: orthogonal, of energy 1
    both = prompt(space, direction=apart, dual=apart, energy=np.ones(2))
    by_similarity, by_coordinates = (
        condition(space.encodings, **both, gates=gates) for gates in ("similarity", "coordinates")
    )
    np.testing.assert_allclose(by_similarity.value_gate, by_coordinates.value_gate, atol=1e-6)


@pytest.mark.parametrize("gates", ["similarity", "coordinates"])
def test_two_copies_give_finite_states_and_gates(make_space, gates):
    space = make_space(1e4)
    twice = {
        name: np.concatenate([value[:1], value[:1]]).astype(np.float32)
        for name, value in prompt(space).items()
    }
    made = condition(space.encodings, **twice, gates=gates)
    assert all(np.isfinite(array).all() for array in fed(made).values())


def test_unknown_gates_are_refused_even_where_nothing_is_active(make_space):
    space = make_space(concepts=2)
    with pytest.raises(RequestError, match="gates are 'both', expected one of similarity, coordinates"):
        condition(space.encodings, **prompt(space, strength=0.0), gates="both")


def test_strength_goes_straight_from_the_base_to_the_edit(make_space):
    space = make_space()
    base, edit = space.encodings @ space.weight.T, space.edited(space.encodings, 0.75, 0.15)
    for strength in (0.0, 0.25, 0.8, 1.0):
        between = space.edited(space.encodings, 0.75, 0.15, strength)
        np.testing.assert_allclose(between, base + strength * (edit - base), atol=1e-12)


@pytest.mark.property(number=9)
def test_under_the_global_lock_keys_read_the_superclass_and_values_do_not_notice(make_space):
    space = make_space(concepts=2)
    superclass = np.random.default_rng(9).normal(size=space.encodings.shape).astype(np.float32)
    local = condition(space.encodings, **prompt(space))
    made = condition(space.encodings, **prompt(space), lock="global", superclass_encodings=superclass)
    np.testing.assert_array_equal(made.key_states, superclass)
    assert not made.key_gate.any()
    np.testing.assert_array_equal(made.value_states, local.value_states)
    np.testing.assert_array_equal(made.value_gate, local.value_gate)


@pytest.mark.property(number=9)
def test_under_the_global_lock_keys_do_not_move_with_the_concept(make_space):
    space, other = make_space(concepts=2), make_space(concepts=2, seed=1)
    superclass = np.random.default_rng(9).normal(size=space.encodings.shape).astype(np.float32)
    keys = [
        condition(one.encodings, **prompt(one), lock="global", superclass_encodings=superclass).key_states
        for one in (space, other)
    ]
    np.testing.assert_array_equal(keys[0], keys[1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lock": "gobal"}, "lock is 'gobal', expected one of local, global"),
        ({"lock": "global"}, "none were given"),
        (
            {"lock": "global", "superclass_encodings": np.zeros((49, TEXT_DIM))},
            r"\(49, 24\), expected \(50, 24\)",
        ),
    ],
)
def test_a_lock_that_cannot_be_applied_is_refused_with_the_reason(make_space, changes, message):
    space = make_space(concepts=2)
    with pytest.raises(RequestError, match=message):
        condition(space.encodings, **prompt(space), **changes)


@pytest.mark.parametrize("width", [1, 1024, 2500])
@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_locked_keys_are_the_key_projection_of_the_superclass(width, stored):
    random = np.random.default_rng(0)
    weight = random.normal(size=(width, TEXT_DIM)).astype(stored)
    superclass = random.normal(size=(2, TEXT_DIM)).astype(np.float32)
    keys = locked_keys(weight, superclass)
    assert keys.dtype == np.float32
    np.testing.assert_allclose(keys, superclass @ weight.astype(np.float64).T, rtol=1e-5, atol=1e-5)
