"""OpenVINO as a provider: pictures as onnxruntime draws them, and sentences where it cannot."""

import sys

import numpy as np
import pytest

from perfusion.errors import DeviceError, RequestError
from perfusion.runtime import Runtime
from perfusion.runtime.compute.backend import make_backend

PROMPT = "a photo of a cat"


@pytest.fixture
def openvino():
    return pytest.importorskip("openvino", reason="OpenVINO is not installed")


def decibels(picture, reference):
    difference = np.asarray(picture, np.float64) - np.asarray(reference, np.float64)
    return 10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-12))


@pytest.mark.parametrize("concepts", [0, 1, 2])
def test_a_picture_is_that_of_onnxruntime(openvino, toy_bundle, make_concept, concepts):
    pictures = []
    for provider in ("cpu", "openvino"):
        with Runtime(toy_bundle, provider=provider, threads=1) as runtime:
            assert runtime.provider == provider
            for seed in range(concepts):
                runtime.load_concept(make_concept(seed, token=f"<thing{seed}>"))
            words = " ".join(f"<thing{seed}>" for seed in range(concepts))
            pictures.append(runtime.generate(f"{PROMPT} {words}", num_inference_steps=3, seed=1))
    assert decibels(pictures[1], pictures[0]) >= 60


def test_a_device_that_openvino_does_not_see_is_named_with_those_it_sees(openvino, bundle):
    with pytest.raises(DeviceError, match=r"device XPU was asked for, and it sees .*CPU"):
        make_backend(bundle, "openvino:XPU")


@pytest.mark.parametrize("provider", ["openvino:", "cpu:0", "cuda:GPU"])
def test_only_openvino_has_devices_of_its_own(bundle, provider):
    with pytest.raises(RequestError, match="expected one of auto, cpu"):
        make_backend(bundle, provider)


def test_without_openvino_the_extra_is_named(monkeypatch, bundle):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"perfusion-edge\[openvino\]"):
        make_backend(bundle, "openvino")
