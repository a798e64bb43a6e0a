"""OpenVINO as a provider: pictures as onnxruntime draws them, and sentences where it cannot."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfusion.bundle.facts import graph_facts
from perfusion.bundle.reader import read_bundle
from perfusion.embedded import model_path
from perfusion.errors import DeviceError, RequestError
from perfusion.runtime import Region, Runtime
from perfusion.runtime.compute.backend import make_backend
from perfusion.runtime.compute.compiled_models import CompiledModels
from perfusion.runtime.compute.openvino_backend import OpenVINOBackend
from perfusion.runtime.compute.openvino_device import OpenVINODevice
from perfusion.runtime.picture_settings import settings_of

ROOT = Path(__file__).parents[3]
PROMPT = "a photo of a cat"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def openvino(monkeypatch, cache):
    monkeypatch.setenv("PERFUSION_CACHE", str(cache))
    return pytest.importorskip("openvino", reason="OpenVINO is not installed")


@pytest.fixture
def compiled(openvino, caplog, tmp_path, monkeypatch):
    """In a cache of its own the names of the graphs that were compiled since it was last called."""
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "perfusion.waits")

    def names():
        messages = [record.getMessage() for record in caplog.records if record.name == "perfusion.waits"]
        caplog.clear()
        return [message.split()[1] for message in messages if message.startswith("compiled ")]

    return names


def draw(folder, concepts=(), **options):
    with Runtime(folder, **{"provider": "openvino", "threads": 1, **options}) as runtime:
        for concept in concepts:
            runtime.load_concept(concept)
        words = " ".join(concept.token for concept in concepts)
        return np.asarray(runtime.generate(f"{PROMPT} {words}", num_inference_steps=2, seed=1, regions=None))


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


SEVERAL: tuple[dict[str, Any], ...] = (
    {"prompt": "a <thing0> and a <thing1> on grass"},  # bands
    {
        "prompt": "a <thing0> and a {tree}",
        "regions": [Region("tree", box=(0.5, 0.0, 1.0, 0.5))],
        "whole": 0.3,
    },
    {"prompt": "a <thing0>, a <thing1> and a <thing2>", "regions": None},
    {"prompt": "a <thing0>", "width": 48, "height": 24, "guidance_scale": 1.0},
    {"prompt": "a <thing1> " + "very " * 90 + "far away", "lock": "global"},
    {"prompt": "a <thing2>", "image": Image.linear_gradient("L").convert("RGB").resize((32, 32))},
)


def test_regions_sizes_long_prompts_and_pictures_to_start_from_agree_too(openvino, toy_bundle, make_concept):
    pictures: dict[str, list[np.ndarray]] = {}
    for provider in ("cpu", "openvino"):
        with Runtime(toy_bundle, provider=provider, threads=1) as runtime:
            for seed in range(3):
                runtime.load_concept(make_concept(seed, token=f"<thing{seed}>", rows=1 + seed % 2))
            images = [runtime.generate(**request, num_inference_steps=3, seed=1) for request in SEVERAL]
            pictures[provider] = [np.asarray(image) for image in images]
    for picture, reference in zip(pictures["openvino"], pictures["cpu"], strict=True):
        assert decibels(picture, reference) >= 60


def test_a_device_that_openvino_does_not_see_is_named_with_those_it_sees(openvino, bundle):
    with pytest.raises(DeviceError, match=r"device XPU was asked for, and it sees .*CPU"):
        make_backend(bundle, "openvino:XPU")


@pytest.mark.parametrize("provider", ["openvino:", "cpu:0", "cuda:GPU"])
def test_only_openvino_has_devices_of_its_own(bundle, provider):
    with pytest.raises(RequestError, match="expected one of auto, cpu"):
        make_backend(bundle, provider)


def test_a_precision_without_instructions_is_refused_with_those_there_are(openvino, toy_bundle, monkeypatch):
    monkeypatch.setattr(openvino.Core, "get_property", _with_capabilities("FP32", "INT8"))
    with pytest.raises(
        DeviceError, match=r"precision bf16 .* device CPU \(.+\) has no instructions .* in fp32"
    ):
        Runtime(toy_bundle, provider="openvino", precision="bf16")


@pytest.mark.parametrize("precision, hint", [("fp32", "f32"), ("bf16", "bf16"), ("fp16", "f16")])
def test_the_precision_reaches_openvino_and_the_pictures_settings(
    openvino, toy_bundle, monkeypatch, precision, hint
):
    monkeypatch.setattr(openvino.Core, "get_property", _with_capabilities("FP32", "BF16", "FP16"))
    with Runtime(toy_bundle, provider="openvino", precision=precision, memory="low") as runtime:
        assert runtime.precision == precision
        backend: Any = runtime._graphs._backend
        assert backend._device.facts["options"]["INFERENCE_PRECISION_HINT"] == hint
        settings = settings_of(runtime, "a cat")
    assert settings["precision"] == precision
    assert settings["provider_version"] == openvino.__version__


def test_a_shorter_precision_is_computed_in_where_there_are_instructions(openvino, toy_bundle):
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in ("bf16", "fp16"):
        if precision.upper() not in capabilities:
            continue
        pictures = []
        for chosen in ("fp32", precision):
            with Runtime(toy_bundle, provider="openvino", precision=chosen, threads=1) as runtime:
                pictures.append(np.asarray(runtime.generate(PROMPT, num_inference_steps=3, seed=1)))
        assert 20 < decibels(*pictures) < 100  # near, and not the same


def test_auto_leaves_it_to_those_who_ask_for_it(openvino, toy_bundle):
    """In float32 it gained 3 to 7 % in the records, for 2.8 times the memory."""
    with Runtime(toy_bundle, provider="auto", threads=1) as runtime:
        assert runtime.provider == "cpu"
        assert "used where it is asked for" in runtime.provider_reason
        assert runtime.precision is None


def test_auto_says_that_it_is_not_installed(toy_bundle, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with Runtime(toy_bundle, threads=1) as runtime:
        assert runtime.provider == "cpu"
        assert "OpenVINO is not installed" in runtime.provider_reason


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_only_openvino_computes_in_a_precision_of_ones_choice(toy_bundle, provider):
    with pytest.raises(RequestError, match=r"precision bf16 .* Use the provider 'openvino'"):
        Runtime(toy_bundle, provider=provider, precision="bf16")
    with pytest.raises(RequestError, match="'fp12', expected one of fp32, bf16, fp16"):
        Runtime(toy_bundle, provider=provider, precision="fp12")


def test_a_picture_on_the_processor_names_no_precision_but_its_graphs(toy_bundle):
    with Runtime(toy_bundle, provider="cpu", threads=1) as runtime:
        assert settings_of(runtime, "a cat")["precision"] is None


def test_without_openvino_the_extra_is_named(monkeypatch, bundle):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"perfusion-edge\[openvino\]"):
        make_backend(bundle, "openvino")


def test_a_second_start_compiles_nothing_and_draws_the_same_bits(bundle_copy, compiled):
    first = draw(bundle_copy)
    assert compiled() == ["text_encoder.onnx", "unet.onnx", "vae_decoder.onnx"]
    np.testing.assert_array_equal(draw(bundle_copy), first)
    assert compiled() == []


def test_one_to_four_rows_of_concepts_share_what_was_compiled(bundle_copy, make_concept, compiled):
    concepts = [make_concept(seed, token=f"<thing{seed}>") for seed in range(5)]
    draw(bundle_copy)
    compiled()
    for count in (1, 4):
        draw(bundle_copy, concepts[:count])
        assert compiled() == []
    draw(bundle_copy, concepts)
    assert compiled() == ["text_encoder.onnx", "unet.onnx"]


def test_pictures_of_any_number_share_what_was_compiled(bundle_copy, compiled):
    with Runtime(bundle_copy, provider="openvino", threads=1, batch_size=8) as runtime:
        alone = [runtime.generate(PROMPT, seed=seed, num_inference_steps=1) for seed in range(3)]
        runtime.generate(PROMPT, count=2, num_inference_steps=1)
        assert compiled().count("unet.onnx") == 2  # two rows and four
        three = runtime.generate(PROMPT, count=3, num_inference_steps=1)
        assert "unet.onnx" not in compiled()
    assert min(decibels(picture, other) for picture, other in zip(three, alone, strict=True)) >= 60


def test_of_a_large_graph_two_rows_are_computed_at_once(bundle_copy, compiled, monkeypatch):
    monkeypatch.setattr("perfusion.runtime.compute.openvino_graph._HEAVY", 1)
    with Runtime(bundle_copy, provider="openvino", threads=1, batch_size=8) as runtime:
        runtime.generate(PROMPT, count=3, num_inference_steps=1)
    assert compiled() == ["text_encoder.onnx", "unet.onnx", "vae_decoder.onnx"]


def test_a_changed_bundle_is_not_served_from_what_was_compiled(bundle_copy, compiled):
    """The same names, sizes and shapes, and other weights; the oracle is the other provider."""
    first = draw(bundle_copy)
    path = bundle_copy / "unet.onnx"
    data, stat = bytearray(path.read_bytes()), path.stat()
    middle = len(data) // 2
    data[middle : middle + 200 : 2] = bytes(100)  # of float16 weights the lower half
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    compiled()
    changed = draw(bundle_copy, verify=False)
    assert compiled() == ["unet.onnx"]
    assert decibels(changed, draw(bundle_copy, verify=False, provider="cpu")) >= 60
    assert not np.array_equal(changed, first)


@pytest.mark.parametrize("free, ready", [(1 << 40, 2), (1 << 10, 1), (None, 2)])
def test_where_memory_is_short_one_size_stays_ready(bundle_copy, compiled, monkeypatch, free, ready):
    monkeypatch.setattr("perfusion.runtime.compute.openvino_graph.free_memory", lambda: free)
    graph = OpenVINOBackend(read_bundle(bundle_copy), threads=1).open("text_encoder")
    for rows in (1, 2, 1):
        ids, embeddings = np.zeros((rows, 77), np.int64), np.zeros((1, 16), np.float32)
        graph.run(input_ids=ids, concept_embeddings=embeddings)
    assert len(graph._requests) == ready


PICTURE = """
import hashlib, logging, sys
from perfusion.runtime import Runtime
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
runtime = Runtime(sys.argv[1], provider="openvino", threads=1)
print(hashlib.sha256(runtime.generate("a cat", num_inference_steps=1).tobytes()).hexdigest())
"""


def test_two_processes_at_once_compile_each_graph_once_between_them(
    openvino, toy_bundle, monkeypatch, tmp_path
):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    command = [sys.executable, "-c", PICTURE, str(toy_bundle)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    done = [line.split()[1] for lines in outputs for line in lines if line.startswith("compiled ")]
    assert sorted(done) == ["text_encoder.onnx", "unet.onnx", "vae_decoder.onnx"]
    assert [path.suffix for path in (tmp_path / "openvino").iterdir()] == [".compiled"] * 3


def _with_capabilities(*names):
    """OpenVINO's answers, but for what a device computes in."""
    import openvino

    answer = openvino.Core.get_property
    return lambda core, device, name: (
        list(names) if name == "OPTIMIZATION_CAPABILITIES" else answer(core, device, name)
    )


