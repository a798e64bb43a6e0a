"""Broken bundles, concept files and picture cards: a sentence or a working runtime, never anything else.

Each mutation is made from its number alone, so a finding can be repeated: `fuzz(kind, [number])`. The work is done in
other processes with little memory: one that dies or asks for terabytes is found, and takes no test with it.
"""

import copy
import dataclasses
import importlib.util
import io
import json
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfusion import Concept
from perfusion.concept.card import embed
from perfusion.errors import BundleError, PerfusionError
from perfusion.runtime import Runtime, read_bundle
from perfusion.runtime.compute.onnx_graph import OnnxGraph

ROOT = Path(__file__).parents[2]
TOY_BUNDLE = ROOT / "tests" / "data" / "toy_bundle"
KINDS = ("manifest", "manifest bytes", "file table", "tokenizer", "concept", "concept bytes", "card", "graph")
MEMORY = 3 << 30  # bytes of address space beyond which nothing here has business
EVIL: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**53, 2**64, -(2**63), 1e308, -1e308, 5e-324, 0.5, float("nan"),
    float("inf"), "", " ", "\x00", "a" * 5000, "🎨", "\ud800", "ddim", "lcm", "..", ".", "/", "/etc/passwd",
    "../../../etc/passwd",
    "unet.onnx/../../x", "C:\\x", "con", "//host/x", "unet.onnx", "bundle.json", "tokenizer.json", [], {}, [[]], [{}],
    [None], {"": 0}, [0] * 1000,
)  # fmt: skip


def places(value, where=()):
    """The paths to everything inside a JSON value."""
    yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*where, key))


def mutate(value, rng, below=()):
    """A JSON value with one to three places replaced, removed, doubled or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = [where for where in places(value) if where[: len(below)] == below and len(where) > len(below)]
        if not found:
            break
        *above, last = rng.choice(found)
        holder = value
        for key in above:
            holder = holder[key]
        action = rng.choice(("replace", "replace", "replace", "remove", "double", "rename", "nudge"))
        if action == "remove":
            del holder[last]
        elif action == "double" and isinstance(holder, list):
            holder.insert(last, holder[last])
        elif action == "rename" and isinstance(holder, dict):
            name = rng.choice([one for one in EVIL if isinstance(one, str)])
            holder[name] = holder.pop(last)
        elif action == "nudge" and isinstance(holder[last], int | float):
            holder[last] = rng.choice(
                (holder[last] + 1, holder[last] - 1, -holder[last], holder[last] * 1000)
            )
        else:
            holder[last] = copy.deepcopy(rng.choice(EVIL))
    return value


def flip(data, rng):
    """Bytes changed, cut, doubled or put in."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 400))
        action = rng.randrange(5)
        if action < 2:
            data[at] = rng.randrange(256)
        elif action == 2:
            del data[at : at + rng.choice((1, 4, 100))]
        elif action == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
        else:
            data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, 2**64 - 1)))
        if not data:
            data = bytearray(b"\x00")
    return bytes(data)


class Ground:
    """A bundle to be broken, and a concept that fits it."""

    def __init__(self, folder):
        self.folder = folder / "bundle"
        shutil.copytree(TOY_BUNDLE, self.folder)
        self.manifest = json.loads((self.folder / "bundle.json").read_bytes())
        self.originals = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.runtime = Runtime(self.folder, provider="cpu", threads=1)
        bundle, rng = self.runtime.bundle, np.random.default_rng(0)
        direction = rng.standard_normal((1, bundle.text_dim)).astype(np.float32)
        concept = Concept(
            token="<cat>", superclass="cat", base=bundle.base, base_fingerprint=bundle.base_fingerprint,
            direction=direction, dual=direction / (direction**2).sum(), energy=np.ones(1, np.float32),
            superclass_encoding=direction, embeddings=(direction,),
            target_values=rng.standard_normal((1, bundle.unet.value_width)).astype(np.float32),
            target_keys=rng.standard_normal((1, bundle.unet.key_width)).astype(np.float32),
        )  # fmt: skip
        self.concept = folder / "cat.safetensors"
        concept.save(self.concept)
        self.concept_bytes = self.concept.read_bytes()
        picture = io.BytesIO()
        Image.new("RGB", (4, 4)).save(picture, "PNG")
        card = folder / "plain.png"
        card.write_bytes(picture.getvalue())
        self.card = embed(card, self.concept_bytes)

    def restore(self):
        for name, data in self.originals.items():
            (self.folder / name).write_bytes(data)

    def draw(self, runtime):
        runtime.generate("a cat", width=32, height=32, num_inference_steps=1, guidance_scale=1)


def try_bundle(ground, draws):
    """Read a broken bundle, and draw with it where it can be read."""
    bundle = read_bundle(ground.folder, verify=False)
    root = ground.folder.resolve()
    named = [value for value in walk(bundle) if isinstance(value, Path)]
    assert len(named) > 4
    for path in named:
        assert path.resolve().is_relative_to(root), f"{path} lies outside"
    if draws:
        with Runtime(ground.folder, provider="cpu", threads=1, verify=False) as runtime:
            ground.draw(runtime)


