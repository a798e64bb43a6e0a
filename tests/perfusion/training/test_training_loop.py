"""One step of training: its gradient is the whole batch's, however the batch is worked off."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from perfusion.base.attention import installed, key_projections
from perfusion.base.base_model import BaseModel, load_base
from perfusion.errors import TrainingError
from perfusion.training import TrainingConfig, parallel
from perfusion.training.initial_edit import concept_prompt, initial_edit
from perfusion.training.objective import Noising, masked_error
from perfusion.training.placement import Placement, frozen_on_device, open_base, weight_sizes
from perfusion.training.templates import TEMPLATES, check_superclass
from perfusion.training.training_loop import Run, optimise, pieces, predict, train_step
from perfusion.training.work_folder import WorkFolder


def config(**options: Any) -> TrainingConfig:
    usual = {"superclass": "cat", "steps": 4, "batch_size": 6, "masks": "none", "precision": "fp32"}
    return TrainingConfig(**(usual | options))


def placement(options: TrainingConfig) -> Placement:
    return Placement.pick(options.device, options.precision)


def begin(base: BaseModel, options: TrainingConfig) -> tuple[Run, Tensor, Tensor]:
    """A run before its first step, latents and masks, one of them empty."""
    edit, _ = initial_edit(base, check_superclass(base, "cat"), options, lambda _: None)
    generator = torch.Generator().manual_seed(5)
    side = base.unet.config.sample_size
    masks = torch.rand(5, 1, side, side, generator=generator)
    masks[3] = 0
    run = Run.begin(edit.train(), options, placement(options))
    return run, torch.randn(5, 4, side, side, generator=generator), masks


def gradients(base: BaseModel, checkpointing: bool = False, **options: Any) -> tuple[float, list[Tensor]]:
    """The loss of one step and what it gave the parameters."""
    settings = config(**options)
    run, latents, masks = begin(base, settings)
    prompts = [concept_prompt(base, template, settings.rows) for template in TEMPLATES]
    with frozen_on_device(base, torch.device("cpu"), checkpointing=checkpointing), installed(base.unet):
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


def test_a_run_does_not_guess_the_rate_of_one_encoding(tiny_base) -> None:
    """The paper's rate is for values that each layer learns for itself; here it would take the picture apart."""
    settings = config(values="encoding", lr_values=0.004)
    edit, _ = initial_edit(tiny_base, check_superclass(tiny_base, "cat"), settings, lambda _: None)
    unknown = replace(settings, lr_values=None)
    with pytest.raises(TrainingError, match="leaves lr_values to the base model"):
        Run.begin(edit, unknown, placement(unknown))
    Run.begin(edit, settings, placement(settings))


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
        again, found = gradients(base, checkpointing=True)
    assert calls, "nothing was computed again"
    assert again == pytest.approx(value, rel=1e-6)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    assert not base.unet.is_gradient_checkpointing


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_to_save_memory_the_unet_is_held_in_what_it_computes_in_and_nothing_else_is(
    tiny_model, tiny_base, precision, dtype
) -> None:
    options = config(weights="half", precision=precision)
    base = open_base(tiny_model, None, options, placement(options))
    assert base.fingerprint == tiny_base.fingerprint
    for part in base.parts[1:]:
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}
    assert base.unet.conv_in.weight.dtype == dtype
    assert base.unet.get_submodule(base.layers[0].name).to_k.weight.dtype == torch.float16
    assert torch.equal(key_projections(base.unet).half(), key_projections(tiny_base.unet).half())
    value, found = gradients(base, checkpointing=True, precision=precision)
    same, expected = gradients(load_base(tiny_model), precision=precision)
    assert value == pytest.approx(same, rel=0.02)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.3, atol=0.05 * float(other.abs().max()))


@pytest.mark.parametrize(
    ("options", "cuda", "narrow"),
    [
        ({}, True, True),  # on a GPU that has bfloat16: by default
        ({"weights": "fp32"}, True, False),
        ({"precision": "fp32"}, True, False),
        ({}, False, False),
        ({"checkpointing": True, "precision": "bf16"}, False, True),
        ({"checkpointing": True, "precision": "fp32"}, False, False),
        ({"weights": "half", "precision": "bf16"}, False, True),
    ],
)
def test_weights_are_held_in_16_bits_where_it_helps(tiny_model, monkeypatch, options, cuda, narrow) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    settings = TrainingConfig(**({"superclass": "cat", "device": "auto" if cuda else "cpu"} | options))
    if not cuda and "precision" not in options:
        settings = replace(settings, precision="fp32")
    weight = open_base(tiny_model, None, settings, placement(settings)).unet.conv_in.weight
    assert weight.dtype == (torch.bfloat16 if narrow else torch.float32)


