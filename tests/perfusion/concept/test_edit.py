"""The algebra of docs/method.md. The oracle is the covariance form, which the code under test never sees."""

import dataclasses
import itertools

import numpy as np
import pytest

from perfusion.concept.edit import (
    coordinates,
    edited_projection,
    gate,
    gram,
    project,
    similarity,
)
from perfusion.errors import RequestError


def without_span(space, encodings):
    """The oracle for several concepts: whiten with Cholesky, take the span out with QR, go back."""
    factor = np.linalg.cholesky(space.covariance)
    basis, _ = np.linalg.qr(np.linalg.solve(factor, space.direction.T))
    white = np.linalg.solve(factor, encodings.T)
    return (factor @ (white - basis @ (basis.T @ white))).T


def correlated(make_space, cosine):
    """Two concepts of energy 1 and 9 whose directions have this cosine under C⁻¹."""
    space = make_space(10.0, concepts=2)
    first, second = space.direction / np.sqrt(space.energy)[:, None]
    second = second - space.inner(first[None], second[None])[0, 0] * first  # now <i_1, i_2> = 0
    second /= np.sqrt(space.inner(second[None], second[None])[0, 0])
    directions = np.stack([first, 3 * (cosine * first + np.sqrt(1 - cosine**2) * second)])
    return dataclasses.replace(space, direction=directions)


def projected(space, rows, strength):
    direction, dual, energy = rows
    return project(space.encodings, direction, dual, energy, strength)


def coordinated(space, rows, strength):
    direction, dual, energy = rows
    return coordinates(space.encodings, direction, dual, energy, strength)


def copies(space, stored=np.float64):
    """The rows of a concept and of its copy."""
    return [np.concatenate([array, array]).astype(stored) for array in space.rows]


conditioned = pytest.mark.parametrize("condition_number", [1.0, 10.0, 1e4, 1e8])


