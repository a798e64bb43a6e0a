"""Training as a whole, on a tiny base model with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.attention import key_projections, value_projections
from perfusion.base import BaseModel
from perfusion.commands import train as command
from perfusion.concept import Concept
from perfusion.errors import TrainingError
from perfusion.training import TrainingConfig, train_concept
from perfusion.training.prompts import check_superclass
from perfusion.training.train import Noising, masked_error, superclass_encoding


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        noise = np.random.default_rng(index).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))


def config(**options: Any) -> TrainingConfig:
    return TrainingConfig(**({"superclass": "cat", "steps": 4, "batch_size": 2, "crops": 2} | options))


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


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    tiny_base: BaseModel, pictures: Path
) -> None:
    first, second, other = (
        train_concept(pictures, config(seed=seed), model=tiny_base).to_bytes("float32") for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_loss_falls_on_pictures_that_can_be_learned(tiny_base: BaseModel, pictures: Path) -> None:
    losses: list[float] = []
    train_concept(
        pictures,
        config(steps=60, batch_size=8),
        model=tiny_base,
        report=lambda step, loss: losses.append(loss),
    )
    assert np.mean(losses[-15:]) < np.mean(losses[:15])


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


def test_mask_of_ones_is_the_mean_squared_error_and_scale_does_not_matter() -> None:
    output, target = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    ones = torch.ones(2, 1, 8, 8)
    plain = torch.nn.functional.mse_loss(output, target)
    torch.testing.assert_close(masked_error(output, target, ones), plain)
    soft = torch.rand(2, 1, 8, 8) + 0.1
    torch.testing.assert_close(masked_error(output, target, soft), masked_error(output, target, 0.3 * soft))


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
        ({"steps": 0}, "steps is 0, expected 1 to"),
        ({"rows": 9}, "rows is 9, expected 1 to 4"),
        ({"lr_values": 0.0}, "expected a number above 0"),
        ({"direction_gradient": "magic"}, "expected one of ema, detach, straight_through"),
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
    assert command.main([*arguments, "--batch-size", "2", "--output", str(output), "--json"]) == 0
    assert '"token": "<cat>"' in capsys.readouterr().out
    concept = Concept.load(output)
    assert (concept.superclass, concept.base, concept.training["pictures"]) == ("cat", "pocket", "2")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--images": "nowhere"}, "no such folder"),
        ({"--superclass": "zebra"}, "has never seen 'zebra'"),
        ({"--output": "."}, "is a folder; --output expects a file name"),
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

    monkeypatch.setattr("perfusion.training.train.masked_error", interrupt)
    arguments = ["--images", str(pictures), "--superclass", "cat", "--model", str(tiny_model), "--quiet"]
    assert command.main([*arguments, "--output", str(tmp_path / "out.safetensors")]) == 130
    assert not list(tmp_path.glob("*out*"))
    assert capsys.readouterr().err == "perfusion-train: interrupted\n"
