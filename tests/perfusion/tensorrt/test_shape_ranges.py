"""The sizes engines are built for."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest

from perfusion.bundle.facts import graph_facts
from perfusion.bundle.reader import read_bundle
from perfusion.errors import ExportError, RequestError
from perfusion.tensorrt.jobs import engine_jobs
from perfusion.tensorrt.shape_ranges import ShapeOptions, shape_ranges_of


@pytest.fixture
def bundle(toy):
    """Latents of 8×8 for pictures of 32×32, in multiples of 2."""
    return read_bundle(toy)


def sizes(shape_ranges, name):
    return [profile[name] for profile in shape_ranges]


def test_under_guidance_the_unet_has_two_rows_a_picture(bundle):
    shape_ranges = shape_ranges_of("unet", bundle, ShapeOptions(batches=(1, 2, 4), readings=(1,)))
    assert sizes(shape_ranges, "batch") == [(2, 2, 2), (4, 4, 4), (8, 8, 8)]


@pytest.mark.parametrize("guided", [None, False])
def test_a_bundle_that_draws_without_guidance_has_one_row_a_picture(bundle, guided):
    scale = 1 if guided is None else 7.5
    own = replace(bundle, defaults=replace(bundle.defaults, guidance_scale=scale))
    shape_ranges = shape_ranges_of("unet", own, ShapeOptions(guided=guided, readings=(1,)))
    assert sizes(shape_ranges, "batch") == [(1, 1, 1), (2, 2, 2)]


def test_sizes_are_fixed_and_latents_follow_from_the_resolution(bundle):
    options = ShapeOptions(batches=(1,), resolution=64, concepts=6, readings=(1,))
    (profile,) = shape_ranges_of("unet", bundle, options)
    assert profile == {
        "batch": (2, 2, 2),
        "regions": (1, 1, 1),
        "tokens": (77, 77, 77),
        "concepts": (6, 6, 6),
        "height": (16, 16, 16),
        "width": (16, 16, 16),
    }


def test_an_engine_takes_the_pairs_of_readings_and_tokens_that_are_asked_for(bundle):
    usual = shape_ranges_of("unet", bundle, ShapeOptions(batches=(1,)))
    assert [(one["regions"][0], one["tokens"][0]) for one in usual] == [(1, 77), (2, 154)]
    more = shape_ranges_of("unet", bundle, ShapeOptions(batches=(1, 2), readings=(3, 1), tokens=(154, 77)))
    pairs = [(one["regions"][0], one["tokens"][0], one["batch"][0]) for one in more]
    assert pairs == [(r, r * t, b) for r in (1, 3) for t in (77, 154) for b in (2, 4)]
    (dynamic,) = shape_ranges_of(
        "unet", bundle, ShapeOptions(readings=(1, 3), tokens=(77, 154), dynamic=True)
    )
    assert (dynamic["regions"], dynamic["tokens"]) == ((1, 1, 3), (77, 77, 462))


def test_a_bundle_of_the_first_format_has_engines_of_one_reading(bundle):
    first = replace(bundle, format_version=1)
    shape_ranges = shape_ranges_of("unet", first, ShapeOptions(batches=(1,), tokens=(77, 154)))
    assert [("regions" in one, one["tokens"][0]) for one in shape_ranges] == [(False, 77), (False, 154)]
    with pytest.raises(RequestError, match="reads a prompt once"):
        shape_ranges_of("unet", first, ShapeOptions(readings=(1, 3)))


def test_text_encoders_read_one_prompt_a_call(bundle):
    for graph in ("text_encoder", "text_encoder_2"):
        assert shape_ranges_of(graph, bundle, ShapeOptions()) == (
            {"batch": (1, 1, 1), "concepts": (4, 4, 4)},
        )


def test_the_decoder_is_built_for_one_picture_or_one_tile_of_it_and_the_encoder_for_a_picture(bundle):
    (whole,) = shape_ranges_of("vae_decoder", bundle, ShapeOptions(batches=(4,), resolution=64))
    (tile,) = shape_ranges_of("vae_decoder", bundle, ShapeOptions(resolution=64, tile=8))
    assert shape_ranges_of("vae_encoder", bundle, ShapeOptions(resolution=64, tile=8)) == (whole,)
    assert (whole["batch"], whole["height"], whole["picture_height"]) == (
        (1, 1, 1),
        (16, 16, 16),
        (64, 64, 64),
    )
    assert (tile["height"], tile["picture_width"]) == ((8, 8, 8), (32, 32, 32))


def test_a_dynamic_engine_has_one_profile_from_half_the_resolution_on(bundle):
    (profile,) = shape_ranges_of("unet", bundle, ShapeOptions(batches=(1, 2), resolution=48, dynamic=True))
    assert profile["batch"] == (1, 2, 4)
    assert profile["height"] == (6, 12, 12)
    assert profile["concepts"] == (4, 4, 4)  # slots stay: zeros in them are exact


def test_sides_of_a_dynamic_engine_stay_multiples(bundle):
    (profile,) = shape_ranges_of("unet", bundle, ShapeOptions(resolution=40, dynamic=True))
    assert profile["height"] == (4, 10, 10)
    (smallest,) = shape_ranges_of("unet", bundle, ShapeOptions(resolution=8, dynamic=True))
    assert smallest["height"] == (2, 2, 2)


@pytest.mark.parametrize(
    "options, message",
    [
        (ShapeOptions(resolution=33), "multiples of 8 pixels; the nearest is 32"),
        (ShapeOptions(resolution=3), "the nearest is 8"),
        (ShapeOptions(resolution=-8), "multiples of 8 pixels"),
        (ShapeOptions(batches=()), "numbers from 1 to 64"),
        (ShapeOptions(batches=(1, 0)), "numbers from 1 to 64"),
        (ShapeOptions(concepts=0), "expected 1 to 64"),
        (ShapeOptions(concepts=1000), "expected 1 to 64"),
        (ShapeOptions(readings=(0,)), "numbers from 1 to 8"),
        (ShapeOptions(readings=()), "numbers from 1 to 8"),
        (ShapeOptions(tokens=(78,)), "a multiple of 77"),
        (ShapeOptions(tokens=(0,)), "a multiple of 77"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_those_that_can(bundle, options, message):
    with pytest.raises(RequestError, match=message):
        shape_ranges_of("unet", bundle, options)


def test_graphs_in_int8_are_refused(bundle):
    with pytest.raises(ExportError, match="--precision fp16"):
        engine_jobs(replace(bundle, precision="int8"), ShapeOptions())


def test_a_graphs_checksum_covers_its_weights_and_not_those_of_other_graphs(bundle):
    def checksums(*names):
        more = dict.fromkeys(names, "00" * 32)
        whole = replace(bundle, checksums={**bundle.checksums, **more})
        return {name: graph.sha256 for name, graph in graph_facts(whole).items()}

    before = checksums()
    assert checksums("concepts.txt.onnx") == before
    inside = checksums("unet.onnx.data")
    assert {name for name in before if inside[name] != before[name]} == {"unet"}
    shared = checksums("unet/diffusion_pytorch_model.safetensors")
    assert all(shared[name] != before[name] for name in before)  # any graph may refer to it
    assert checksums("key_projections.safetensors") == before


def test_a_graphs_checksum_is_the_one_that_engines_were_built_under(bundle):
    """Engines take up to half an hour to build, so what they are found by does not change in passing."""
    facts = graph_facts(bundle)
    assert list(facts) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    for graph in facts.values():
        text = json.dumps(sorted(graph.needs.items()), separators=(",", ":"))
        assert graph.needs[graph.file] == sha256((bundle.folder / graph.file).read_bytes()).hexdigest()
        assert graph.sha256 == sha256(text.encode()).hexdigest()
