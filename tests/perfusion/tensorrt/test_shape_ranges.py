"""The sizes engines are built for."""

from dataclasses import replace

import pytest

from perfusion.bundle.facts import read_facts
from perfusion.errors import ExportError, RequestError
from perfusion.tensorrt.engines import plan_jobs
from perfusion.tensorrt.shape_ranges import ShapeOptions, profiles_of


@pytest.fixture
def facts(toy):
    """Latents of 8×8 for pictures of 32×32, in multiples of 2."""
    return read_facts(toy)


def sizes(profiles, name):
    return [profile[name] for profile in profiles]


def test_under_guidance_the_unet_has_two_rows_a_picture(facts):
    profiles = profiles_of("unet", facts, ShapeOptions(batches=(1, 2, 4)))
    assert sizes(profiles, "batch") == [(2, 2, 2), (4, 4, 4), (8, 8, 8)]


@pytest.mark.parametrize("guided", [None, False])
def test_a_bundle_that_draws_without_guidance_has_one_row_a_picture(facts, guided):
    unguided = replace(facts, guided=guided is not None)
    profiles = profiles_of("unet", unguided, ShapeOptions(guided=guided))
    assert sizes(profiles, "batch") == [(1, 1, 1), (2, 2, 2)]


def test_sizes_are_fixed_and_latents_follow_from_the_resolution(facts):
    (profile,) = profiles_of("unet", facts, ShapeOptions(batches=(1,), resolution=64, concepts=6))
    assert profile == {
        "batch": (2, 2, 2),
        "tokens": (77, 77, 77),
        "concepts": (6, 6, 6),
        "height": (16, 16, 16),
        "width": (16, 16, 16),
    }


def test_text_encoders_read_one_prompt_a_call(facts):
    for graph in ("text_encoder", "text_encoder_2"):
        assert profiles_of(graph, facts, ShapeOptions()) == ({"batch": (1, 1, 1), "concepts": (4, 4, 4)},)


def test_the_decoder_is_built_for_one_picture_or_one_tile_of_it_and_the_encoder_for_a_picture(facts):
    (whole,) = profiles_of("vae_decoder", facts, ShapeOptions(batches=(4,), resolution=64))
    (tile,) = profiles_of("vae_decoder", facts, ShapeOptions(resolution=64, tile=8))
    assert profiles_of("vae_encoder", facts, ShapeOptions(resolution=64, tile=8)) == (whole,)
    assert (whole["batch"], whole["height"], whole["picture_height"]) == (
        (1, 1, 1),
        (16, 16, 16),
        (64, 64, 64),
    )
    assert (tile["height"], tile["picture_width"]) == ((8, 8, 8), (32, 32, 32))


def test_a_dynamic_engine_has_one_profile_from_half_the_resolution_on(facts):
    (profile,) = profiles_of("unet", facts, ShapeOptions(batches=(1, 2), resolution=48, dynamic=True))
    assert profile["batch"] == (1, 2, 4)
    assert profile["height"] == (6, 12, 12)
    assert profile["concepts"] == (4, 4, 4)  # slots stay: zeros in them are exact


def test_sides_of_a_dynamic_engine_stay_multiples(facts):
    (profile,) = profiles_of("unet", facts, ShapeOptions(resolution=40, dynamic=True))
    assert profile["height"] == (4, 10, 10)
    (smallest,) = profiles_of("unet", facts, ShapeOptions(resolution=8, dynamic=True))
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
    ],
)
def test_sizes_that_cannot_be_are_refused_with_those_that_can(facts, options, message):
    with pytest.raises(RequestError, match=message):
        profiles_of("unet", facts, options)


def test_graphs_in_int8_are_refused(facts):
    with pytest.raises(ExportError, match="--precision fp16"):
        plan_jobs(replace(facts, precision="int8"), ShapeOptions())


def test_a_graphs_checksum_covers_its_weights_and_not_those_of_other_graphs(toy):
    import json

    path = toy / "bundle.json"
    manifest = json.loads(path.read_text())

    def checksums(**files):
        path.write_text(json.dumps(manifest | {"files": manifest["files"] | files}))
        return {name: graph.sha256 for name, graph in read_facts(toy).graphs.items()}

    data = {"bytes": 1, "sha256": "00" * 32}
    before = checksums()
    assert checksums(**{"concepts.txt.onnx": data}) == before
    inside = checksums(**{"unet.onnx.data": data})
    assert {name for name in before if inside[name] != before[name]} == {"unet"}
    shared = checksums(**{"unet/diffusion_pytorch_model.safetensors": data})
    assert all(shared[name] != before[name] for name in before)  # any graph may refer to it
    assert checksums(**{"key_projections.safetensors": data}) == before
