"""Runtime as its users meet it: concepts come and go, batches, seeds, steps, and what cannot be served."""

import re
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from perfusion.concept.edit import locked_keys
from perfusion.errors import ConceptError, PerfusionError, RequestError
from perfusion.runtime import Runtime

PROMPT = "a photo of <cat> on a beach"


def same(one: Any, other: Any) -> bool:
    """Whether two pictures have the same bits."""
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_the_lock_in_the_file_is_the_default(runtime, make_concept):
    runtime.load_concept(make_concept(lock="global"))
    found = runtime.generate(PROMPT)
    assert same(found, runtime.generate(PROMPT, lock="global"))
    assert not same(found, runtime.generate(PROMPT, lock="local"))


def test_keys_under_the_global_lock_depend_on_no_target(runtime, make_concept):
    pictures = []
    for targets in (1, 2):
        other = make_concept(targets)
        runtime.load_concept(make_concept(0, target_keys=other.target_keys))
        pictures.append([runtime.generate(PROMPT, lock=lock) for lock in ("global", "local")])
        runtime.unload_concept("<cat>")
    assert same(pictures[0][0], pictures[1][0])
    assert not same(pictures[0][1], pictures[1][1])


def test_a_file_without_keys_draws_as_one_with_the_derived_keys(runtime, bundle, make_concept):
    from safetensors.numpy import load_file

    concept = make_concept(target_keys=None)
    runtime.load_concept(concept)
    found = runtime.generate(PROMPT)
    runtime.unload_concept("<cat>")
    weight = load_file(bundle.key_projections)["key_projections"]
    runtime.load_concept(replace(concept, target_keys=locked_keys(weight, concept.superclass_encoding)))
    assert same(found, runtime.generate(PROMPT))
    runtime.unload_concept("<cat>")
    runtime.load_concept(make_concept())
    assert not same(found, runtime.generate(PROMPT))


def test_a_concept_that_is_not_named_or_not_loaded_leaves_no_trace(runtime, make_concept):
    before = runtime.generate("a photo of a cat on a beach", seed=3)
    runtime.load_concept(make_concept())
    assert same(runtime.generate("a photo of a cat on a beach", seed=3), before)
    assert not same(runtime.generate(PROMPT, seed=3), before)
    runtime.unload_concept("<cat>")
    assert same(runtime.generate("a photo of a cat on a beach", seed=3), before)


def test_swapping_a_concept_out_and_in_restores_its_picture(runtime, make_concept, tmp_path):
    make_concept(0).save(tmp_path / "cat.safetensors")
    first = runtime.load_concept(tmp_path / "cat.safetensors")
    assert runtime.concepts == {"<cat>": first}
    before = runtime.generate(PROMPT)
    runtime.unload_concept("<cat>")
    runtime.load_concept(make_concept(1))
    assert not same(runtime.generate(PROMPT), before)
    runtime.unload_concept("<cat>")
    runtime.load_concept(str(tmp_path / "cat.safetensors"))
    assert same(runtime.generate(PROMPT), before)


def test_settings_act_on_the_next_picture_and_return(runtime, make_concept):
    runtime.load_concept(make_concept())
    before, settings = runtime.generate(PROMPT), runtime.set_concept("<cat>")
    for change in ({"bias": 0.6}, {"temperature": 0.05}, {"strength": 0.5}):
        runtime.set_concept("<cat>", **change)
        assert not same(runtime.generate(PROMPT), before)
        runtime.set_concept("<cat>", **asdict(settings))
    assert same(runtime.generate(PROMPT), before)


def test_a_batch_draws_every_picture_as_if_alone(runtime, make_concept):
    """To the last bit: prompts, seeds, concepts and their settings differ from row to row."""
    runtime.load_concept(make_concept(0))
    runtime.load_concept(make_concept(1, token="<dog>", rows=2), bias=0.0)
    prompts = ["a <cat>", "a cat", "", "a <dog> and a <cat>", "a <dog>", "a <cat>"]
    seeds = [0, 1, 2, 3, 4, 0]
    batch = runtime.generate(prompts, seed=seeds)
    for prompt, seed, found in zip(prompts, seeds, batch, strict=True):
        assert same(runtime.generate(prompt, seed=seed), found)
    for found, expected in zip(runtime.generate(prompts[::-1], seed=seeds[::-1]), batch[::-1], strict=True):
        assert same(found, expected)
    assert same(batch[0], batch[5]) and not same(batch[0], batch[1])


