"""The trained form of the edit against the algebra in numpy, which is its second implementation."""

import numpy as np
import pytest
import torch

from perfusion.concept import edit as algebra
from perfusion.training.rank_one import RankOneEdit

DIM, KEYS, VALUES = 12, 10, 14


def make_edit(rows: int = 1, **options: object) -> RankOneEdit:
    generator = torch.Generator().manual_seed(rows)
    samples = torch.randn(200, DIM, generator=generator, dtype=torch.float64) + 1
    settings: dict[str, object] = {
        "embeddings": [torch.randn(rows, DIM, generator=generator)],
        "direction": torch.randn(rows, DIM, generator=generator),
        "target_keys": torch.randn(rows, KEYS, generator=generator),
        "target_values": torch.randn(rows, VALUES, generator=generator),
        "inverse_moment": torch.linalg.inv(samples.T @ samples / 200),
        "bias": 0.75,
        "temperature": 0.1,
    }
    return RankOneEdit(**(settings | options))


def encodings() -> torch.Tensor:
    return torch.randn(3, 7, DIM, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_projection_and_gate_equal_the_numpy_algebra(rows: int) -> None:
    edit = make_edit(rows).eval()
    result = edit(encodings(), edit.direction)
    dual, energy = edit.dual(edit.direction)
    direction = edit.direction.double().numpy()
    expected = algebra.project(encodings().numpy(), direction, dual.double().numpy(), energy.double().numpy())
    gate = algebra.gate(algebra.similarity(encodings().numpy(), dual.numpy()), 0.75, 0.1)
    np.testing.assert_allclose(result.encodings.detach().numpy(), expected, atol=2e-4)
    np.testing.assert_allclose(result.gate.detach().numpy(), gate, atol=1e-4)


def test_rows_that_nearly_agree_are_projected_as_by_the_covariance_form() -> None:
    first, second = make_edit(2).direction
    nearly = torch.stack([first, first + 1e-2 * second])
    edit = make_edit(2, direction=nearly).eval()
    result = edit(encodings(), nearly)
    tokens, directions = encodings().double().flatten(0, 1), nearly.double()
    raised = directions @ edit.inverse_moment
    inside = torch.linalg.solve(raised @ directions.T, raised @ tokens.T).T @ directions
    found = result.encodings.flatten(0, 1).double()
    torch.testing.assert_close(found, tokens - inside, rtol=0, atol=1e-3)


@pytest.mark.property(number=7)
def test_direction_after_n_constant_inputs_is_the_closed_form() -> None:
    edit = make_edit().train()
    start, target = edit.direction.clone(), torch.ones(1, DIM)
    for _ in range(25):
        edit.follow(target)
    torch.testing.assert_close(edit.direction, 0.99**25 * start + (1 - 0.99**25) * target)


@pytest.mark.property(number=7)
def test_direction_stands_still_in_evaluation() -> None:
    edit = make_edit().eval()
    before = edit.direction.clone()
    edit(encodings(), torch.ones(1, DIM))
    assert torch.equal(edit.direction, before)


def test_straight_through_gradient_is_a_hundred_times_the_averages() -> None:
    """Both are linear in the share of the new encoding: 1 against 0.01, at slightly different directions."""
    edit = make_edit()
    concept = edit.direction.clone()  # so that the straight-through direction equals the averaged one
    gradients = []
    for mode in ("straight_through", "ema"):
        leaf = concept.clone().requires_grad_()
        result = make_edit(gradient=mode).train()(encodings(), leaf)
        (result.encodings.sum() + result.gate.sum()).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], 100 * gradients[1], rtol=1e-4, atol=1e-4)


def test_detach_lets_no_gradient_through_the_direction() -> None:
    concept = torch.ones(1, DIM, requires_grad=True)
    assert make_edit(gradient="ema").train()(encodings(), concept).encodings.requires_grad
    assert not make_edit(gradient="detach").train()(encodings(), concept).encodings.requires_grad


def test_only_the_word_and_the_values_are_trained() -> None:
    for options in ({}, {"value_projections": torch.ones(VALUES, DIM)}):
        parameters = make_edit(**options).named_parameters()
        assert {name for name, parameter in parameters if parameter.requires_grad} == {
            "embeddings.0", "learned_values",
        }  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2])
def test_one_encoding_moves_the_values_of_all_layers_along_their_projections(rows: int) -> None:
    start, projections = torch.randn(rows, VALUES), torch.randn(VALUES, DIM)
    edit = make_edit(rows, target_values=start, value_projections=projections)
    assert edit.learned_values.shape == (rows, DIM)
    torch.testing.assert_close(edit.target_values, start)
    learned = torch.randn(rows, DIM)
    with torch.no_grad():
        edit.learned_values.copy_(learned)
    with torch.autocast("cpu", torch.bfloat16):
        found = edit.target_values
    torch.testing.assert_close(found, start + learned @ projections.T)
    found[0, 3].backward()
    gradient = edit.learned_values.grad
    assert gradient is not None
    torch.testing.assert_close(gradient[0], projections[3])


def test_edited_projection_is_affine_in_the_values_with_slope_gate() -> None:
    edit = make_edit().eval()
    result = edit(encodings(), edit.direction)
    added = result.gate @ edit.target_values
    (slope,) = torch.autograd.grad(added[1, 4, 6], edit.target_values)
    assert slope[0, 6] == result.gate[1, 4, 0]
    assert torch.count_nonzero(slope) == 1


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_encodings_move_the_similarity_by_their_rounding_alone(
    dtype: torch.dtype, rounding: float
) -> None:
    """Under autocast too: |Δs| ≤ Σ |w| |e| times the rounding of e, and float32's own on top.

    The bounds of docs/method.md are for the wide encodings of true models, see test_properties; twelve numbers with a
    large common part average less.
    """
    edit = make_edit().eval()
    dual, _ = edit.dual(edit.direction)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = edit(encodings().to(dtype), edit.direction)
    assert rounded.gate.dtype == rounded.encodings.dtype == torch.float32
    similarity = 0.75 + 0.1 * torch.logit(rounded.gate.double())
    moved = (similarity - encodings().double() @ dual.double().T).abs()
    bound = rounding * (encodings().abs().double() @ dual.abs().double().T)
    seen = (rounded.gate > 1e-3) & (rounded.gate < 1 - 1e-3)  # a shut gate cannot be read back
    assert int(seen.sum()) > 5
    assert 0 < float((moved / bound)[seen].max()) <= 1.02


@pytest.mark.parametrize("factor", [1.0, -2.0])
def test_rows_that_agree_are_taken_out_once_and_keep_their_gradients(factor: float) -> None:
    first = make_edit().direction
    edit = make_edit(2, direction=torch.cat([first, factor * first])).train()
    concept = edit.direction.clone().requires_grad_()
    result = edit(encodings(), concept)
    single = make_edit(inverse_moment=edit.inverse_moment).eval()(encodings(), first)
    torch.testing.assert_close(result.encodings, single.encodings, rtol=0, atol=2e-4)
    (slope,) = torch.autograd.grad(result.encodings.square().sum(), concept)
    assert torch.isfinite(slope).all() and slope.abs().max() > 0


def test_numbers_that_are_none_arrive_in_the_loss_and_raise_nothing_on_the_way() -> None:
    result = make_edit(2).train()(encodings(), torch.full((2, DIM), torch.nan))
    assert result.encodings.isnan().all() and result.gate.isnan().all()