@conditioned
def test_similarity_is_the_covariance_form_and_one_at_the_own_direction(make_space, condition_number):
    space = make_space(condition_number)
    expected = space.inner(space.encodings, space.direction) / space.energy
    np.testing.assert_allclose(similarity(space.encodings, space.dual), expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(similarity(space.direction, space.dual), [[1.0]], rtol=1e-10)


@pytest.mark.property(number=2)
def test_the_gate_has_the_known_values_at_the_own_direction():
    assert gate(1.0, 0.75, 0.1) == pytest.approx(0.92414, abs=5e-6)
    assert gate(1.0, 0.7, 0.15) == pytest.approx(0.88080, abs=5e-6)
    s = np.linspace(-3, 3, 101)
    np.testing.assert_allclose(gate(s, 0.6, 0.2), 1 / (1 + np.exp(-(s - 0.6) / 0.2)), atol=1e-15)


@pytest.mark.property(number=2)
def test_the_gate_is_half_open_where_similarity_equals_bias_and_nowhere_else():
    assert gate(0.6, 0.6, 0.15) == 0.5
    s = np.linspace(-1, 2, 301)
    values = gate(s, 0.6, 0.15)
    assert np.all(np.diff(values) > 0)
    assert np.all((values == 0.5) == (s == 0.6))


@pytest.mark.property(number=2)
def test_the_gate_does_not_overflow():
    s = np.array([-1e308, -1e5, 0.0, 1e5, 1e308])
    np.testing.assert_array_equal(gate(s, 0.5, 1e-12), [0, 0, 0, 1, 1])
    assert gate(1.0, np.inf, 0.1) == 0
    assert gate(1.0, -np.inf, 0.1) == 1


@pytest.mark.property(number=2)
def test_each_row_has_its_own_bias_and_temperature():
    values = gate(np.array([[1.0, 1.0]]), np.array([0.75, 0.7]), np.array([0.1, 0.15]))
    np.testing.assert_allclose(values, [[0.92414, 0.88080]], atol=5e-6)


@pytest.mark.property(number=2)
@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused_by_name(temperature):
    with pytest.raises(RequestError, match=r"temperature is .*, expected a number above 0"):
        gate(1.0, 0.75, temperature)


@pytest.mark.property(number=2)
@conditioned
@pytest.mark.parametrize("bias, temperature, opened", [(0.75, 0.1, 0.9241418), (0.7, 0.15, 0.8807971)])
def test_the_own_direction_is_projected_onto_its_target_times_the_gate(
    make_space, condition_number, bias, temperature, opened
):
    space = make_space(condition_number)
    h = space.edited(space.direction, bias, temperature)
    np.testing.assert_allclose(h, opened * space.targets, atol=1e-6)


@pytest.mark.property(number=2)
@conditioned
def test_an_encoding_orthogonal_to_the_concept_gets_only_the_closed_gate(make_space, condition_number):
    space = make_space(condition_number)
    e = without_span(space, space.encodings)
    h = space.edited(e, 0.75, 0.15)
    closed = 1 / (1 + np.exp(0.75 / 0.15))
    np.testing.assert_allclose(h - e @ space.weight.T, np.tile(closed * space.targets, (50, 1)), atol=1e-8)


@pytest.mark.property(number=2)
def test_an_infinite_bias_leaves_the_projected_encoding_and_nothing_of_the_direction(make_space):
    space = make_space()
    h = space.edited(space.encodings, np.inf, 0.15)
    np.testing.assert_allclose(h, without_span(space, space.encodings) @ space.weight.T, atol=1e-12)
    assert not np.allclose(h, space.encodings @ space.weight.T)  # a closed gate is not the base model
    own = space.edited(space.direction, np.inf, 0.15)
    np.testing.assert_allclose(own, 0, atol=1e-10)


@pytest.mark.property(number=3)
@conditioned
def test_with_the_similarity_as_its_gate_the_edit_is_the_closed_rank_one_form(make_space, condition_number):
    space = make_space(condition_number)
    e_perp = project(space.encodings, *space.rows)
    h = e_perp @ space.weight.T + similarity(space.encodings, space.dual) @ space.targets
    # ROME, eq. 2: Ŵ = W + (o* − W i*) (C⁻¹ i*)ᵀ / (i*ᵀ C⁻¹ i*)
    missing = space.targets - space.direction @ space.weight.T
    closed_form = space.weight + missing.T @ space.dual
    np.testing.assert_allclose(h, space.encodings @ closed_form.T, rtol=1e-10, atol=1e-10)


@pytest.mark.property(number=3)
@conditioned
def test_with_the_similarity_as_its_gate_and_the_base_as_its_target_nothing_changes(
    make_space, condition_number
):
    space = make_space(condition_number)
    targets = space.direction @ space.weight.T
    h = (
        project(space.encodings, *space.rows) @ space.weight.T
        + similarity(space.encodings, space.dual) @ targets
    )
    np.testing.assert_allclose(h, space.encodings @ space.weight.T, rtol=1e-10, atol=1e-10)


@pytest.mark.property(number=4)
@conditioned
@pytest.mark.parametrize("concepts", [1, 3])
def test_a_projected_encoding_is_orthogonal_to_every_direction(make_space, condition_number, concepts):
    space = make_space(condition_number, concepts)
    e_perp = project(space.encodings, *space.rows)
    scale = np.linalg.norm(space.dual, axis=1) * np.linalg.norm(space.encodings, axis=1, keepdims=True)
    assert np.all(np.abs(similarity(e_perp, space.dual)) <= 1e-12 * np.maximum(scale, 1) * 10)
    assert np.abs(similarity(space.encodings, space.dual)).max() > 0.1  # the encodings were not


@pytest.mark.property(number=4)
@conditioned
@pytest.mark.parametrize("concepts", [1, 3])
def test_projecting_twice_is_projecting_once(make_space, condition_number, concepts):
    space = make_space(condition_number, concepts)
    once = project(space.encodings, *space.rows)
    np.testing.assert_allclose(project(once, *space.rows), once, rtol=1e-9, atol=1e-9)


@pytest.mark.property(number=4)
@pytest.mark.parametrize("scale", [1e-6, 7.0, 1e6])
def test_scaling_the_covariance_changes_nothing(make_space, scale):
    args = (0.75, 0.15)
    plain, scaled = make_space(100.0, 2), make_space(100.0, 2, covariance_scale=scale)
    a = plain.edited(plain.encodings, *args)
    b = scaled.edited(scaled.encodings, *args)
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_doubling_a_direction_halves_its_similarity_and_leaves_the_projection(make_space):
    space = make_space()
    double = dataclasses.replace(space, direction=2 * space.direction)
    half = similarity(space.encodings, space.dual) / 2
    np.testing.assert_allclose(similarity(space.encodings, double.dual), half, rtol=1e-12)
    np.testing.assert_allclose(
        project(space.encodings, *double.rows), project(space.encodings, *space.rows), atol=1e-12
    )


@pytest.mark.property(number=5)
def test_the_edit_is_affine_in_the_targets_with_the_gate_as_its_slope(make_space):
    space = make_space(concepts=2)
    arguments = (*space.rows, 0.6, 0.15)
    base = edited_projection(space.encodings, space.weight, space.targets, *arguments)
    opened = gate(similarity(space.encodings, space.dual), 0.6, 0.15)
    for row in range(2):
        for column in range(space.targets.shape[1]):
            moved = space.targets.copy()
            moved[row, column] += 3.0  # affine: a long step has the same slope as a short one
            slope = (edited_projection(space.encodings, space.weight, moved, *arguments) - base) / 3.0
            np.testing.assert_allclose(slope[:, column], opened[:, row], atol=1e-12)
            assert np.abs(np.delete(slope, column, axis=1)).max() < 1e-12


@pytest.mark.property(number=8)
@conditioned
def test_the_gram_matrix_holds_the_inner_products(make_space, condition_number):
    space = make_space(condition_number, concepts=4)
    expected = space.inner(space.direction, space.direction)
    np.testing.assert_allclose(gram(*space.rows), expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


@pytest.mark.property(number=8)
@conditioned
def test_one_concept_is_projected_by_the_single_formula(make_space, condition_number):
    space = make_space(condition_number)
    single = space.encodings - similarity(space.encodings, space.dual) * space.direction
    np.testing.assert_allclose(project(space.encodings, *space.rows), single, rtol=1e-12, atol=1e-11)


@pytest.mark.property(number=8)
@pytest.mark.parametrize("condition_number", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("concepts", [1, 2, 5])
def test_several_concepts_are_projected_as_by_cholesky_and_qr(make_space, condition_number, concepts):
    space = make_space(condition_number, concepts)
    expected = without_span(space, space.encodings)
    np.testing.assert_allclose(project(space.encodings, *space.rows), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.property(number=8)
def test_the_order_of_concepts_does_not_matter(make_space):
    space = make_space(1e3, concepts=4)
    bias, temperature = np.array([0.5, 0.6, 0.7, 0.8]), np.array([0.1, 0.12, 0.15, 0.2])
    strength = np.array([1.0, 0.5, 0.8, 1.0])
    arguments = (space.direction, space.dual, space.energy, bias, temperature, strength)
    plain = edited_projection(space.encodings, space.weight, space.targets, *arguments)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        permuted = edited_projection(
            space.encodings, space.weight, space.targets[order], *(array[order] for array in arguments)
        )
        np.testing.assert_allclose(permuted, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.property(number=8)
@pytest.mark.parametrize("stored", [np.float64, np.float32])
def test_two_copies_of_a_concept_take_its_direction_out_once(make_space, stored):
    space = make_space(1e4)
    direction, dual, energy = (array.astype(stored) for array in space.rows)
    twice = [np.concatenate([array, array]) for array in (direction, dual, energy)]
    e_perp = project(space.encodings, *twice)
    assert np.isfinite(e_perp).all()
    np.testing.assert_allclose(e_perp, project(space.encodings, direction, dual, energy), atol=1e-9)


@pytest.mark.property(number=8)
def test_two_copies_that_differ_by_rounding_are_not_told_apart(make_space):
    space = make_space(1e4)
    rows = [array.astype(np.float32) for array in space.rows]
    direction, dual, energy = (np.concatenate([array, np.nextafter(array, np.float32(9))]) for array in rows)
    e_perp = project(space.encodings, direction, dual, energy)
    np.testing.assert_allclose(e_perp, project(space.encodings, *rows), atol=1e-4)


@pytest.mark.property(number=8)
def test_nearly_parallel_concepts_are_still_told_apart(make_space):
    space = make_space(10.0, concepts=2)
    nearly = np.stack([space.direction[0], space.direction[0] + 0.02 * space.direction[1]])
    space = dataclasses.replace(space, direction=nearly)
    rounded = [array.astype(np.float32) for array in space.rows]
    np.testing.assert_allclose(
        project(space.encodings, *rounded), without_span(space, space.encodings), atol=1e-3
    )


@pytest.mark.property(number=8)
def test_subtracting_correlated_concepts_one_by_one_leaves_much_of_them(make_space):
    """The negative control: the cheap form e − Σ i_j s_j is not the projection."""
    space = correlated(make_space, 0.62)
    cheap = space.encodings - similarity(space.encodings, space.dual) @ space.direction
    parallel = np.linalg.norm(space.encodings - without_span(space, space.encodings), axis=1)
    left = np.linalg.norm(cheap - without_span(space, space.encodings), axis=1) / parallel
    assert 0.4 < np.median(left) < 0.8
    exact = project(space.encodings, *space.rows) - without_span(space, space.encodings)
    assert np.abs(exact).max() < 1e-11


@pytest.mark.property(number=1)
def test_no_concept_is_the_base_model(make_space):
    space = make_space(concepts=2)
    direction, dual, energy = (array[:0] for array in space.rows)
    h = edited_projection(
        space.encodings, space.weight, space.targets[:0], direction, dual, energy, 0.75, 0.15
    )
    np.testing.assert_array_equal(h, space.encodings @ space.weight.T)


@pytest.mark.property(number=10)
def test_rows_of_a_batch_are_independent_and_positions_do_not_matter(make_space):
    space = make_space(concepts=2)
    batch = np.stack([space.encodings[:40], space.encodings[5:45]])
    together = space.edited(batch, 0.75, 0.15)
    for index in range(2):
        np.testing.assert_allclose(together[index], space.edited(batch[index], 0.75, 0.15), rtol=1e-12)
    placed = space.encodings.copy()
    placed[40] = placed[3]
    h = space.edited(placed, 0.75, 0.15)
    np.testing.assert_allclose(h[40], h[3], rtol=1e-13)


def to_bfloat16(array):
    """float32 numbers rounded to the nearest bfloat16, by their bits."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


@pytest.mark.property(number=11)
@pytest.mark.parametrize(
    "rounded, tolerance",
    [(lambda array: array.astype(np.float16), 5e-5), (to_bfloat16, 5e-4)],
    ids=["float16", "bfloat16"],
)
def test_half_precision_encodings_move_the_similarity_by_no_more_than_their_rounding(rounded, tolerance):
    random = np.random.default_rng(0)
    encodings, direction = random.normal(size=(77, 768)), random.normal(size=(1, 768))
    dual = direction / np.sum(direction**2)  # C = 1
    moved = np.abs(similarity(rounded(encodings), dual) - similarity(encodings, dual)).max()
    assert 0 < moved <= tolerance


def test_a_dual_in_half_precision_would_lose_the_cancellation_it_lives_on():
    """Why files keep `dual` in float32: encodings have a large part in common, which w* must cancel."""
    random = np.random.default_rng(0)
    words = random.normal(size=(4000, 64)) * 0.05 + 3 * random.normal(size=64)
    covariance = words.T @ words / len(words)
    scaled = np.linalg.solve(covariance, words[0])
    dual = (scaled / (words[0] @ scaled))[None]
    exact = similarity(words[1:200], dual)
    lost = {kind: np.abs(similarity(words[1:200], dual.astype(kind)) - exact).max() for kind in ("f4", "f2")}
    assert lost["f4"] < 1e-4
    assert lost["f2"] > 100 * lost["f4"]


@pytest.mark.property(number=15)
def test_the_gates_share_falls_with_the_bias(make_space):
    space = make_space(concepts=2)
    biases = np.linspace(0.4, 1.1, 15)
    shares = [
        np.linalg.norm(
            gate(similarity(space.encodings, space.dual), bias, 0.15) @ space.targets, axis=1
        ).mean()
        for bias in biases
    ]
    assert np.all(np.diff(shares) < 0)


def test_a_partial_strength_solves_the_problem_that_it_is_defined_by(make_space):
    """The oracle is the formula as docs/method.md writes it, with an ordinary inverse."""
    space = make_space(1e3, concepts=3)
    weights = np.array([0.9, 0.3, 0.6])
    inner = space.inner(space.direction, space.direction)
    mixed = np.diag(weights) @ inner + np.diag((1 - weights) * space.energy)
    parts = space.inner(space.encodings, space.direction)  # n ∘ W_d e
    taken = np.linalg.solve(mixed, (parts * weights).T).T
    found = projected(space, space.rows, weights)
    np.testing.assert_allclose(found, space.encodings - taken @ space.direction, rtol=1e-9, atol=1e-9)


@conditioned
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_one_concept_is_taken_out_in_proportion_to_its_strength(make_space, condition_number, strength):
    space = make_space(condition_number)
    single = space.encodings - strength * similarity(space.encodings, space.dual) * space.direction
    np.testing.assert_allclose(projected(space, space.rows, strength), single, rtol=1e-11, atol=1e-10)


def test_a_strength_leads_steadily_to_the_projection_without_its_concept(make_space):
    space = correlated(make_space, 0.62)
    alone = project(space.encodings, *(array[:1] for array in space.rows))
    scale = np.abs(space.encodings).max()
    for small in (1e-3, 1e-6, 1e-9, 0.0):
        found = projected(space, space.rows, np.array([1.0, small]))
        assert np.abs(found - alone).max() <= 20 * small * scale + 1e-11
    path = [projected(space, space.rows, np.array([1.0, at])) for at in np.linspace(0, 1, 201)]
    steps = [np.abs(after - before).max() for before, after in itertools.pairwise(path)]
    whole = np.abs(path[-1] - path[0]).max()
    assert max(steps) < whole / 20, "a jump somewhere between strength 0 and 1"


@pytest.mark.parametrize("strengths", [(1.0, 0.4), (0.3, 0.3), (0.0, 1.0), (1.0, 1.0)])
def test_copies_of_any_strength_take_no_more_than_the_direction(make_space, strengths):
    space = make_space(1e4)
    found = projected(space, copies(space), np.array(strengths))
    first, second = strengths
    product = first * second
    share = (
        1.0 if product == 1 else (first + second - 2 * product) / (1 - product)
    )  # the 2 × 2 solved by hand
    expected = space.encodings - share * similarity(space.encodings, space.dual) * space.direction
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert 0 <= share <= 1


@pytest.mark.parametrize("stored", [np.float64, np.float32])
@pytest.mark.parametrize("missing", [(1.0, 1.0), (1.0, 0.0), (0.2, 0.7)])
def test_copies_whose_strength_rises_to_1_arrive_where_the_pseudo_inverse_stands(make_space, stored, missing):
    space = make_space(100.0)
    rows = copies(space, stored)
    there = project(space.encodings, *rows)
    for short in (1e-3, 1e-5, 1e-7, 1e-9, 1e-12):
        found = projected(space, rows, 1 - short * np.array(missing))
        assert np.abs(found - there).max() <= 10 * short + 1e-5 * np.abs(space.encodings).max()


def test_the_coordinate_of_a_single_concept_is_its_similarity(make_space):
    space = make_space()
    found = coordinated(space, space.rows, 0.4)
    np.testing.assert_allclose(found, similarity(space.encodings, space.dual), rtol=1e-13)


def test_coordinates_are_what_the_span_is_made_of(make_space):
    space = make_space(1e3, concepts=4)
    made = np.random.default_rng(1).normal(size=(30, 4))
    inside = made @ space.direction
    orthogonal = without_span(space, space.encodings[:30])
    np.testing.assert_allclose(coordinates(inside + orthogonal, *space.rows), made, atol=1e-9)


def test_at_its_own_direction_a_concept_is_the_only_one(make_space):
    space = correlated(make_space, 0.62)
    raw = similarity(space.direction, space.dual)
    np.testing.assert_allclose(raw, [[1, 0.62 / 3], [0.62 * 3, 1]], atol=1e-10)
    np.testing.assert_allclose(coordinates(space.direction, *space.rows), np.eye(2), atol=1e-10)


def test_coordinates_of_orthogonal_concepts_are_their_similarities(make_space):
    space = correlated(make_space, 0.0)
    np.testing.assert_allclose(
        coordinated(space, space.rows, np.array([0.3, 1.0])),
        similarity(space.encodings, space.dual),
        atol=1e-11,
    )


def test_a_coordinate_counts_the_others_as_far_as_they_are_strong(make_space):
    space = correlated(make_space, 0.62)
    for strength in (0.0, 1e-6, 0.5, 1.0):
        weights = np.array([1.0, strength])
        found = coordinated(space, space.rows, weights)
        across = similarity(space.direction, space.dual).T  # s_j(i_k)
        np.fill_diagonal(across, 0)
        expected = similarity(space.encodings, space.dual) - (found * weights) @ across.T
        np.testing.assert_allclose(found, expected, atol=1e-10)
        e_perp = space.encodings - (found * weights) @ space.direction
        np.testing.assert_allclose(projected(space, space.rows, weights), e_perp, atol=1e-10)
    first = coordinated(space, space.rows, np.array([1.0, 0.0]))[:, 0]
    np.testing.assert_allclose(first, similarity(space.encodings, space.dual)[:, 0], atol=1e-11)


def test_copies_share_their_coordinate(make_space):
    space = make_space(100.0)
    found = coordinates(space.encodings, *copies(space))
    half = similarity(space.encodings, space.dual) / 2
    np.testing.assert_allclose(found, np.concatenate([half, half], axis=1), atol=1e-9)


def test_gram_gates_open_for_the_own_word_only(make_space):
    space = correlated(make_space, 0.62)
    direction, dual, energy = space.rows
    arguments = (direction, space.weight, space.targets, direction, dual, energy, 0.75, 0.1)
    own, closed = gate(1.0, 0.75, 0.1), gate(0.0, 0.75, 0.1)
    expected = np.array([[own, closed], [closed, own]]) @ space.targets
    np.testing.assert_allclose(edited_projection(*arguments, gates="coordinates"), expected, atol=1e-10)
    assert np.abs(edited_projection(*arguments) - expected).max() > 0.1  # the paper's gates open for both