def walk(value):
    """Everything inside dataclasses, tuples and mappings."""
    yield value
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from walk(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from walk(one)


def one(ground, kind, number):
    """One mutation; anything but a PerfusionError or success goes up."""
    rng = random.Random(f"{kind}-{number}")
    draws = number % 8 == 0
    if kind in ("manifest", "file table"):
        broken = mutate(ground.manifest, rng, ("files",) if kind == "file table" else ())
        (ground.folder / "bundle.json").write_text(json.dumps(broken))
        try_bundle(ground, draws)
    elif kind == "manifest bytes":
        (ground.folder / "bundle.json").write_bytes(flip(ground.originals["bundle.json"], rng))
        try_bundle(ground, draws)
    elif kind in ("tokenizer", "graph"):
        name = (
            "tokenizer.json" if kind == "tokenizer" else rng.choice(("vae_decoder.onnx", "text_encoder.onnx"))
        )
        data = ground.originals[name]
        broken = (
            json.dumps(mutate(json.loads(data), rng)).encode()
            if kind == "tokenizer" and rng.random() < 0.7
            else flip(data, rng)
        )
        (ground.folder / name).write_bytes(broken)
        manifest = json.loads(json.dumps(ground.manifest))
        manifest["files"][name]["bytes"] = len(broken)
        (ground.folder / "bundle.json").write_text(json.dumps(manifest))
        try_bundle(ground, draws=True)
    else:
        broken = flip(ground.card, rng) if kind == "card" else broken_concept(ground.concept_bytes, kind, rng)
        ground.concept.write_bytes(broken)
        concept = ground.runtime.load_concept(ground.concept)
        try:
            if draws:
                ground.runtime.generate(
                    f"a {concept.token}", width=32, height=32, num_inference_steps=1, guidance_scale=1
                )
        finally:
            ground.runtime.unload_concept(concept.token)


def broken_concept(data, kind, rng):
    """A concept file with bytes or with facts of its header changed."""
    if kind == "concept bytes":
        return flip(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(mutate(json.loads(data[8 : 8 + length]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def fuzz(kind, numbers):
    """Make each mutation; gives those that ended in anything but a sentence, and how many were taken."""
    findings, taken = [], 0
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        for number in numbers:
            try:
                one(ground, kind, number)
                taken += 1
            except PerfusionError as error:
                if not 20 <= len(str(error)) <= 2000 or "\n" in str(error):
                    findings.append([number, f"no sentence: {str(error)[:300]}"])
            except Exception as error:
                findings.append([number, f"{type(error).__name__}: {str(error)[:200]}"])
            if kind not in ("concept", "concept bytes", "card"):
                ground.restore()
    return findings, taken


WORKER = """
import importlib.util, json, sys
import resource
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[5]),) * 2)
spec = importlib.util.spec_from_file_location("test_fuzz", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(module.fuzz(sys.argv[2], range(int(sys.argv[3]), int(sys.argv[4])))))
"""


def fuzz_elsewhere(kind, first, last):
    """`fuzz` in another process, whose death is a finding."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER, __file__, kind, str(first), str(last), str(MEMORY)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{kind} {first} to {last} ended with {done.returncode}: {done.stderr[-2000:]}"
    )
    return json.loads(done.stdout.splitlines()[-1])


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("resource") is None, reason="no limits on memory here"
)


@pytest.mark.parametrize("kind", KINDS)
def test_some_mutations_of_each_kind_end_in_a_sentence_or_work(kind):
    findings, taken = fuzz_elsewhere(kind, 0, 24 if kind in ("graph", "tokenizer") else 100)
    assert not findings
    assert taken < (22 if kind in ("graph", "tokenizer") else 90), (
        "most mutations must be noticed, or they are none"
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_mutations_end_in_a_sentence_or_work(kind, part):
    findings, _ = fuzz_elsewhere(kind, 1000 + 300 * part, 1300 + 300 * part)
    assert not findings


def test_weights_outside_the_bundles_folder_are_not_read(tmp_path):
    """An ONNX graph may name other files; one that leads out of its folder is refused by onnxruntime."""
    onnx = pytest.importorskip("onnx")
    secret = np.arange(4, dtype=np.float32)
    (tmp_path / "secret.bin").write_bytes(secret.tobytes())
    (tmp_path / "bundle").mkdir()
    for location in ("../secret.bin", str(tmp_path / "secret.bin")):
        tensor = onnx.numpy_helper.from_array(secret, "w")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
        ends = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in ("sample", "out_sample")]
        node = onnx.helper.make_node("Add", ["sample", "w"], ["out_sample"])
        graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [tensor])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        path = tmp_path / "bundle" / "unet.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(BundleError, match="could not be opened"):
            OnnxGraph(path, ["sample"], "out_sample", "cpu")