TEXT = {"input_ids": (1, 77), "concept_embeddings": (4, 16)}


def compiles(folder, **options):
    """Whether the text encoder, the smallest graph, has to be compiled."""
    backend = OpenVINOBackend(read_bundle(folder), **options)
    return backend.open("text_encoder").prepare(TEXT)


def test_a_graphs_files_decide_what_is_compiled(compiled, bundle_copy):
    assert compiles(bundle_copy)
    assert not compiles(bundle_copy)
    os.utime(bundle_copy / "text_encoder.onnx", (1, 1))  # another file, if nobody compared its checksum
    assert compiles(bundle_copy)


def test_weights_that_lie_elsewhere_decide_too(compiled, tmp_path):
    """The embedded model's graphs read the weights that diffusers reads, one folder up."""
    model = shutil.copytree(model_path(), tmp_path / "model")
    bundle = read_bundle(model)
    weights = {model / name for facts in graph_facts(bundle).values() for name in facts.needs}
    (path,) = (path for path in weights if path.parent.name == "text_encoder")
    backend = OpenVINOBackend(bundle, threads=1)
    key = backend.open("text_encoder")._identity
    os.utime(path, (1, 1))
    assert backend.open("text_encoder")._identity != key


@pytest.mark.parametrize("what", ["threads", "release", "processor", "cores"])
def test_the_machine_decides_what_is_compiled(compiled, openvino, bundle_copy, monkeypatch, what):
    assert compiles(bundle_copy, threads=1)
    if what == "release":
        monkeypatch.setattr(openvino, "get_version", lambda: "2031.1")
    if what == "processor":
        monkeypatch.setattr("perfusion.devices.system.cpu_flags", lambda root: ("sse2",))
    if what == "cores":
        monkeypatch.setattr("perfusion.devices.system.cores", lambda root: 99)
    assert compiles(bundle_copy, threads=2 if what == "threads" else 1)


@pytest.mark.parametrize("damage", ["a byte", "all of it"])
def test_what_was_damaged_is_compiled_again(compiled, bundle_copy, monkeypatch, damage):
    if damage == "all of it":  # with a checksum that fits, so that OpenVINO itself has to refuse
        with monkeypatch.context() as change:
            change.setattr(OpenVINODevice, "serialised", lambda *_: b"nonsense" * 9)
            compiles(bundle_copy)
    else:
        compiles(bundle_copy)
        (path,) = CompiledModels().folder.iterdir()
        blob = bytearray(path.read_bytes())
        blob[len(blob) // 2] ^= 1
        path.write_bytes(blob)
    assert compiles(bundle_copy)
    assert not compiles(bundle_copy)


def test_a_cache_that_cannot_be_written_only_costs_time(compiled, bundle_copy, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "file"))
    assert compiles(bundle_copy)
    assert compiles(bundle_copy)
