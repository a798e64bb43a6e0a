"""Regions: each reading of a prompt is read in its part of the picture, and nothing else changes."""

import logging

import numpy as np
import pytest
from PIL import Image

from perfusion.errors import RequestError
from perfusion.runtime import Region, Runtime

WHOLE = (0.0, 0.0, 1.0, 1.0)
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@pytest.fixture
def two(runtime, make_concept):
    """A runtime that knows a cat and a dog."""
    runtime.load_concept(make_concept(0))
    runtime.load_concept(make_concept(1, token="<dog>", superclass="dog"))
    return runtime


def latents(runtime, prompt, **options):
    """The last latents, (channels, height, width)."""
    *_, last = runtime.denoise(prompt, **options)
    return last.latents[0]


@pytest.mark.parametrize(
    "prompt",
    ["a photo of a cat", "a <cat> on a beach", "a <cat> wearing a {hat}", "a <cat> in a {box}", "{a cat}"],
)
def test_a_prompt_with_one_thing_to_look_at_is_read_once(two, prompt):
    np.testing.assert_array_equal(latents(two, prompt), latents(two, prompt, regions=None))


def test_marks_are_not_read_by_the_text_encoder(two):
    np.testing.assert_array_equal(latents(two, "a <cat> on a {chair}"), latents(two, "a <cat> on a chair"))


@pytest.mark.parametrize("token", ["<cat>", "<dog>"])
def test_a_region_that_is_the_whole_picture_reads_its_reading_and_nothing_else(two, token):
    options = {"seed": 3, "negative_prompt": "a tree"}
    regions = latents(two, "a <cat> and a <dog> on grass", regions=[Region(token, box=WHOLE)], **options)
    alone = latents(two, f"a {token} and a {token} on grass", regions=None, **options)
    np.testing.assert_allclose(regions, alone, atol=2e-5)


def test_bands_are_boxes_side_by_side_in_the_order_of_mention(two):
    prompt = "a <dog> and a <cat> on grass"
    boxes = [Region("<dog>", box=LEFT), Region("<cat>", box=RIGHT)]
    np.testing.assert_allclose(latents(two, prompt), latents(two, prompt, regions=boxes), atol=1e-6)
    turned = [Region("<dog>", box=RIGHT), Region("<cat>", box=LEFT)]
    right_of = "a <dog> to the right of a <cat> on grass"
    np.testing.assert_allclose(latents(two, right_of), latents(two, right_of, regions=turned), atol=1e-6)


def test_three_things_stand_in_thirds(two):
    prompt = "a <cat>, a {teapot} and a <dog> on grass"
    thirds = [
        Region("<cat>", box=(0, 0, 1 / 3, 1)),
        Region("teapot", box=(1 / 3, 0, 2 / 3, 1)),
        Region("<dog>", box=(2 / 3, 0, 1, 1)),
    ]
    options = {"width": 96, "height": 32}
    bands = latents(two, prompt, **options)
    np.testing.assert_allclose(bands, latents(two, prompt, regions=thirds, **options), atol=2e-5)
    assert (
        np.abs(bands - latents(two, prompt, regions=thirds[:2], **options)).max() < 2e-5
    )  # the rest is left
    assert np.abs(bands - latents(two, prompt, regions=None, **options)).max() > 1e-3


def test_two_things_are_not_drawn_as_without_regions(two):
    prompt = "a <cat> and a {teapot} on grass"
    assert np.abs(latents(two, prompt) - latents(two, prompt, regions=None)).max() > 1e-3


def test_a_word_is_a_thing_by_a_mark_or_by_a_region_without_a_place(two):
    marked = latents(two, "a <cat> and a {teapot} on grass")
    named = latents(two, "a <cat> and a teapot on grass", regions=[Region("teapot")])
    np.testing.assert_array_equal(marked, named)


def test_a_concept_that_is_off_is_its_superclass_in_its_region(two):
    for token in ("<cat>", "<dog>"):
        two.set_concept(token, strength=0)
    off = latents(two, "a <cat> and a <dog>")
    np.testing.assert_array_equal(off, latents(two, "a {cat} and a {dog}"))


def test_until_concepts_start_their_regions_read_the_superclasses(two):
    for token in ("<cat>", "<dog>"):
        two.set_concept(token, start=0.5)
    steps = [step.latents for step in two.denoise("a <cat> and a <dog>", num_inference_steps=4)]
    plain = [step.latents for step in two.denoise("a {cat} and a {dog}", num_inference_steps=4)]
    np.testing.assert_array_equal(steps[1], plain[1])
    assert np.abs(steps[3] - plain[3]).max() > 1e-4


