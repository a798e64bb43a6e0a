"""Training on what real bases are shaped like: two text encoders, several tokens, distilled guidance, zero SNR."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from perfusion.base.attention import installed, key_projections
from perfusion.base.base_model import BaseModel, guidance_embedding, load_base, token_embedding
from perfusion.concept.concept_file import Concept
from perfusion.errors import TrainingError
from perfusion.training import TrainingConfig, train_concept
from perfusion.training.draw import draw
from perfusion.training.initial_edit import (
    concept_prompt,
    initial_edit,
    initial_embeddings,
    superclass_encoding,
)
from perfusion.training.objective import Noising
from perfusion.training.templates import TEMPLATES, as_tensors, check_superclass, input_ids
from perfusion.training.training_loop import predict


def config(**options: Any) -> TrainingConfig:
    usual = {
        "superclass": "cat",
        "steps": 3,
        "batch_size": 2,
        "crops": 2,
        "precision": "fp32",
        "masks": "none",
    }
    return TrainingConfig(**(usual | options))


def digests(base: BaseModel) -> list[str]:
    """One of each part's names and bytes."""
    found = []
    for part in base.parts:
        digest = hashlib.sha256()
        for name, value in sorted(part.state_dict().items()):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        found.append(digest.hexdigest())
    return found


def test_an_xl_concept_has_two_embeddings_locked_keys_and_leaves_the_base_as_it_was(tiny_xl_base, pictures):
    before = digests(tiny_xl_base)
    concept = train_concept(pictures, config(), model=tiny_xl_base)
    assert digests(tiny_xl_base) == before
    assert [table.shape for table in concept.embeddings] == [(1, 32), (1, 48)]
    assert concept.direction.shape == (1, 80)
    subject = check_superclass(tiny_xl_base, "cat")
    for table, encoder, ids in zip(concept.embeddings, tiny_xl_base.text_encoders, subject, strict=True):
        word = token_embedding(encoder).weight[ids].numpy()
        assert np.abs(table - word).max() > 0.005, "both words are learned"
    encoding = superclass_encoding(tiny_xl_base, subject)
    keys = (encoding @ key_projections(tiny_xl_base.unet).T)[None]
    np.testing.assert_allclose(concept.target_keys, keys, rtol=1e-5, atol=1e-6)
    again = Concept.from_bytes(concept.to_bytes("float32"))
    assert all(map(np.array_equal, again.embeddings, concept.embeddings))


def test_trained_numbers_of_an_xl_concept_are_both_words_and_the_values(tiny_xl_base):
    edit, _ = initial_edit(tiny_xl_base, check_superclass(tiny_xl_base, "cat"), config(), lambda _: None)
    trained = sum(parameter.numel() for parameter in edit.parameters() if parameter.requires_grad)
    assert trained == 32 + 48 + sum(layer.value_dim for layer in tiny_xl_base.layers)


