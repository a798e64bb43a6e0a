"""The plan: what it says of the embedded model, what it decides, and what onnxruntime really takes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.reader import read_bundle
from perfusion.devices import PROFILES, plan_memory
from perfusion.devices.planning.float32_parts import kept_places
from perfusion.devices.planning.latency import estimate_latency
from perfusion.devices.planning.memory_plan import STAGES, SmallerCall, graph_files, workload_of
from perfusion.embedded import bundle_path
from perfusion.errors import BundleError, RequestError

MIB, GIB = 1 << 20, 1 << 30
OWN, LARGE = (CallSize(width=side, height=side, concepts=4) for side in (128, 512))
BASE_MODELS = Path(__file__).parents[2] / "data" / "base_models"


@pytest.fixture(scope="module")
def pocket():
    return read_bundle(bundle_path(), verify=False)


def test_with_room_every_graph_stays_open_and_nothing_is_tiled(pocket):
    plan = plan_memory(pocket, OWN, budget=8 * GIB)
    assert plan.fits
    assert plan.tile is None
    assert {plan.resident[stage] for stage in STAGES} == {frozenset({"text_encoder", "unet", "vae_decoder"})}
    assert (
        plan.peak
        == max(plan.stages.values())
        == plan.base + sum(need.opened + need.running for need in plan.needs.values())
    )


def test_with_less_room_the_decoder_works_in_tiles_before_graphs_are_closed(pocket):
    whole = plan_memory(pocket, LARGE, budget=64 * GIB)
    plan = plan_memory(pocket, LARGE, budget=whole.peak - 1)
    assert plan.fits
    assert plan.tile == 32
    assert plan.resident["denoise"] == {"text_encoder", "unet", "vae_decoder"}


def test_with_little_room_only_the_graphs_of_a_stage_are_open(pocket):
    tiled = plan_memory(pocket, LARGE, budget=plan_memory(pocket, LARGE, budget=64 * GIB).peak - 1)
    plan = plan_memory(pocket, LARGE, budget=tiled.peak - 1)
    assert plan.fits
    assert plan.resident == {"encode": {"text_encoder"}, "denoise": {"unet"}, "decode": {"vae_decoder"}}
    assert plan.peak < tiled.peak


def test_a_request_that_fits_nowhere_names_a_smaller_one_that_does(pocket):
    plan = plan_memory(pocket, replace(OWN, width=512, height=512, batch=4), budget=400 * MIB)
    assert not plan.fits
    near = plan.nearest
    assert near is not None
    assert (near.batch, near.precision) == (1, None)
    smaller = replace(OWN, width=near.width, height=near.height, batch=near.batch)
    assert plan_memory(pocket, smaller, budget=400 * MIB).fits
    assert f"The nearest that does is {near.width}×{near.height} in batches of 1." in plan.explain()


def test_the_nearest_request_is_a_size_that_the_bundle_draws(pocket):
    near = plan_memory(pocket, replace(OWN, width=736, height=544), budget=300 * MIB).nearest
    assert near is not None
    assert near.width % pocket.size_step == near.height % pocket.size_step == 0


def test_on_a_gpu_half_precision_is_tried_before_a_smaller_picture(pocket):
    card = PROFILES["orin-nano-8"]
    peaks = {}
    for precision in ("fp32", "fp16"):  # the least that each needs, where nothing fits
        plan = plan_memory(
            pocket, LARGE, budget=replace(card, memory=card.memory - card.usable), precision=precision
        )
        peaks[precision] = plan.peak
    between = (peaks["fp32"] + peaks["fp16"]) // 2
    plan = plan_memory(pocket, LARGE, budget=replace(card, memory=card.memory - card.usable + between))
    assert plan.nearest == SmallerCall(width=512, height=512, batch=1, precision="fp16")
    assert "512×512 in batches of 1, exported as fp16" in plan.explain()


def test_the_nearest_request_is_the_largest_that_fits(pocket):
    def fits(batch, side):
        return plan_memory(pocket, replace(OWN, width=side, height=side, batch=batch), budget=400 * MIB).fits

    near = plan_memory(pocket, replace(OWN, width=256, height=256, batch=40), budget=400 * MIB).nearest
    assert near is not None and near.width == 256
    assert fits(near.batch, 256) and not fits(near.batch + 1, 256)
    near = plan_memory(pocket, replace(OWN, width=1024, height=1024), budget=400 * MIB).nearest
    assert near is not None and near.width == near.height
    assert fits(1, near.width) and not fits(1, near.width + pocket.size_step)


def test_a_picture_beyond_all_memory_is_answered_without_taking_any(pocket):
    plan = plan_memory(pocket, replace(OWN, width=8192, height=8192), budget=8 * GIB)
    assert plan.peak > 1 << 40
    assert plan.nearest is not None


def test_a_budget_that_holds_nothing_says_that_nothing_fits(pocket):
    plan = plan_memory(pocket, OWN, budget=MIB)
    assert plan.nearest is None
    assert "nothing smaller fits. Take a smaller model" in plan.explain()


def test_half_precision_takes_half_of_the_weights_and_arrays(pocket):
    full = plan_memory(pocket, LARGE, budget=8 * GIB).needs["unet"]
    half = plan_memory(pocket, LARGE, budget=8 * GIB, precision="fp16").needs["unet"]
    assert half.running == pytest.approx(full.running / 2, rel=0.05)
    assert half.opened < full.opened


@pytest.mark.parametrize(
    ("family", "decoder", "unet"), [("sd15", 0.5, 0.5), ("sdxl", 1, 0.5), ("sd21", 0.5, 0.99)]
)
def test_what_an_export_in_half_leaves_in_float32_is_not_halved(pocket, family, decoder, unet):
    # nearly all that pocket's UNet takes at this size are attention's scores
    bundle = replace(pocket, base=family)
    full = plan_memory(bundle, LARGE, budget=8 * GIB).needs
    half = plan_memory(bundle, LARGE, budget=8 * GIB, precision="fp16").needs
    assert half["vae_decoder"].running == pytest.approx(decoder * full["vae_decoder"].running, rel=0.05)
    assert half["unet"].running == pytest.approx(unet * full["unet"].running, rel=0.05)
    assert half["unet"].opened < full["unet"].opened


@pytest.mark.parametrize(
    "model", ["sd15", "sd21", "sd_turbo", "sdxl", "sdxl_turbo", "ssd_1b", "lcm_dreamshaper"]
)
def test_what_is_taken_to_stay_in_float32_is_what_the_export_keeps(model):
    from perfusion.base.families import FAMILIES
    from perfusion.export import half

    config = json.loads((BASE_MODELS / f"{model}.json").read_text())
    width = config["unet"]["cross_attention_dim"]
    base: Any = SimpleNamespace(
        unet=SimpleNamespace(config=config["unet"]),
        family=next(family.name for family in FAMILIES if family.text_dim == width),
        text_encoders=config["text_encoders"],
        vae=SimpleNamespace(config={}),
    )
    assert kept_places(base.family) == set(half.kept_places(base))
    assert kept_places(f"{base.family}-1234") == kept_places(base.family)  # with fewer layers


@pytest.mark.parametrize(
    "more", [{"batch": 2}, {"width": 160}, {"height": 160}, {"concepts": 64}, {"guided": True}]
)
def test_a_larger_request_never_takes_less(pocket, more):
    least = CallSize(width=128, height=128, guided=False)
    small, large = (
        plan_memory(pocket, size, budget=8 * GIB).needs["unet"] for size in (least, replace(least, **more))
    )
    assert large.opened == small.opened
    assert large.running >= small.running


def test_a_gpu_keeps_room_for_its_context(pocket):
    card = replace(PROFILES["rtx-3060"], memory=8 * GIB)
    on_card = plan_memory(pocket, OWN, budget=card)
    in_bytes = plan_memory(pocket, OWN, budget=8 * GIB)
    assert on_card.base > in_bytes.base
    assert on_card.budget == card.usable


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 100},
        {"height": 0},
        {"width": -128},
        {"width": 1 << 20, "height": 1 << 20},
        {"batch": 0},
        {"concepts": -1},
        {"batch": 1 << 17},
        {"concepts": 1 << 40},
    ],
)
def test_sizes_that_no_picture_has_are_refused(pocket, wrong):
    with pytest.raises(RequestError, match="expected"):
        plan_memory(pocket, replace(OWN, **wrong), budget=GIB)


def test_a_graph_that_cannot_be_read_is_refused_by_name(pocket, tmp_path):
    (tmp_path / "unet.onnx").write_bytes(b"nonsense")
    broken = replace(pocket, unet=replace(pocket.unet, file=tmp_path / "unet.onnx"))
    with pytest.raises(BundleError, match=r"unet\.onnx is not a graph"):
        plan_memory(broken, OWN, budget=GIB)


def test_a_graph_that_changed_on_the_disk_is_read_again(pocket, tmp_path):
    path = tmp_path / "vae_decoder.onnx"
    path.write_bytes((bundle_path() / "vae_decoder.onnx").read_bytes())
    bundle = replace(pocket, decoder=replace(pocket.decoder, file=path))
    assert plan_memory(bundle, OWN, budget=8 * GIB).fits
    path.write_bytes(b"nonsense")
    with pytest.raises(BundleError):
        plan_memory(bundle, OWN, budget=8 * GIB)


MEASURE = """
import sys
import numpy as np
from perfusion.onnx_runtime import import_onnxruntime
from perfusion.runtime.compute.graphs import Graphs
from perfusion.bundle.reader import read_bundle
from perfusion.embedded import bundle_path

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

