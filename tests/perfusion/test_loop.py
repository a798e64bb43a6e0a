"""One step of training: its gradient is the whole batch's, however the batch is worked off."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perfusion.attention import installed
from perfusion.base import BaseModel, load_base
from perfusion.errors import TrainingError
from perfusion.training import TrainingConfig, parallel
from perfusion.training.loop import Run, optimise, pieces, predict, train_step
from perfusion.training.objective import Noising, masked_error
from perfusion.training.placing import borrowed, open_base
from perfusion.training.prompts import TEMPLATES, check_superclass
from perfusion.training.start import concept_prompt, start_edit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))


def config(**options: Any) -> TrainingConfig:
    usual = {"superclass": "cat", "steps": 4, "batch_size": 6, "masks": "none", "precision": "fp32"}
    return TrainingConfig(**(usual | options))


def begin(base: BaseModel, options: TrainingConfig) -> tuple[Run, Tensor, Tensor]:
    """A run before its first step, latents and masks, one of them empty."""
    edit, _ = start_edit(base, check_superclass(base, "cat"), options, lambda _: None)
    generator = torch.Generator().manual_seed(5)
    side = base.unet.config.sample_size
    masks = torch.rand(5, 1, side, side, generator=generator)
    masks[3] = 0
    return Run.begin(edit.train(), options), torch.randn(5, 4, side, side, generator=generator), masks


def gradients(base: BaseModel, lean: bool = False, **options: Any) -> tuple[float, list[Tensor]]:
    """The loss of one step and what it gave the parameters."""
    settings = config(**options)
    run, latents, masks = begin(base, settings)
    prompts = [concept_prompt(base, template, settings.rows) for template in TEMPLATES]
    with borrowed(base, torch.device("cpu"), lean=lean), installed(base.unet):
        value = train_step(base, run, latents, masks, settings, Noising.of(base), prompts)
    return value, [
        parameter.grad.clone() for parameter in run.edit.parameters() if parameter.grad is not None
    ]


@pytest.mark.parametrize("gradient", ["ema", "straight_through"])
def test_a_step_has_the_gradient_of_one_graph_from_the_words_to_the_loss(tiny_base, gradient) -> None:
    value, found = gradients(tiny_base, direction_gradient=gradient)
    settings = config(direction_gradient=gradient)
    run, latents, masks = begin(tiny_base, settings)
    prompts, noising = (
        [concept_prompt(tiny_base, template, 1) for template in TEMPLATES],
        Noising.of(tiny_base),
    )
    picked = torch.tensor([run.rng.randrange(5) for _ in range(6)])
    chosen = [run.rng.randrange(len(prompts)) for _ in range(6)]
    noise = torch.randn(latents[picked].shape, generator=run.generator)
    timesteps = torch.randint(0, 1000, (6,), generator=run.generator)
    noisy, target = noising(latents[picked], noise, timesteps)
    with installed(tiny_base.unet):
        loss = masked_error(
            predict(tiny_base, run.edit, prompts, chosen, noisy, timesteps), target, masks[picked]
        )
    expected = torch.autograd.grad(loss, list(run.edit.parameters()))
    assert value == pytest.approx(float(loss.detach()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("parts", [2, 4, 6])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(tiny_base, parts) -> None:
    value, whole = gradients(tiny_base)
    again, found = gradients(tiny_base, accumulate=parts)
    assert again == pytest.approx(value, rel=1e-5)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("which", ["tiny_base", "tiny_xl_base"])
def test_checkpointing_gives_the_same_gradient_and_is_off_afterwards(which, request) -> None:
    base = request.getfixturevalue(which)
    value, whole = gradients(base)
    calls = []
    original = torch.utils.checkpoint.checkpoint

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.checkpoint.checkpoint", counted)
        again, found = gradients(base, lean=True)
    assert calls, "nothing was computed again"
    assert again == pytest.approx(value, rel=1e-6)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    assert not base.unet.is_gradient_checkpointing


def test_to_save_memory_the_unet_is_opened_in_16_bits_and_nothing_else_is(tiny_model, tiny_base) -> None:
    base = open_base(tiny_model, None, config(checkpointing=True, precision="bf16"))
    assert base.fingerprint == tiny_base.fingerprint
    assert [next(part.parameters()).dtype for part in base.parts] == [torch.float16, *[torch.float32] * 2]
    plain = open_base(tiny_model, None, config(checkpointing=True))
    assert next(plain.unet.parameters()).dtype == torch.float32, (
        "without autocast it could not run in 16 bits"
    )
    value, found = gradients(base, lean=True, precision="bf16")
    same, expected = gradients(load_base(tiny_model), precision="bf16")
    assert value == pytest.approx(same, rel=0.02)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.3, atol=0.05 * float(other.abs().max()))


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 5)])
def test_shares_and_parts_together_are_the_batch(monkeypatch, size, accumulate) -> None:
    settings, seen = config(accumulate=accumulate), []
    for rank in range(size):
        monkeypatch.setattr(parallel, "world", lambda rank=rank: parallel.World(rank=rank, size=size))
        parts = pieces(settings)
        assert len(parts) == min(accumulate, len(parallel.share(range(6))))
        seen += [index for part in parts for index in range(6)[part]]
    assert seen == list(range(6))


def test_a_loss_that_is_no_number_stops_the_training_before_it_is_learned(tiny_base) -> None:
    run, latents, masks = begin(tiny_base, config())
    before = run.edit.target_values.detach().clone()
    with installed(tiny_base.unet), pytest.raises(TrainingError, match="the loss became nan at step 1"):
        optimise(tiny_base, run, latents * float("nan"), masks, config(), lambda _: None)
    assert torch.equal(run.edit.target_values, before)
    assert run.step == 0