def test_the_superclass_encoding_of_an_xl_model_is_the_mean_over_diffusers_own_prompts(
    tiny_xl_base, tiny_xl_model
):
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_xl_model, local_files_only=True)
    prompts = [template.format("teddy bear") for template in TEMPLATES]
    hidden = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)[0]
    bear = pipeline.tokenizer("bear", add_special_tokens=False).input_ids
    ids = pipeline.tokenizer(prompts, padding="max_length").input_ids
    expected = torch.stack([row[at.index(bear[0])] for row, at in zip(hidden, ids, strict=True)]).mean(0)
    found = superclass_encoding(tiny_xl_base, check_superclass(tiny_xl_base, "teddy bear"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_placeholders_are_at_the_same_place_in_both_prompts(tiny_xl_base, rows):
    for template in TEMPLATES:
        prompt = concept_prompt(tiny_xl_base, template, rows)
        places = [
            [at for at, token in enumerate(ids) if token >= size]
            for ids, size in zip(prompt.ids, tiny_xl_base.vocab_sizes, strict=True)
        ]
        assert places[0] == places[1] == list(range(prompt.last - rows + 1, prompt.last + 1))


def test_more_rows_start_as_the_superclass_words_in_both_tables(tiny_xl_base):
    subject = check_superclass(tiny_xl_base, "teddy bear")
    assert [len(ids) for ids in subject] == [2, 2]
    for rows, words in ((1, [-1]), (2, [-2, -1])):
        for start, encoder, ids in zip(
            initial_embeddings(tiny_xl_base, subject, config(rows=rows)),
            tiny_xl_base.text_encoders, subject, strict=True,
        ):  # fmt: skip
            expected = token_embedding(encoder).weight[[ids[word] for word in words]]
            assert torch.equal(start, expected)
    three = initial_embeddings(tiny_xl_base, subject, config(rows=3))
    for start, encoder, ids in zip(three, tiny_xl_base.text_encoders, subject, strict=True):
        assert torch.equal(start[1:], token_embedding(encoder).weight[ids])
        assert not torch.equal(start[0], start[1]), "the first is a noisy copy, or both would learn the same"


@pytest.mark.parametrize("rows", [1, 2])
def test_a_superclass_of_two_tokens_trains_with_one_row_or_more(tiny_xl_base, pictures, rows):
    concept = train_concept(pictures, config(superclass="teddy bear", rows=rows, steps=2), model=tiny_xl_base)
    assert concept.rows == rows
    assert [len(table) for table in concept.embeddings] == [rows, rows]


def test_an_xl_prediction_is_that_of_diffusers_unet_with_the_edited_projections(tiny_xl_base):
    """The whole path against a second way: the UNet's own processors, every projection replaced by the formula."""
    edit, _ = initial_edit(tiny_xl_base, check_superclass(tiny_xl_base, "cat"), config(), lambda _: None)
    edit.eval()
    with torch.no_grad():
        edit.target_values.add_(0.3)
    prompts = [concept_prompt(tiny_xl_base, template, 1) for template in TEMPLATES]
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([200, 800])
    with torch.no_grad(), installed(tiny_xl_base.unet):
        found = predict(tiny_xl_base, edit, prompts, [3, 5], noisy, timesteps)

    ids = as_tensors([prompts[3], prompts[5]], torch.device("cpu"))
    encoded = tiny_xl_base.encode(ids, list(edit.embeddings))
    direction, dual = edit.direction, edit.dual(edit.direction)[0]
    similarity = encoded.hidden @ dual.T
    gate = torch.sigmoid((similarity - 0.75) / 0.1)
    hooks = []
    for layer in tiny_xl_base.layers:
        attention = tiny_xl_base.unet.get_submodule(layer.name)
        for name, target in (
            ("to_k", edit.target_keys[:, layer.key_slice]),
            ("to_v", edit.target_values[:, layer.value_slice]),
        ):

            def edited(module, inputs, output, target=target):
                return (inputs[0] - similarity * direction) @ module.weight.T + gate @ target

            hooks.append(getattr(attention, name).register_forward_hook(edited))
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)
    with torch.no_grad():
        expected = tiny_xl_base.unet(
            noisy,
            timesteps,
            encoded.hidden,
            added_cond_kwargs={"text_embeds": encoded.pooled, "time_ids": sizes},
        ).sample
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["tiny_base", "tiny_xl_base"])
def test_no_gradient_runs_before_the_first_edited_layer_nor_into_a_weight(which, request):
    base: BaseModel = request.getfixturevalue(which)
    edit, _ = initial_edit(base, check_superclass(base, "cat"), config(), lambda _: None)
    first = base.unet.get_submodule(base.layers[0].name)
    seen: dict[str, bool] = {}

    def watch(name: str) -> Any:
        def look(module: Any, inputs: Any, output: torch.Tensor) -> None:
            seen[name] = output.requires_grad

        return look

    modules = {
        "conv_in": base.unet.conv_in,
        "time_embedding": base.unet.time_embedding,
        "first edited": first,
    }
    modules |= {"first resnet": base.unet.down_blocks[0].resnets[0], "conv_out": base.unet.conv_out}
    hooks = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    prompts = [concept_prompt(base, template, 1) for template in TEMPLATES]
    size = base.unet.config.sample_size
    with installed(base.unet):
        output = predict(base, edit.train(), prompts, [0], torch.randn(1, 4, size, size), torch.tensor([500]))
    output.sum().backward()
    for hook in hooks:
        hook.remove()
    assert seen == {
        "conv_in": False, "time_embedding": False, "first resnet": False, "first edited": True, "conv_out": True,
    }  # fmt: skip
    assert all(weight.grad is None for part in base.parts for weight in part.parameters())
    assert all(table.grad is not None and bool(table.grad.any()) for table in edit.embeddings)
    assert edit.target_values.grad is not None


