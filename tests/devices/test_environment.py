"""What a Python is found to have installed."""

import pytest

from perfusion.devices import environment as environments


def install(folder, name, version):
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_of_two_versions_on_the_path_the_one_that_is_imported_counts(tmp_path, monkeypatch):
    for folder, version in (("system", "8.6.2"), ("environment", "10.3.0")):
        install(tmp_path / folder, "tensorrt", version)
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    assert environments.read_environment().packages["tensorrt"] == "10.3.0"


def test_packages_are_named_in_one_way_and_others_are_left_out(tmp_path, monkeypatch):
    install(tmp_path, "TensorRT_RTX.cu13_libs", "1.7.1")
    install(tmp_path, "left_pad", "1.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = environments.read_environment().packages
    assert packages["tensorrt-rtx-cu13-libs"] == "1.7.1"
    assert "left-pad" not in packages


def test_this_python_has_onnxruntime_in_working_order():
    found = environments.read_environment()
    assert "CPUExecutionProvider" in found.providers
    assert "onnxruntime" in found.modules
    assert found.problem == ""


@pytest.mark.parametrize(
    ("packages", "flavour", "version"),
    [
        ({"tensorrt": "10.3.0"}, "trt", "10.3.0"),
        ({"tensorrt": "10.3.0.post1"}, "trt", "10.3.0"),
        ({"tensorrt-cu12-bindings": "10.13.3.9", "tensorrt-cu12-libs": "10.0"}, "trt", "10.13.3.9"),
        ({"tensorrt-rtx-cu13-bindings": "1.7.1.116"}, "trt-rtx", "1.7.1.116"),
        ({"tensorrt-rtx": "1.7.1.116"}, "trt-rtx", "1.7.1.116"),
        ({"tensorrt-rtx-cu13-bindings": "1.7.1.116"}, "trt", None),
        ({"tensorrt": "10.3.0"}, "trt-rtx", None),
        ({"tensorrt-llm": "0.20"}, "trt", None),
    ],
)
def test_the_release_of_each_tensorrt_is_told_by_its_package(environment, packages, flavour, version):
    assert environment(packages=packages).tensorrt_version(flavour) == version


@pytest.mark.parametrize(
    ("config", "sees"),
    [
        ("home = /usr/bin\ninclude-system-site-packages = true\n", True),
        ("include-system-site-packages = false\n", False),
        ("home = /usr/bin\n", False),
        (None, True),
    ],
)
def test_whether_a_virtual_environment_sees_the_systems_packages(tmp_path, config, sees):
    path = tmp_path / "pyvenv.cfg"
    if config is not None:
        path.write_text(config)
    assert environments._sees_system(path) is sees