def test_several_pictures_in_one_call_of_the_unet_are_those_of_single_calls(
    runtime, toy_bundle, make_concept, provider
):
    prompts = ["a <cat>", "a cat", "a <dog> and a <cat>", "a <dog>", ""]
    with Runtime(toy_bundle, provider=provider, threads=1, batch_size=3) as wide:
        for one in (runtime, wide):
            one.load_concept(make_concept(0))
            one.load_concept(make_concept(1, token="<dog>", rows=2))
        for guidance_scale in (1.0, 3.0):
            options: Any = {"seed": [0, 1, 2, 3, 4], "guidance_scale": guidance_scale}
            for found, expected in zip(
                wide.generate(prompts, **options), runtime.generate(prompts, **options), strict=True
            ):
                difference = np.asarray(found, np.int16) - np.asarray(expected, np.int16)
                assert np.abs(difference).max() <= 1


def test_another_runtime_draws_the_same_bits(runtime, toy_bundle, provider):
    with Runtime(toy_bundle, provider=provider, threads=1) as other:
        assert same(other.generate("a cat", seed=5), runtime.generate("a cat", seed=5))


def test_one_prompt_serves_many_seeds_and_one_seed_many_prompts(runtime):
    by_seed = runtime.generate("a cat", seed=[0, 1])
    assert same(by_seed[1], runtime.generate("a cat", seed=1)) and not same(*by_seed)
    by_prompt = runtime.generate(("a cat", "a dog"), seed=np.int64(1))
    assert same(by_prompt[0], by_seed[1]) and not same(*by_prompt)


def test_each_picture_may_have_its_own_negative_prompt(runtime):
    found = runtime.generate(["a cat", "a cat"], negative_prompt=["", "a dog"])
    assert same(found[1], runtime.generate("a cat", negative_prompt="a dog")) and not same(*found)


def test_denoising_yields_every_step_and_ends_with_the_picture(runtime):
    steps = list(runtime.denoise("a cat", seed=[1, 2], num_inference_steps=5, scheduler="euler"))
    assert [(step.index, step.total) for step in steps] == [(index, 5) for index in range(5)]
    assert [step.timestep for step in steps] == [999, 799, 599, 399, 199]
    assert steps[0].latents.shape == (2, 4, 8, 8)
    finished = runtime.generate("a cat", seed=[1, 2], num_inference_steps=5, scheduler="euler")
    for found, preview, expected in zip(steps[-1].pictures(), steps[-1].preview(), finished, strict=True):
        assert same(found, expected) and same(preview, expected)  # Euler ends at the clean sample itself
    assert not same(steps[0].preview()[0], finished[0])
    assert not same(steps[0].preview()[0], steps[0].pictures()[0])


def test_a_caller_cannot_disturb_the_denoising(runtime, make_concept):
    runtime.load_concept(make_concept())
    undisturbed = runtime.generate(PROMPT)
    for step in runtime.denoise(PROMPT):
        step.latents[:] = 0
        step.preview()
        runtime.set_concept("<cat>", strength=0)
    assert same(step.pictures()[0], undisturbed)


def test_denoising_may_be_left_early(runtime):
    steps = runtime.denoise("a cat", num_inference_steps=1000)
    next(steps)
    del steps
    assert same(runtime.generate("a cat"), runtime.generate("a cat"))


