"""Nothing that is computed depends on what the memory held before, on any release of onnxruntime that is allowed.

Old releases leave some outputs as they found them: up to 1.19 a matrix product over an axis of no length. Mostly the
memory is zero, and then the picture is right. Here every block that is handed out is filled with ones: NaN.
"""

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from perfusion.bundle.reader import read_bundle
from perfusion.devices.graph_reader.onnx_file import read_graph
from perfusion.devices.graph_reader.shapes import trace
from perfusion.embedded import bundle_path
from perfusion.runtime import MockBackend, Runtime
from perfusion.runtime.compute.backend import make_backend
from tests.rooms import ROOT

REQUESTS = [
    {"prompt": "a cat", "negative_prompt": "a dog", "guidance_scale": 2.5},
    {"prompt": "a cat", "guidance_scale": 1.0},
    {"prompt": ["a <gold-hat>", "a cat"], "guidance_scale": 2.5},
    {"prompt": " ".join(["a cat"] * 60), "guidance_scale": 1.0},
    {"prompt": "a cat", "image": "grey", "image_strength": 0.5},
]
DRAW = f"""
import ctypes, hashlib, sys
import numpy as np
M_MMAP_MAX, M_PERTURB = -4, -6
heap = ctypes.CDLL(None)
assert heap.mallopt(M_MMAP_MAX, 0)  # else large blocks come from the system, which zeroes them
assert heap.mallopt(M_PERTURB, 256 + (int(sys.argv[1]) ^ 255))  # its complement fills what is handed out
assert set(np.empty(1 << 22, np.uint8)) == {{int(sys.argv[1])}}

import onnxruntime
class Options(onnxruntime.SessionOptions):
    def __init__(self):
        super().__init__()
        self.enable_cpu_mem_arena = False  # which hands out what an earlier operator wrote
onnxruntime.SessionOptions = Options

from PIL import Image
from perfusion.runtime import Runtime
runtime = Runtime(provider="cpu", threads=1)
runtime.load_concept("gold-hat")
for request in {REQUESTS!r}:
    if "image" in request:
        request["image"] = Image.new("RGB", (128, 128), "grey")
    pictures = runtime.generate(**request, num_inference_steps=2, seed=1)
    for picture in pictures if isinstance(pictures, list) else [pictures]:
        print(hashlib.sha256(picture.tobytes()).hexdigest())
"""


def drawn_on(fill):
    """What the requests' pictures are where all memory is handed out with bytes of `fill`."""
    ended = subprocess.run(
        [sys.executable, "-c", DRAW, str(fill)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.skipif(
    not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")),
    reason="only glibc fills its blocks",
)
def test_pictures_do_not_depend_on_what_the_memory_held():
    pictures = drawn_on(0)
    assert len(set(pictures)) == len(REQUESTS) + 1
    assert drawn_on(255) == pictures


COPIES = {"Concat", "Shape", "Size", "ConstantOfShape"}
"""Operators that do not compute with the numbers of what they are given."""


def over_nothing(path, feeds):
    """The operators of a graph that make something of an input with an axis of no length, with the inputs' shapes."""
    graph = read_graph(path)
    sizes = {
        name: size
        for entry in graph.inputs
        for name, size in zip(entry.dims, feeds[entry.name].shape, strict=True)
        if isinstance(name, str)
    }
    shapes = trace(graph, sizes).shapes
    for node in graph.nodes:
        inputs = [shapes[name] for name in node.inputs if name]
        outputs = [shapes[name] for name in node.outputs if name in shapes]
        if any(0 in shape for shape in inputs) and not all(0 in shape for shape in outputs):
            yield node.op, inputs


@pytest.mark.parametrize("name", ["toy", "embedded"])
def test_no_operator_computes_over_an_axis_without_length(toy_bundle, name):
    folder = toy_bundle if name == "toy" else bundle_path()
    calls = []

    def answer(call):
        calls.append((call.graph, call.feeds))
        return call.compute()

    backend = MockBackend(answer, behind=make_backend(read_bundle(folder), "cpu"))
    runtime = Runtime(folder, provider=backend)
    for guidance in (1.0, 2.5):
        runtime.generate("a cat", num_inference_steps=1, guidance_scale=guidance)
    assert {graph for graph, _ in calls} == {"text_encoder", "unet", "vae_decoder"}
    for graph, feeds in calls:
        operators = {operator for operator, _ in over_nothing(folder / f"{graph}.onnx", feeds)}
        assert operators <= COPIES, (graph, {key: value.shape for key, value in feeds.items()})


def test_the_search_for_such_operators_sees_them(toy_bundle):
    feeds = {
        "sample": np.zeros((1, 4, 8, 8)), "timestep": np.zeros(1), "regions": np.ones((1, 1, 8, 8)),
        "encoder_hidden_states": np.zeros((1, 77, 16)), "key_hidden_states": np.zeros((1, 77, 16)),
        "key_gate": np.zeros((1, 77, 0)), "value_gate": np.zeros((1, 77, 0)),
        "concept_keys": np.zeros((0, 16)), "concept_values": np.zeros((0, 16)),
    }  # fmt: skip
    assert "MatMul" in {operator for operator, _ in over_nothing(toy_bundle / "unet.onnx", feeds)}
