"""Training as a whole, on a tiny base model with random weights."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfusion.base.attention import key_projections, value_projections
from perfusion.base.base_model import BaseModel, load_base, token_embedding
from perfusion.commands import train as command
from perfusion.concept.concept_file import Concept
from perfusion.errors import DeviceError, TrainingError
from perfusion.training import TrainingConfig, train, train_concept
from perfusion.training.initial_edit import superclass_encoding
from perfusion.training.objective import Noising, masked_error
from perfusion.training.placement import Placement
from perfusion.training.templates import check_superclass
from perfusion.training.work_folder import WorkFolder


def config(**options: Any) -> TrainingConfig:
    usual = {"superclass": "cat", "steps": 4, "batch_size": 2, "crops": 2, "masks": "none"}
    return TrainingConfig(**(usual | options))


def states(base: BaseModel) -> dict[str, torch.Tensor]:
    parts = {"unet": base.unet, "text": base.text_encoder, "vae": base.vae}
    return {
        f"{part}.{name}": value.clone()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def test_training_changes_the_concept_and_nothing_of_the_base(tiny_base: BaseModel, pictures: Path) -> None:
    before = states(tiny_base)
    concept = train_concept(pictures, config(), model=tiny_base)
    after = states(tiny_base)
    assert all(torch.equal(before[name], after[name]) for name in before)
    encoding = superclass_encoding(tiny_base, check_superclass(tiny_base, "cat"))
    np.testing.assert_allclose(
        concept.target_keys, (encoding @ key_projections(tiny_base.unet).T)[None], rtol=1e-5, atol=1e-6
    )
    start = (encoding @ value_projections(tiny_base.unet).T)[None].numpy()
    assert np.abs(concept.target_values - start).max() > 0.05
    word = token_embedding(tiny_base.text_encoder).weight[check_superclass(tiny_base, "cat")[0]].numpy()
    assert np.abs(concept.embeddings[0] - word).max() > 0.005
    assert np.abs(concept.direction - encoding.numpy()).max() > 1e-4


def test_a_concept_of_a_single_file_tells_its_name(
    tiny_base: BaseModel, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "anything.safetensors").touch()
    single = replace(tiny_base, folder=tmp_path / "anything.safetensors", source=tiny_base.folder)
    facts = [train_concept(pictures, config(steps=1), model=base).training for base in (single, tiny_base)]
    assert facts[0] == {**facts[1], "base_file": "anything.safetensors"}


def test_direction_does_not_depend_on_the_precision_of_the_unet(tiny_base: BaseModel, pictures: Path) -> None:
    """After one step it holds 1 % of an encoding that no update has touched: the text encoder's own, in float32."""
    full, half = (
        train_concept(pictures, config(steps=1, precision=precision), model=tiny_base)
        for precision in ("fp32", "bf16")
    )
    np.testing.assert_array_equal(full.direction, half.direction)
    assert not np.array_equal(full.target_values, half.target_values)  # the UNet did run in another precision


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_base_model_and_random_generator_are_as_before_also_after_an_interruption(
    tiny_model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    base = load_base(tiny_model)
    base.unet.train()
    base.text_encoder.requires_grad_(True)
    processors, generator = dict(base.unet.attn_processors), torch.get_rng_state()

    def report(step: int, loss: float) -> None:
        assert not base.unet.training
        if error:
            raise error

    with pytest.raises(error) if error else nullcontext():
        train_concept(pictures, config(rows=2), model=base, report=report)
    assert base.unet.attn_processors == processors
    assert (base.unet.training, base.vae.training) == (True, False)
    assert all(param.requires_grad for param in base.text_encoder.parameters())
    assert not any(param.requires_grad for param in base.unet.parameters())
    assert all(param.grad is None for param in base.text_encoder.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_too_little_memory_is_told_with_its_remedy(
    tiny_base: BaseModel, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("perfusion.training.training_loop.masked_error", fail)
    with pytest.raises(
        TrainingError,
        match=r"not enough memory for 2 samples a step\. Give --checkpointing or --accumulate 2 or a smaller --batch",
    ):
        train_concept(pictures, config(), model=tiny_base)


def test_many_rows_are_warned_of(
    tiny_base: BaseModel, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_concept(pictures, config(rows=2, steps=1), model=tiny_base)
    assert not caplog.records
    train_concept(pictures, config(rows=3, steps=1), model=tiny_base)
    assert "3 rows wrecked the backgrounds" in caplog.text


def test_cuda_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Placement.pick("auto").device.type == "cpu"
    with pytest.raises(DeviceError, match=r"No CUDA device was found\. Use --device cpu"):
        Placement.pick("cuda")


def test_bfloat16_is_chosen_only_where_the_hardware_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert Placement.on(torch.device("cuda")).dtype is None
    assert Placement.on(torch.device("cuda"), "bf16").dtype is torch.bfloat16
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert Placement.on(torch.device("cpu")).dtype is None
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    assert Placement.on(torch.device("cpu")).dtype is torch.bfloat16


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    tiny_base: BaseModel, pictures: Path
) -> None:
    first, second, other = (
        train_concept(pictures, config(seed=seed), model=tiny_base).to_bytes("float32") for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_loss_falls_on_pictures_that_can_be_learned(tiny_base: BaseModel, pictures: Path) -> None:
    """Against the same pictures, noise and timesteps without learning, so that chance has no part in it."""

    def losses(pace: float) -> list[float]:
        seen: list[float] = []
        settings = config(steps=40, batch_size=4, lr_embedding=0.006 * pace, lr_values=0.03 * pace)
        train_concept(pictures, settings, model=tiny_base, report=lambda _, loss: seen.append(loss))
        return seen

    learning, still = losses(1.0), losses(1e-9)
    assert learning[0] == still[0]
    assert np.mean(learning[-15:]) < 0.98 * np.mean(still[-15:])


@pytest.mark.parametrize(
    ("own", "asked", "used"), [(0.03, None, 0.03), (0.004, None, 0.004), (0.004, 0.03, 0.03)]
)
def test_values_learn_at_the_rate_of_the_base_or_the_one_asked_for(
    tiny_base: BaseModel, pictures: Path, own: float, asked: float | None, used: float
) -> None:
    """Adam's first step is the rate, whatever the gradient."""
    base = replace(tiny_base, lr_values=own)
    concept = train_concept(pictures, config(steps=1, lr_values=asked), model=base)
    start = concept.superclass_encoding @ value_projections(base.unet).detach().numpy().T
    moved = np.abs(concept.target_values - start)
    assert float(np.median(moved)) == pytest.approx(used, rel=0.05)


@pytest.mark.parametrize(
    ("own", "asked", "together"),
    [
        ("layers", "auto", False),
        ("encoding", "auto", True),
        ("encoding", "layers", False),
        ("layers", "encoding", True),
    ],
)
def test_values_are_learned_as_the_base_says_or_the_config(
    tiny_base: BaseModel, pictures: Path, own: str, asked: str, together: bool
) -> None:
    """Learned together, they have moved along W_V alone; each for itself, the first step takes them elsewhere."""
    base = replace(tiny_base, values=own)
    concept = train_concept(pictures, config(steps=3, values=asked, lr_values=0.03), model=base)
    projections = value_projections(base.unet).detach().double().numpy()
    moved = concept.target_values[0] - projections @ concept.superclass_encoding[0]
    along, *_ = np.linalg.lstsq(projections, moved)
    left = np.linalg.norm(moved - projections @ along) / np.linalg.norm(moved)
    assert np.linalg.norm(moved) > 0.01
    assert left < 1e-4 if together else left > 0.3


def test_values_learned_together_resume_as_if_nothing_had_come_between(
    tiny_base: BaseModel, pictures: Path, tmp_path: Path
) -> None:
    settings = config(steps=4, values="encoding", lr_values=0.03, save_every=2)
    whole = train_concept(pictures, settings, model=tiny_base)
    work = WorkFolder(tmp_path / "cat.safetensors")
    train(pictures, replace(settings, steps=2), model=tiny_base, work=work)
    resumed = train(pictures, settings, model=tiny_base, work=work, resume=True).concept
    assert np.array_equal(resumed.target_values, whole.target_values)


def test_another_way_to_learn_the_values_needs_a_rate_of_its_own(
    tiny_base: BaseModel, pictures: Path
) -> None:
    with pytest.raises(
        TrainingError, match=r"values is 'encoding', .* 0\.03, is for 'layers'; give lr_values too"
    ):
        train_concept(pictures, config(values="encoding"), model=tiny_base)


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_of_a_concept_share_their_first_dimension(
    tiny_base: BaseModel, pictures: Path, rows: int
) -> None:
    concept = train_concept(pictures, config(rows=rows, superclass="teddy bear"), model=tiny_base)
    assert concept.rows == rows
    assert concept.token == "<teddy-bear>"
    assert concept.embeddings[0].shape == (rows, tiny_base.text_dim)


def test_trainable_numbers_are_the_word_and_one_value_a_channel(tiny_base: BaseModel, pictures: Path) -> None:
    concept = train_concept(pictures, config(steps=1), model=tiny_base)
    trained = concept.embeddings[0].size + concept.target_values.size
    assert trained == tiny_base.text_dim + sum(layer.value_dim for layer in tiny_base.layers)


@pytest.mark.property(number=13)
def test_mask_of_ones_is_the_mean_squared_error_and_scale_does_not_matter() -> None:
    output, target = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    ones = torch.ones(2, 1, 8, 8)
    plain = torch.nn.functional.mse_loss(output, target)
    torch.testing.assert_close(masked_error(output, target, ones), plain)
    soft = torch.rand(2, 1, 8, 8) + 0.1
    torch.testing.assert_close(masked_error(output, target, soft), masked_error(output, target, 0.3 * soft))


@pytest.mark.property(number=13)
def test_no_gradient_where_the_mask_is_zero_and_an_empty_mask_counts_everywhere() -> None:
    output = torch.randn(2, 4, 8, 8, requires_grad=True)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4] = 1
    masked_error(output, torch.randn(2, 4, 8, 8), mask).backward()
    assert output.grad is not None
    assert float(output.grad[0, :, 4:].abs().sum()) == 0
    assert float(output.grad[0, :, :4].abs().min()) > 0
    assert float(output.grad[1].abs().min()) > 0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_target_recovers_the_clean_latents(tiny_base: BaseModel, prediction: str) -> None:
    """From the noisy latents and the target, the definition of each prediction gives the clean latents back."""
    noising = Noising.of(tiny_base)
    noising = Noising(scheduler=noising.scheduler, prediction=prediction)
    latents, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    timesteps = torch.tensor([100, 800])
    noisy, target = noising(latents, noise, timesteps)
    alpha = noising.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    clean = {
        "epsilon": (noisy - (1 - alpha).sqrt() * target) / alpha.sqrt(),
        "v_prediction": alpha.sqrt() * noisy - (1 - alpha).sqrt() * target,
        "sample": target,
    }[prediction]
    torch.testing.assert_close(clean, latents, rtol=1e-4, atol=1e-4)


def test_unknown_superclass_is_refused_with_near_words(tiny_base: BaseModel, pictures: Path) -> None:
    with pytest.raises(TrainingError, match=r"never seen 'elefant'; did you mean elephant\?"):
        train_concept(pictures, config(superclass="elefant"), model=tiny_base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"superclass": " "}, "superclass is empty"),
        ({"superclass": "teddy\u00a0bear"}, r"superclass .* U\+00A0 NO-BREAK SPACE, which cannot be seen"),
        ({"token": "<my\u200bcat>"}, r"token .* U\+200B ZERO WIDTH SPACE, which cannot be seen"),
        ({"steps": 0}, "steps is 0, expected 1 to"),
        ({"rows": 9}, "rows is 9, expected 1 to 4"),
        ({"lr_values": 0.0}, "expected a number above 0"),
        ({"seed": -1}, "seed is -1, expected 0 to 4294967295"),
        ({"seed": 2**70}, "expected 0 to 4294967295"),
        ({"token": "cat"}, "token is 'cat', expected a word in angle brackets"),
        ({"superclass": "cat>"}, "token is '<cat>>', expected a word in angle brackets"),
        ({"direction_gradient": "magic"}, "expected one of ema, detach, straight_through"),
        ({"values": "tokens"}, "values is 'tokens', expected one of auto, layers, encoding"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        config(**options)


def test_token_of_the_tokenizer_is_refused(tiny_base: BaseModel, pictures: Path) -> None:
    with pytest.raises(TrainingError, match="is a word of the model already"):
        train_concept(pictures, config(token="<|endoftext|>"), model=tiny_base)


def test_command_writes_a_concept_that_loads(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cat.safetensors"
    arguments = ["--images", str(pictures), "--superclass", "cat", "--model", str(tiny_model), "--steps", "3"]
    arguments += ["--no-sheet", "--batch-size", "2"]
    assert command.main([*arguments, "--output", str(output), "--json"]) == 0
    assert '"token": "<cat>"' in capsys.readouterr().out
    concept = Concept.load(output)
    assert (concept.superclass, concept.base, concept.training["pictures"]) == ("cat", "pocket", "2")


def test_command_counts_padding_when_asked(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "own-cache"
    monkeypatch.setenv("PERFUSION_CACHE", str(cache))
    arguments = ["--images", str(pictures), "--superclass", "cat", "--model", str(tiny_model), "--steps", "1"]
    arguments += ["--batch-size", "1", "--output", str(tmp_path / "cat.safetensors"), "--quiet", "--no-sheet"]
    duals = []
    for option in ([], ["--count-padding"]):
        assert command.main([*arguments, *option]) == 0
        duals.append(Concept.load(tmp_path / "cat.safetensors").dual)
    assert len(list(cache.iterdir())) == 2
    assert not np.array_equal(*duals), "another C is another dual"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--images": "nowhere"}, "nowhere is not there, expected a folder with pictures"),
        ({"--superclass": "zebra"}, "has never seen 'zebra'"),
        ({"--output": "."}, "is a folder, expected the name of a file"),
        ({"--output": "/dev/null"}, "is not an ordinary file. Choose a file name"),
        ({"--output": "cat.jpg"}, "neither a .safetensors file nor a .png picture"),
        (
            {"--output": f"{'out' * 100}.png"},
            "out.png: file name too long",
        ),
        ({"--model": "nowhere"}, "no such folder"),
        ({"--token": "cat"}, "expected"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = {"--images": str(pictures), "--superclass": "cat", "--model": str(tiny_model), "--steps": "1"}
    arguments |= {"--output": "out.safetensors", "--batch-size": "1"} | change
    assert command.main([word for pair in arguments.items() for word in pair] + ["--quiet"]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*out*"))


def test_interrupted_training_leaves_nothing(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("perfusion.training.training_loop.masked_error", interrupt)
    arguments = ["--images", str(pictures), "--superclass", "cat", "--model", str(tiny_model), "--quiet"]
    arguments += ["--masks", "none"]
    assert command.main([*arguments, "--output", str(tmp_path / "out.safetensors")]) == 130
    assert not list(tmp_path.glob("*out*"))
    assert capsys.readouterr().err == "perfusion-train: interrupted\n"