@pytest.mark.parametrize(
    "call, message",
    [
        ({"prompt": "cat " * 1300}, "has 1300 tokens, expected at most 1200"),
        ({"prompt": 3}, "prompt is 3, expected a text"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, "3 seeds for 2 prompts"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "1 negative prompts for 2 prompts"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": True}, "seed is True"),
        ({"width": 33}, "width is 33, expected a multiple of 8 pixels, such as 32"),
        ({"height": 0}, "height is 0, expected a multiple of 8 pixels, such as 8"),
        ({"height": -8}, "height is -8"),
        ({"width": 32.0}, r"width is 32\.0"),
        ({"num_inference_steps": 0}, "number of steps is 0; this model takes 1 to 1000"),
        ({"num_inference_steps": 1001}, "number of steps is 1001"),
        ({"num_inference_steps": "4"}, "number of steps is '4'"),
        ({"guidance_scale": float("nan")}, "guidance scale is nan"),
        ({"guidance_scale": -1}, "guidance scale is -1"),
        ({"guidance_scale": 1e4}, "guidance scale is 10000.0, expected a number from 0 to 1000"),
        ({"guidance_scale": "high"}, "guidance scale is 'high'"),
        ({"scheduler": "dpm"}, "scheduler is 'dpm'; choose one of ddim, plms, euler"),
        ({"lock": "both"}, "lock is 'both', expected one of local, global"),
        ({"negative_prompt": "no <cat>"}, "negative prompt names <cat>.*Write 'teddy bear' instead"),
        ({"prompt": "<cat> <dog>"}, r"different locks \(<cat> local, <dog> global\)"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_said_before_the_first_step(runtime, make_concept, call, message):
    runtime.load_concept(make_concept(superclass="teddy bear"))
    runtime.load_concept(make_concept(token="<dog>", lock="global"))
    with pytest.raises(RequestError, match=message):
        runtime.denoise(**{"prompt": "a cat", **call})


def test_an_option_that_does_not_exist_is_a_type_error(runtime):
    with pytest.raises(TypeError, match="cfg"):
        runtime.denoise("a cat", cfg=3)


def test_numbers_that_are_not_finite_are_a_sentence(runtime, make_concept):
    runtime.load_concept(make_concept(target_values=np.full((1, 40), 3e38, np.float32)))
    with pytest.raises(PerfusionError, match=r"Step 1 gave numbers that are not finite\. Lower the guidance"):
        runtime.generate("a <cat>")


def test_a_picture_that_is_not_finite_is_a_sentence(runtime):
    tiny = replace(runtime.bundle.decoder, scaling_factor=1e-300)
    runtime._parts.bundle = replace(runtime.bundle, decoder=tiny)
    with pytest.raises(PerfusionError, match="The decoder gave numbers that are not finite"):
        runtime.generate("a cat")


def test_a_bundles_own_guidance_scale_that_cannot_be_served_is_named(runtime):
    defaults = replace(runtime.bundle.defaults, guidance_scale=1e9)
    runtime._preparation._bundle = replace(runtime.bundle, defaults=defaults)
    with pytest.raises(RequestError, match=r"guidance scale is 1000000000\.0, expected"):
        runtime.generate("a cat")


def test_a_negative_prompt_without_guidance_is_warned_of(runtime, caplog):
    runtime.generate("a cat", negative_prompt="dog", guidance_scale=1)
    assert "no effect without guidance" in caplog.text


def test_a_base_models_own_word_cannot_be_a_concept(runtime, make_concept):
    with pytest.raises(ConceptError, match="is a word of the base model's own"):
        runtime.load_concept(make_concept(token="<|endoftext|>"))


def test_a_concept_can_be_loaded_under_another_token(runtime, make_concept):
    runtime.load_concept(make_concept())
    first = runtime.generate("a <cat>")
    runtime.load_concept(make_concept(), token="<kitten>")
    assert list(runtime.concepts) == ["<cat>", "<kitten>"]
    assert same(runtime.generate("a <kitten>"), first)
    with pytest.raises(ConceptError, match="expected a word in angle brackets"):
        runtime.load_concept(make_concept(), token="kitten")


def test_a_broken_concept_file_is_named_and_changes_nothing(runtime, make_concept, tmp_path):
    path = tmp_path / "cat.safetensors"
    path.write_bytes(make_concept().to_bytes()[:-1])
    with pytest.raises(ConceptError, match=r"cat\.safetensors"):
        runtime.load_concept(path)
    with pytest.raises(ConceptError, match="no such file"):
        runtime.load_concept(tmp_path / "nothing.safetensors")
    assert not runtime.concepts


def test_a_closed_runtime_says_so(toy_bundle, provider):
    with Runtime(toy_bundle, provider=provider) as runtime:
        last = list(runtime.denoise("a cat"))[-1]
    with pytest.raises(RequestError, match="closed"):
        runtime.generate("a cat")
    with pytest.raises(RequestError, match="closed"):
        last.pictures()


@pytest.mark.parametrize("name", ["threads", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 10**9, 1.5, "4", True])
def test_numbers_of_threads_and_pictures_that_make_no_sense_are_refused(toy_bundle, name, value):
    with pytest.raises(RequestError, match=f"{name} is {value!r}, expected a whole number from 1 to"):
        Runtime(toy_bundle, **{name: value})


def test_too_many_pictures_at_once_are_refused_however_they_are_asked_for(runtime):
    for call in ({"seed": list(range(5000))}, {"seed": 0, "count": 5000}):
        with pytest.raises(RequestError, match="would be 5000 pictures, expected at most 4096 at once"):
            runtime.generate("a cat", **call)
    with pytest.raises(RequestError, match="would be 6000 pictures"):
        runtime.generate(["a cat"] * 3000, count=2)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("steps", "Did you mean num_inference_steps?"),
        ("cfg_scale", "Did you mean guidance_scale?"),
        ("negativ_prompt", "Did you mean negative_prompt?"),
        ("xyzzy", "Expected one of negative_prompt, width"),
    ],
)
def test_an_option_of_another_name_is_answered_with_the_right_one(runtime, name, hint):
    for draw in (runtime.generate, runtime.submit, runtime.denoise):
        with pytest.raises(TypeError, match=re.escape(hint)):
            draw("a cat", **{name: 4})


def test_a_size_far_above_the_models_is_warned_of_once(runtime, caplog):
    usual = runtime.bundle.defaults
    for scale in (1, 2, 2):
        runtime.denoise("a cat", width=scale * usual.width, height=scale * usual.height)
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"more than the {usual.width} × {usual.height} that the model learned from" in line