import_onnxruntime("")
bundle = read_bundle(bundle_path(), verify=False)
before = peak()
with_graphs = Graphs(bundle, "cpu", 1)
random, channels = np.random.default_rng(0), bundle.unet.in_channels
for _ in range(3):
    with_graphs.run("vae_decoder", latent_sample=random.normal(size=(1, channels, 48, 48)).astype("f4"))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc")
def test_the_plan_is_within_a_fifth_of_what_onnxruntime_takes(pocket):
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    plan = plan_memory(pocket, replace(OWN, width=384, height=384), budget=64 * GIB)
    others = sum(need.opened for name, need in plan.needs.items())
    planned = plan.base + others + plan.needs["vae_decoder"].running
    assert planned == pytest.approx(int(done.stdout), rel=0.2)


# --- the estimate of the time


def estimated(bundle, workload, profile, **options):
    """The estimate, where there must be one."""
    found = estimate_latency(graph_files(bundle), workload, profile, **options)
    assert found is not None
    return found


def test_a_picture_takes_an_encoding_the_steps_and_a_decoding(pocket):
    workload = workload_of(pocket, replace(OWN, batch=2))
    found = estimated(pocket, workload, PROFILES["rtx-3060"], steps=10)
    assert found.total == pytest.approx(found.encode + 10 * found.step + found.decode)
    assert "estimate" in str(found)
    assert "no GPU has been measured" in found.error


def test_twice_as_fast_a_device_takes_half_the_time(pocket):
    workload = workload_of(pocket, OWN)
    card = PROFILES["rtx-3060"]
    twice = replace(card, bandwidth=2 * card.bandwidth, fp16_flops=2 * card.fp16_flops)
    slow, fast = (estimated(pocket, workload, one, steps=10) for one in (card, twice))
    assert fast.total == pytest.approx(slow.total / 2)


def test_decoding_in_tiles_counts_every_tile(pocket):
    workload = workload_of(pocket, LARGE)
    card = PROFILES["rtx-3060"]
    tiled = estimated(pocket, workload, card, steps=1, tile=32)
    tile = estimated(pocket, workload_of(pocket, replace(OWN, width=256, height=256)), card, steps=1)
    assert tiled.decode == pytest.approx(4 * tile.decode)


def test_a_device_of_unknown_speed_gets_no_estimate(pocket):
    workload = workload_of(pocket, OWN)
    assert estimate_latency(graph_files(pocket), workload, PROFILES["rtx-4070"], steps=10) is None
