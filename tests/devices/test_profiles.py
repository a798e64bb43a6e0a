"""The table of devices: complete, consistent, and found by name."""

import pytest

from perfusion.devices import PROFILES, find_profile
from perfusion.devices.profiles import SOURCES, processor_profile
from perfusion.errors import DeviceError

GIB = 1 << 30


def test_every_device_that_is_promised_has_a_profile():
    promised = {
        *("orin-nano-4", "orin-nano-4-super", "orin-nano-8", "orin-nano-8-super", "orin-nx-8", "orin-nx-16"),
        *("agx-orin-32", "agx-orin-64", "xavier-nx-8", "agx-xavier-32", "agx-thor", "rtx-2060", "rtx-3060"),
        *("rtx-4070", "rtx-5090", "rtx-4060-laptop", "a100-80", "h100-80", "h200", "cpu"),
    }
    assert promised <= set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_profile_does_not_contradict_itself(profile):
    assert profile.source in SOURCES
    assert (profile.fp16_flops == 0) or (profile.fp16_flops > 1e11)
    assert profile.memory >= 4 * GIB
    assert 0 < profile.workspace <= profile.memory // 8
    assert profile.usable < profile.memory
    assert profile.engine in profile.engines
    assert profile.precision in profile.precisions
    assert profile.engines[0] == "onnx"
    if profile.kind == "jetson":
        assert profile.unified
        assert "trt-rtx" not in profile.engines


def test_devices_that_run_no_engine_say_why_and_take_no_gpu_precision():
    for name in ("xavier-nx-8", "xavier-nx-16", "agx-xavier-32", "agx-xavier-64"):
        assert PROFILES[name].engines == ("onnx",)
        assert PROFILES[name].precision == "fp32"
        assert "JetPack 5" in PROFILES[name].note


@pytest.mark.parametrize(
    ("name", "sparse_int8_tops"), [("orin-nano-4", 20), ("orin-nano-8", 40), ("orin-nano-8-super", 67)]
)
def test_throughput_of_orin_is_a_quarter_of_the_sparse_int8_rate_that_is_advertised(name, sparse_int8_tops):
    assert PROFILES[name].fp16_flops == pytest.approx(sparse_int8_tops * 1e12 / 4, rel=0.03)


@pytest.mark.parametrize(
    ("name", "memory_mhz", "bus_bits"),
    [("rtx-3060", 7501, 192), ("rtx-3090", 9751, 384), ("rtx-4090", 10501, 384), ("rtx-5090", 14001, 512)],
)
def test_bandwidth_is_twice_the_memory_clock_times_the_bus_width(name, memory_mhz, bus_bits):
    assert PROFILES[name].bandwidth == pytest.approx(2e6 * memory_mhz * bus_bits / 8, rel=0.002)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("rtx-2080-ti", 53.8),
        ("rtx-3080", 59.5),
        ("rtx-3090", 71),
        ("rtx-4090", 165.2),
        ("rtx-5090", 209.5),
        ("a100-80", 312),
        ("h100-80", 989.4),
        ("agx-thor", 517 / 2),
    ],
)
def test_throughput_is_what_nvidia_states_for_products_in_fp16_added_up_in_fp32(name, tflops):
    assert PROFILES[name].fp16_flops == pytest.approx(tflops * 1e12, rel=0.005)


@pytest.mark.parametrize(
    ("name", "cores", "bus_bits", "memory_mhz"),
    [
        ("rtx-4050-laptop", 2560, 96, 8001),
        ("rtx-4070-laptop", 4608, 128, 8001),
        ("rtx-4060-laptop", 3072, 128, 8001),
    ],
)
def test_laptops_have_the_cores_and_the_bus_that_nvidia_compares_them_by(name, cores, bus_bits, memory_mhz):
    profile = PROFILES[name]
    assert profile.bandwidth == pytest.approx(2e6 * memory_mhz * bus_bits / 8, rel=0.002)
    assert 1.4e9 < profile.fp16_flops / 512 / (cores / 128) < 2.5e9  # its clock


def test_a_device_of_which_only_the_memory_is_known_has_no_speed():
    known = [profile for profile in PROFILES.values() if profile.source == "memory"]
    assert len(known) == 23
    assert all(profile.bandwidth == 0 and profile.fp16_flops == 0 for profile in known)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_found_by_its_title_too(name):
    assert find_profile(PROFILES[name].title) is PROFILES[name]


@pytest.mark.parametrize(
    ("written", "name"),
    [(written, "rtx-4070") for written in ("rtx-4070", "RTX 4070", "rtx_4070", "  Rtx 4070 ", "rtx4070")]
    + [
        ("NVIDIA GeForce RTX 4070 12GB", "rtx-4070"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", "rtx-4070-laptop"),
        ("RTX 4070 SUPER", "rtx-4070-super"),
        ("Jetson Orin Nano 8GB", "orin-nano-8"),
        ("Jetson Orin Nano Super 8 GB", "orin-nano-8-super"),
        ("Jetson AGX Thor Developer Kit", "agx-thor"),
        ("RTX A2000 12GB", "rtx-a2000-12"),
    ],
)
def test_a_name_may_be_written_as_people_write_it(written, name):
    assert find_profile(written) is PROFILES[name]


@pytest.mark.parametrize(
    "written", ["RTX 3060 8GB", "Jetson Orin Nano Super Developer Kit", "3060", "RTX A2000"]
)
def test_another_memory_or_a_name_of_several_is_no_profile(written):
    with pytest.raises(DeviceError, match="Did you mean"):
        find_profile(written)


@pytest.mark.parametrize(
    ("name", "near"), [("orin-nano", "orin-nano-8"), ("rtx-407", "rtx-4070"), ("agx-orin", "agx-orin-64")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(DeviceError, match=f"no device profile named '{name}'.*{near}"):
        find_profile(name)


def test_a_name_like_no_other_is_answered_with_where_they_are():
    with pytest.raises(DeviceError, match="perfusion-devices list"):
        find_profile("")


def test_a_processors_speed_grows_with_its_cores_and_its_bandwidth_only_so_far():
    one, two, many = (processor_profile(cores=count, memory=8 * GIB) for count in (1, 2, 64))
    assert two.fp16_flops == 2 * one.fp16_flops
    assert many.bandwidth == 4 * one.bandwidth


def test_an_arm_machine_is_not_sent_to_tensorrt_for_rtx_which_has_no_wheels_for_it():
    assert find_profile("dgx-spark").engine == "trt"
    assert find_profile("agx-thor").engine == "trt"
    assert find_profile("rtx-5090").engine == "trt-rtx"