def test_the_whole_prompt_takes_the_share_it_is_given(two):
    prompt = "a {cat} and a {dog} on grass"
    all_of_it = latents(two, prompt, whole=1.0)
    np.testing.assert_allclose(all_of_it, latents(two, prompt, regions=None), atol=2e-5)
    between = latents(two, prompt, whole=0.3)
    assert np.abs(between - all_of_it).max() > 1e-4


def test_pictures_of_a_batch_have_regions_of_their_own(two):
    prompts = ["a <cat> and a <dog>", "a photo of a tree", "a <dog> next to a <cat>", "a <dog>"]
    regions = ["auto", None, [Region("<dog>", box=RIGHT)], "auto"]
    *_, last = two.denoise(prompts, regions=regions, seed=0)
    for at, (prompt, region) in enumerate(zip(prompts, regions, strict=True)):
        np.testing.assert_array_equal(last.latents[at], latents(two, prompt, regions=region, seed=0))


def test_rows_of_one_call_may_have_different_regions(toy_bundle, make_concept, provider):
    prompts = ["a <cat> and a {tree}", "a {tree} and a <cat>", "a {hat} and a {tree}", "a plain tree"]
    pictures = {}
    for batch_size in (1, 4):
        with Runtime(toy_bundle, provider=provider, threads=1, batch_size=batch_size) as runtime:
            runtime.load_concept(make_concept(0))
            *_, last = runtime.denoise(prompts, seed=[1, 2, 3, 4])
            pictures[batch_size] = last.latents
    np.testing.assert_allclose(pictures[1], pictures[4], atol=2e-5)


def test_regions_work_without_guidance_in_long_prompts_over_a_picture_and_in_other_sizes(two):
    long = "a <cat> and a <dog>, " + "very " * 90 + "far away"
    image = Image.new("RGB", (32, 32), "red")
    for options in (
        {"guidance_scale": 1.0},
        {"image": image, "image_strength": 0.6},
        {"image": image, "mask": Image.linear_gradient("L").resize((32, 32))},
        {"width": 48, "height": 24},
        {"lock": "global"},
        {"gates": "coordinates"},
    ):
        prompt = long if options == {"guidance_scale": 1.0} else "a <cat> and a <dog> on grass"
        assert np.isfinite(latents(two, prompt, **options)).all()
        assert (
            np.abs(latents(two, prompt, **options) - latents(two, prompt, regions=None, **options)).max()
            > 1e-5
        )


def test_a_mask_is_a_region(two, tmp_path):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "left.png")
    prompt = "a <cat> and a <dog>"
    regions = [Region("<cat>", mask=tmp_path / "left.png")]
    hard = latents(two, prompt, regions=regions)
    assert np.isfinite(hard).all()
    np.testing.assert_array_equal(hard, latents(two, prompt, regions=[Region("<cat>", mask=mask)]))
    with pytest.raises(RequestError, match="dark everywhere"):
        latents(two, prompt, regions=[Region("<cat>", mask=Image.new("L", (8, 8)))])


@pytest.mark.parametrize(
    "regions, sentence",
    [
        ("left", "expected 'auto', None, a list of Region"),
        ([("<cat>", LEFT)], "expected 'auto', None, a list of Region"),
        ([Region("<owl>", box=LEFT)], "asked for '<owl>', and the prompt does not hold it"),
        (["auto", "auto"], "2 regions for 1 prompts"),
    ],
)
def test_regions_that_cannot_be_served_are_refused(two, regions, sentence):
    with pytest.raises(RequestError, match=sentence):
        latents(two, "a <cat> and a <dog>", regions=regions)


def test_a_bundle_of_the_first_format_draws_as_ever_and_says_what_it_cannot(
    toy_bundle, make_concept, caplog, provider
):
    old = toy_bundle.with_name("toy_bundle_1")
    rounding = 0.0 if provider == "cpu" else 1e-5  # OpenVINO joins the operators of each graph in its own way
    with (
        Runtime(old, provider=provider, threads=1) as first,
        Runtime(toy_bundle, provider=provider, threads=1) as second,
    ):
        for runtime in (first, second):
            runtime.load_concept(make_concept(0))
        for prompt in ("a photo of a cat", "a <cat> on a beach"):
            np.testing.assert_allclose(latents(first, prompt), latents(second, prompt), rtol=0, atol=rounding)
        with caplog.at_level(logging.WARNING):
            plain = latents(first, "a <cat> and a {dog}")
        assert "format version 1" in caplog.text
        np.testing.assert_allclose(
            plain, latents(second, "a <cat> and a {dog}", regions=None), rtol=0, atol=rounding
        )
        with pytest.raises(RequestError, match="knows no regions"):
            latents(first, "a <cat>", regions=[Region("<cat>", box=LEFT)])
