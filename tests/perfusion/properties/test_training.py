"""Properties 5 to 7, 12 and 13: what training moves, by which gradients, and what it leaves alone."""

from typing import Any

import numpy as np
import pytest
import torch

from perfusion.base.attention import installed, key_projections
from perfusion.base.base_model import load_base
from perfusion.training.covariance import inverse, load_captions, second_moment
from perfusion.training.initial_edit import superclass_encoding
from perfusion.training.objective import masked_error
from perfusion.training.placement import Placement
from perfusion.training.templates import check_superclass
from perfusion.training.training_loop import Run, optimise


@pytest.mark.property(number=6)
def test_training_moves_the_words_and_the_values_and_no_other_bit(world, training):
    before, after = training.digests
    assert before == after
    concept, start = training.concept, world.start
    assert np.array_equal(concept.target_keys, start.target_keys.numpy()), "o*_K is locked"
    encoding = superclass_encoding(world.base, check_superclass(world.base, "cat")).double()
    keys = encoding @ key_projections(world.base.unet).double().T
    np.testing.assert_allclose(concept.target_keys[0], keys, atol=1e-5)
    learned = (*concept.embeddings, concept.target_values)
    for found, was in zip(learned, (*start.embeddings, start.target_values), strict=True):
        assert np.abs(found - was.detach().numpy()).min() > 0, "all of them are trained"
    count = sum(parameter.numel() for parameter in start.parameters() if parameter.requires_grad)
    assert count == sum(world.base.hidden_sizes) + sum(layer.value_dim for layer in world.base.layers)


def step_once(world: Any, gradient: str = "ema", accumulate: int = 1, **shifts: Any) -> tuple[float, Any]:
    """The first step of a training whose start is moved by `shifts`: its loss, and the edit with its gradients."""
    edit = world.edit(gradient=gradient).train()
    for name, parameter in edit.named_parameters():
        parameter.data.add_(shifts.get(name.replace(".", "_"), 0.0))
    size, generator = world.base.unet.config.sample_size, torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, size, size, generator=generator)
    mask = torch.rand(2, 1, size, size, generator=generator)
    settings = world.config(steps=1, batch_size=3, direction_gradient=gradient, accumulate=accumulate)
    losses: list[float] = []
    with installed(world.base.unet):
        optimise(
            world.base,
            Run.begin(edit, settings, Placement(torch.device("cpu"))),
            latents,
            mask,
            settings,
            losses.append,
        )
    return losses[0], edit


@pytest.mark.property(number=5)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradients_of_a_training_step_are_the_slopes_of_its_loss(world, accumulate):
    _, edit = step_once(world, accumulate=accumulate)
    for name, parameter in edit.named_parameters():
        slope, size = parameter.grad, float(parameter.grad.norm())
        step = 0.1 if name == "learned_values" else 0.01
        shifts = ({name.replace(".", "_"): sign * step / size * slope} for sign in (1, -1))
        up, down = (step_once(world, **shift)[0] for shift in shifts)
        assert (up - down) / (2 * step) == pytest.approx(size, rel=0.02), name


@pytest.mark.property(number=7)
def test_the_direction_is_the_moving_average_of_what_training_saw(world, training):
    """i* = .99^N i0 + Σ .01 · .99^(N−k) x_k, once a step, and not once more."""
    count = len(training.seen)
    assert count == 3
    wanted = 0.99**count * world.start.direction.double().numpy()
    wanted += sum(0.01 * 0.99 ** (count - 1 - k) * x for k, x in enumerate(training.seen))
    np.testing.assert_allclose(training.concept.direction, wanted, atol=1e-6)
    assert np.abs(wanted - world.start.direction.numpy()).max() > 1e-4


@pytest.mark.property(number=7)
def test_straight_through_is_a_hundred_times_the_averages_gradient_down_to_the_word(world):
    """Of the part that runs through the direction, which `detach` leaves out; the forward pass is the same."""
    gradients, losses = {}, []
    for mode in ("detach", "ema", "straight_through"):
        loss, edit = step_once(world, mode)
        losses.append(loss)
        gradients[mode] = [table.grad for table in edit.embeddings]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    for none, share, whole in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(
            whole - none, 100 * (share - none), rtol=0, atol=5e-3 * float((whole - none).abs().max())
        )
        assert float((whole - none).norm()) > 0.01 * float(none.norm())


@pytest.mark.property(number=13)
def test_only_the_ratios_within_a_mask_matter_and_what_it_hides_has_no_gradient():
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 2, 4, 8, 8, generator=generator)
    output.requires_grad_()
    mask = torch.rand(2, 1, 8, 8, generator=generator)
    mask[:, :, 3:] = 0
    wanted = (mask * (output - target) ** 2).sum() / (4 * mask.sum())
    for scale in (1e-6, 1.0, 1e6):
        loss = masked_error(output, target, scale * mask)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
        (slope,) = torch.autograd.grad(loss, output)
        assert torch.count_nonzero(slope[:, :, 3:]) == 0
        assert torch.count_nonzero(slope[:, :, :3]) == slope[:, :, :3].numel()


@pytest.mark.property(number=13)
def test_only_the_ratios_matter_also_beside_an_empty_mask():
    output, target = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    mask[1] = 0
    plain, faint = (masked_error(output, target, scale * mask) for scale in (1.0, 0.01))
    torch.testing.assert_close(faint, plain, rtol=1e-5, atol=0)


@pytest.mark.property(number=12)
def test_the_covariance_depends_on_the_tokens_alone(base, monkeypatch):
    """With encodings in float64, which a row's neighbours do not round."""
    precise = load_base(base.folder, torch.float64)
    captions = load_captions(base, None)[:60]
    moments = []
    for order, batch in ((1, 128), (-1, 128), (1, 17)):
        monkeypatch.setattr("perfusion.training.covariance.BATCH", batch)
        moments.append(second_moment(precise, captions[::order]))
    for other in moments[1:]:
        torch.testing.assert_close(other, moments[0], rtol=1e-10, atol=1e-10)
    assert torch.equal(moments[0], moments[0].T)
    assert float(torch.linalg.eigvalsh(moments[0]).min()) > 0
    forms = []
    for caption in captions:
        ids = [tokenizer(caption, return_tensors="pt").input_ids for tokenizer in base.tokenizers]
        tokens = precise.encode(ids).hidden[0].detach()
        forms.append(torch.einsum("td,de,te->t", tokens, inverse(moments[0], ridge=0.0), tokens))
    assert float(torch.cat(forms).mean()) == pytest.approx(base.text_dim, rel=1e-6)