def test_weights_of_16_bits_need_a_unet_that_computes_in_them(tiny_model, monkeypatch) -> None:
    with pytest.raises(TrainingError, match="held in 16 bits and the UNet is to compute in float32"):
        config(weights="half", precision="fp32")
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    options = config(weights="half", precision="auto", device="cpu")
    with pytest.raises(TrainingError, match="computes in float32 on cpu and cannot hold its weights in 16"):
        open_base(tiny_model, None, options, placement(options))


def test_the_size_of_the_weights_is_what_their_files_hold(tiny_model, tiny_base) -> None:
    whole = weight_sizes(tiny_base)
    for name, part in (("UNet", "unet"), ("text", "text_encoder"), ("VAE", "vae")):
        (file,) = (tiny_model / part).glob("*.safetensors")
        assert file.stat().st_size - 40_000 < whole[name] <= file.stat().st_size + 4096
    options = config(weights="half", precision="bf16")
    narrow = open_base(tiny_model, None, options, placement(options))
    lean = weight_sizes(narrow, checkpointing=True)
    assert set(lean) == {"UNet", "text"}
    assert whole["UNet"] / 2 <= lean["UNet"] < 0.55 * whole["UNet"]


def scaled_steps(base: BaseModel, scale: float, count: int, **options: Any) -> tuple[Run, list[Tensor]]:
    """A run in float16 after some steps that began with this loss scale, and the values before each and after all."""
    settings = config(precision="fp16", **options)
    run, latents, masks = begin(base, settings)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    values = [run.edit.target_values.detach().clone()]
    with installed(base.unet):
        for _ in range(count):
            prompts = [concept_prompt(base, template, 1) for template in TEMPLATES]
            train_step(base, run, latents, masks, settings, Noising.of(base), prompts)
            values.append(run.edit.target_values.detach().clone())
    return run, values


def test_the_loss_scale_changes_no_gradient(tiny_base) -> None:
    value, whole = gradients(tiny_base)
    half, found = gradients(tiny_base, precision="fp16")
    assert half == pytest.approx(value, rel=0.01)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0.2, atol=0.02 * float(other.abs().max()))


def test_a_step_that_overflows_is_left_out_and_the_next_ones_are_scaled_less(tiny_base) -> None:
    run, values = scaled_steps(tiny_base, 2.0**60, 2)
    assert torch.equal(values[0], values[1]), "nothing is learned from an overflow"
    assert not run.optimiser.state, "not even a moment"
    assert run.scaler.get_scale() == 2.0**58
    run, values = scaled_steps(tiny_base, 2.0**8, 3)
    assert all(not torch.equal(one, other) for one, other in pairwise(values))
    assert run.scaler.get_scale() == 2.0**9, "three good steps, and it is tried again"


def test_gradients_that_overflow_at_every_scale_end_the_training(tiny_base, monkeypatch) -> None:
    monkeypatch.setattr("perfusion.training.training_loop.SMALLEST_SCALE", 2.0**59.5)
    with pytest.raises(TrainingError, match=r"overflow float16 at every loss scale .* use --precision bf16"):
        scaled_steps(tiny_base, 2.0**60, 1)


def test_a_float16_run_that_is_restored_goes_on_with_its_loss_scale(tiny_base, tmp_path) -> None:
    run, _ = scaled_steps(tiny_base, 2.0**60, 2)
    work = WorkFolder(tmp_path / "cat.safetensors")
    work.save_state({}, run.facts(), **run.parts())
    saved = work.load_state({})
    assert saved is not None
    again, _, _ = begin(tiny_base, config(precision="fp16"))
    assert again.scaler.is_enabled()
    assert again.scaler.get_scale() != run.scaler.get_scale()
    again.restore(saved)
    assert again.scaler.state_dict() == run.scaler.state_dict()
    plain, _, _ = begin(tiny_base, config())
    assert not plain.scaler.is_enabled(), "in float32 nothing is scaled"


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
    with installed(tiny_base.unet), pytest.raises(TrainingError, match="The loss became nan at step 1"):
        optimise(tiny_base, run, latents * float("nan"), masks, config(), lambda _: None)
    assert torch.equal(run.edit.target_values, before)
    assert run.step == 0
