"""Where TensorRT is missing, the way to get it fits the machine; what a GPU lacks is named."""

import ctypes
import sys
from types import SimpleNamespace

import pytest

from perfusion.errors import DeviceError
from perfusion.tensorrt import flavour
from perfusion.tensorrt.driver import Driver, query_driver
from perfusion.tensorrt.flavour import import_tensorrt
from perfusion.tensorrt.targets import TARGETS, check_precision, check_target, target_of


@pytest.fixture
def jetson(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3\n")
    return tmp_path


@pytest.fixture
def jetson_container(tmp_path):
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    (tmp_path / "proc" / "device-tree" / "compatible").write_bytes(b"nvidia,p3768\0nvidia,tegra234\0")
    return tmp_path


@pytest.fixture
def missing(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)


def refusal(kind, root, **options):
    with pytest.raises(DeviceError) as refused:
        import_tensorrt(kind, root, **options)
    return str(refused.value)


@pytest.mark.parametrize("machine", ["jetson", "jetson_container"])
def test_on_a_jetson_tensorrt_comes_with_jetpack(missing, machine, request):
    root = request.getfixturevalue(machine)
    assert "JetPack" in refusal("trt", root)
    assert "--system-site-packages" in refusal("trt", root)
    assert "does not run on Jetson: use the engine 'trt'" in refusal("trt-rtx", root)


def test_on_a_desktop_with_a_gpu_it_comes_from_pip(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(flavour, "driver_ready", lambda: True)
    assert refusal("trt", tmp_path).endswith("Install it with pip install tensorrt.")
    assert refusal("trt-rtx", tmp_path).endswith('Install it with pip install "perfusion-edge[trt-rtx]".')


def test_without_a_gpu_what_the_caller_advises_is_offered_in_the_place_of_a_package(
    missing, tmp_path, monkeypatch
):
    monkeypatch.setattr(flavour, "driver_ready", lambda: False)
    assert refusal("trt", tmp_path).endswith("only on the kind of GPU that will run it.")
    assert refusal("trt", tmp_path, advice=" Go home.").endswith("will run it. Go home.")
    assert "Install it with" in refusal("trt-rtx", tmp_path, advice=" Go home.")


def test_where_tensorrt_is_there_the_driver_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(flavour, "driver_ready", lambda: pytest.fail("asked"))
    import_tensorrt("trt", tmp_path)


def test_where_there_are_no_packages_it_says_where_there_are(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "for Linux and Windows" in refusal("trt-rtx", tmp_path)


def test_libraries_that_cannot_be_loaded_are_told_from_a_missing_package(missing, tmp_path, monkeypatch):
    def broken(name):
        raise ImportError("libnvinfer.so.10: cannot open shared object file\nmore")

    monkeypatch.setattr("importlib.import_module", broken)
    assert "tensorrt cannot be loaded (libnvinfer.so.10: cannot open shared object file)" in refusal(
        "trt", tmp_path
    )


@pytest.mark.parametrize(
    "version, taken", [("8.6.1", False), ("10.2.0", False), ("10.3.0", True), ("11.4.0", True)]
)
def test_releases_that_are_too_old_are_refused(monkeypatch, tmp_path, version, taken):
    module = SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    if taken:
        assert import_tensorrt("trt", tmp_path) is module
    else:
        assert f"TensorRT {version} is too old, expected 10.3 or newer" in refusal("trt", tmp_path)


# --- the driver


def fake_cuda(answers=(12060, 8, 7), failing=None):
    """libcuda's five calls; `failing` is the name of one that returns an error."""
    version, major, minor = answers

    def call(name, write=lambda *_: None):
        def called(*arguments):
            if name == failing:
                return 100
            write(*arguments)
            return 0

        return called

    def write(value):
        return lambda pointer, *_: ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int)).__setitem__(0, value)

    def attribute(pointer, which, _):
        write(major if which == 75 else minor)(pointer)

    return SimpleNamespace(
        cuInit=call("cuInit"),
        cuDriverGetVersion=call("cuDriverGetVersion", write(version)),
        cuDeviceGet=call("cuDeviceGet", write(0)),
        cuDeviceGetAttribute=call("cuDeviceGetAttribute", attribute),
    )


@pytest.fixture
def ask(monkeypatch):
    def asked(library):
        def load(_):
            if isinstance(library, Exception):
                raise library
            return library

        monkeypatch.setattr("ctypes.CDLL", load)
        query_driver.cache_clear()
        return query_driver()

    yield asked
    query_driver.cache_clear()


def test_a_working_driver_says_its_cuda_and_its_gpu(ask):
    found = ask(fake_cuda())
    assert found == Driver(cuda=(12, 6), compute_capability=(8, 7))
    assert found.target == "sm87"


@pytest.mark.parametrize("call", ["cuInit", "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetAttribute"])
def test_a_driver_that_fails_in_any_call_is_no_driver(ask, call):
    assert ask(fake_cuda(failing=call)) is None


def test_a_machine_without_a_driver_has_none(ask):
    assert ask(OSError("libcuda.so.1: cannot open shared object file")) is None


# --- targets


def test_several_targets_are_one_key_however_they_are_written():
    assert check_target("trt-rtx", "sm89,sm86") == check_target("trt-rtx", "SM86 , sm89+sm86") == "sm86+sm89"
    assert check_target("trt-rtx", "sm120,sm75") == "sm75+sm120"
    assert check_target("trt-rtx", "portable") == "portable"
    assert check_target("trt", target_of((8, 7))) == "sm87"


@pytest.mark.parametrize(
    "kind, target, message",
    [
        (
            "trt-rtx",
            "sm87",
            "does not run on sm87 .Jetson Orin.; it builds for sm75.*Use the engine 'trt'",
        ),
        ("trt-rtx", "sm99", "no target 'sm99', expected sm75.* or portable"),
        ("trt-rtx", "portable,sm86", "sm86, sm89, sm120 and cannot be for named GPUs as well"),
        ("trt", "portable", "no target 'portable', expected sm75"),
        ("trt", "sm86,sm89", "one kind of GPU, and sm86, sm89 were asked for"),
        ("trt", "", "no target ''"),
    ],
)
def test_targets_that_cannot_be_built_for_are_refused(kind, target, message):
    with pytest.raises(DeviceError, match=message):
        check_target(kind, target)


@pytest.mark.parametrize(
    "kind, target, precision, message",
    [
        ("trt-rtx", "sm86", "fp8", "sm86 .RTX 30.* has no fp8; it has fp32, fp16"),
        ("trt-rtx", "sm86+sm89", "fp8", "sm86"),
        ("trt", "sm87", "fp8", "Jetson Orin. has no fp8"),
        ("trt-rtx", "portable", "fp4", "A portable engine has no fp4"),
        ("trt-rtx", "sm75", "bf16", "has no bf16"),
        ("trt-rtx", "sm75", "fp32", "--precision fp16"),
    ],
)
def test_a_precision_that_a_target_lacks_is_refused_with_those_it_has(kind, target, precision, message):
    with pytest.raises(DeviceError, match=message):
        check_precision(kind, target, precision)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_computes_in_fp16(target):
    check_precision("trt", target, "fp16")


def test_the_device_profiles_and_the_targets_agree():
    from perfusion.devices import PROFILES

    for profile in PROFILES.values():
        if profile.compute_capability is None or not {"trt", "trt-rtx"} & set(profile.engines):
            continue
        target = TARGETS[target_of(profile.compute_capability)]
        known = {"fp32", "fp16", "int8", "bf16", "fp8", "fp4"}
        assert set(profile.precisions) & known == set(target.precisions), profile.name
        assert ("trt-rtx" in profile.engines) <= target.rtx, profile.name