@pytest.fixture
def consistency_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as LCM has it: a UNet that reads the guidance scale."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "lcm"))
    settings = UNet2DConditionModel.load_config(folder / "unet") | {"time_cond_proj_dim": 12}
    UNet2DConditionModel.from_config(settings).save_pretrained(folder / "unet")
    scheduler = {"_class_name": "LCMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                 "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}  # fmt: skip
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"scheduler": ["diffusers", scheduler["_class_name"]]})
    )
    return folder


def test_a_consistency_model_trains_at_its_guidance_scale(consistency_model, pictures):
    base = load_base(consistency_model)
    assert (base.guidance_scale, base.num_inference_steps) == (8.5, 4)
    seen = []
    hook = base.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["timestep_cond"]), with_kwargs=True
    )
    train_concept(pictures, config(steps=1), model=base)
    hook.remove()
    assert torch.equal(seen[0], guidance_embedding(8.5, 12).expand(2, -1))


def test_a_consistency_model_draws_while_training_as_diffusers_pipeline_does(consistency_model, pictures):
    base = load_base(consistency_model)
    concept = train_concept(pictures, config(steps=1), model=base)
    drawn = draw(base, concept, ["a cat", "a dog"], [0, 1], num_inference_steps=4)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        consistency_model, scheduler=None, safety_checker=None, feature_extractor=None, local_files_only=True
    )
    pipeline.register_modules(scheduler=LCMScheduler.from_pretrained(consistency_model / "scheduler"))
    pipeline.set_progress_bar_config(disable=True)
    for prompt, seed, found in (("a cat", 0, drawn[0]), ("a dog", 1, drawn[1])):
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": 4, "guidance_scale": 8.5, "output_type": "np"}
        wanted = pipeline(prompt, generator=generator, **options).images[0]
        assert np.abs(np.asarray(found) / 255 - wanted).max() < 0.01


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_both_predictions_train_with_zero_terminal_snr(tiny_base, pictures, prediction):
    scheduler = dict(tiny_base.scheduler) | {"prediction_type": prediction, "rescale_betas_zero_snr": True}
    base = replace(tiny_base, scheduler=scheduler)
    losses: list[float] = []
    train_concept(pictures, config(), model=base, report=lambda _, loss: losses.append(loss))
    assert np.isfinite(losses).all()


def test_at_zero_snr_the_last_step_is_noise_alone_and_the_velocity_its_opposite_picture(tiny_base):
    scheduler = dict(tiny_base.scheduler) | {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }
    noising = Noising.of(replace(tiny_base, scheduler=scheduler))
    latents, noise = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    noisy, target = noising(latents, noise, torch.tensor([999]))
    torch.testing.assert_close(noisy, noise, rtol=0, atol=1e-3)
    torch.testing.assert_close(target, -latents, rtol=0, atol=1e-3)


def test_a_scheduler_without_betas_is_refused(tiny_base):
    base = replace(tiny_base, scheduler={"sigma_min": 0.002, "prediction_type": "epsilon"})
    with pytest.raises(TrainingError, match=r"no noise schedule of betas \(EDM or flow matching\?\)"):
        Noising.of(base)


def test_a_prompt_that_is_too_long_is_refused(tiny_xl_base):
    words = [[1] * 90, [1] * 90]
    with pytest.raises(TrainingError, match=r"has \d+ tokens, the model reads 77"):
        input_ids(tiny_xl_base, "a {}", words)
