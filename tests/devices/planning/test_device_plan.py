"""Everything that is decided for a bundle on a device, held against what the export then does."""

import shlex
from dataclasses import replace

import pytest

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.reader import read_bundle
from perfusion.commands import engine_steps
from perfusion.commands.export import _arguments
from perfusion.devices import PROFILES, find_profile
from perfusion.devices.planning.device_plan import fitting_batches, plan_device
from perfusion.embedded import bundle_path
from perfusion.errors import RequestError

GIB = 1 << 30
LARGE = CallSize(width=512, height=512, concepts=4)


@pytest.fixture(scope="module")
def pocket():
    return read_bundle(bundle_path(), verify=False)


def card(usable):
    """An RTX 3060 of which so many bytes are left for us."""
    profile = PROFILES["rtx-3060"]
    return replace(profile, memory=profile.memory - profile.usable + usable)


@pytest.mark.parametrize("device", ["orin-nano-8", "rtx-3060"])
def test_the_command_that_a_plan_prints_builds_what_the_plan_says(pocket, device):
    half = replace(pocket, precision="fp16")  # as if it were exported; the shapes do not depend on it
    plan = plan_device(half, find_profile(device), CallSize(width=256, height=256, batch=2, concepts=3))
    command = plan.export_command(bundle_path())
    assert command is not None
    given = _arguments(shlex.split(command)[1:])
    profile = engine_steps.device_profile(given)
    target = engine_steps.choose_target(given, profile)
    given.bundle = bundle_path()
    jobs, settings = engine_steps.prepare(given, bundle_path(), target, profile)
    assert {job.graph: job.shape_ranges for job in jobs} == plan.shapes
    assert settings.options.workspace == plan.workspace
    assert settings.flavour == plan.engine
    assert given.script == (device == "orin-nano-8")  # TensorRT builds on the device itself


def test_the_decoders_profile_is_that_of_the_tiles_it_works_in(pocket):
    whole = plan_device(pocket, card(64 * GIB), LARGE).memory.peak
    plan = plan_device(pocket, card(whole - 1), LARGE)
    assert plan.memory.tile is not None
    assert [one["height"] for one in plan.shapes["vae_decoder"]] == [(plan.memory.tile,) * 3]


@pytest.mark.parametrize(
    ("device", "family", "engine"),
    [
        ("rtx-2060", "sd15", "trt-rtx"),
        ("rtx-2060", "pocket", "trt-rtx"),
        ("rtx-2060", "sd21", "onnx"),
        ("rtx-2060", "sdxl-9840", "onnx"),
        ("rtx-3060", "sdxl", "trt-rtx"),
        ("orin-nano-8", "sd21", "trt"),
        ("cpu", "sd15", "onnx"),
    ],
)
def test_tensorrt_for_rtx_gets_no_products_in_float32_on_an_rtx_20(pocket, device, family, engine):
    plan = plan_device(replace(pocket, base=family), find_profile(device))
    assert plan.engine == engine
    assert (plan.export_command("here") is None) == (engine == "onnx")


def test_a_bundle_in_another_precision_than_the_devices_is_exported_again(pocket):
    plan = plan_device(pocket, PROFILES["rtx-3060"])
    assert (plan.precision, plan.exported) == ("fp16", False)
    command = plan.export_command("here")
    assert command is not None
    assert _arguments(shlex.split(command)[1:]).precision == "fp16"
    assert "--model" not in command  # the embedded model's is the default
    fine_tune = replace(pocket, base_fingerprint="0" * 64)
    other = plan_device(fine_tune, PROFILES["rtx-3060"]).export_command("here")
    assert other is not None and "--model MODEL" in other


def test_the_command_builds_the_nearest_that_fits(pocket):
    plan = plan_device(pocket, card(GIB), replace(LARGE, width=1024, height=1024, batch=4))
    near = plan.memory.nearest
    assert near is not None
    command = plan.export_command("here")
    assert command is not None
    given = _arguments(shlex.split(command)[1:])
    assert (given.resolution, given.batch) == (near.width, (near.batch,))
    nothing = plan_device(pocket, card(1))
    assert nothing.memory.nearest is None
    assert nothing.export_command("here") is None


def test_an_int8_bundle_is_drawn_by_onnxruntime_because_tensorrt_has_none_of_its_operators(pocket):
    plan = plan_device(replace(pocket, precision="int8"), PROFILES["rtx-3060"])
    assert (plan.engine, plan.precision, plan.workspace, plan.shapes) == ("onnx", "int8", None, {})
    assert plan.export_command("here") is None


def test_a_processor_builds_nothing(pocket):
    plan = plan_device(pocket, PROFILES["cpu"])
    assert (plan.engine, plan.precision, plan.shapes) == ("onnx", "fp32", {})
    assert plan.latency is not None


def test_a_picture_to_draw_over_is_counted(pocket):
    without, over = (
        plan_device(pocket, PROFILES["cpu"], replace(LARGE, image=image)) for image in (False, True)
    )
    assert "vae_encoder" in over.memory.resident["encode"]
    assert over.memory.needs["vae_encoder"].running > 3 * 512 * 512 * 4  # more than the picture itself
    assert over.memory.peak > without.memory.peak
    assert over.latency is not None and without.latency is not None
    assert over.latency.encode > without.latency.encode


def test_a_picture_to_draw_over_is_refused_where_nothing_encodes_it(pocket):
    bundle = replace(pocket, decoder=replace(pocket.decoder, encoder=None))
    with pytest.raises(RequestError, match="has no vae_encoder"):
        plan_device(bundle, PROFILES["cpu"], replace(LARGE, image=True))


def test_a_consistency_model_draws_without_guidance_whatever_its_scale(pocket):
    conditions = replace(pocket.unet, conditions={"timestep_cond": 256})
    assert plan_device(pocket, PROFILES["cpu"]).memory.size.guided
    with_guidance_inside = replace(pocket, unet=conditions)
    assert not plan_device(with_guidance_inside, PROFILES["cpu"]).memory.size.guided


def test_engines_are_built_for_the_batches_that_fit(pocket):
    least = {}  # the least that each batch needs, where nothing fits
    for count in (1, 2):
        _, plan = fitting_batches(pocket, card(1), LARGE, (count,))
        assert not plan.fits
        least[count] = plan.peak
    for usable, batches in ((least[2], [1, 2]), (least[1], [1]), (1, [1])):
        found, plan = fitting_batches(pocket, card(usable), LARGE, (1, 2))
        assert (found, plan.size.batch, plan.fits) == (batches, batches[-1], usable != 1)
