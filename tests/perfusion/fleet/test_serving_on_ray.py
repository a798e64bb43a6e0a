"""Real Ray Serve on this machine: replicas die, and the bundle changes, under load. Slow, and only where Ray is."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from perfusion.files import sha256_of
from perfusion.fleet.cluster import cluster
from perfusion.fleet.replica import BUNDLE_HEADER, ReplicaSpec, bundle_hash
from perfusion.fleet.serve_deployment import FleetScale, deploy, start_listening
from perfusion.runtime import Runtime
from tests.conftest import TOY_BUNDLE

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray warns of itself

PORT, CLIENTS, SEEDS = 8391, 16, 4
TITLE = b"ray::ServeReplica:perfusion:Replica"


@pytest.fixture(scope="module")
def shop(bundle, make_concept, tmp_path_factory):
    """A library of a concept for each client."""
    folder = tmp_path_factory.mktemp("shop")
    for number in range(CLIENTS):
        concept = make_concept(
            text_dim=bundle.text_dim, width=bundle.unet.key_width, base=bundle.base,
            base_fingerprint=bundle.base_fingerprint, seed=number,
        )  # fmt: skip
        concept.save(folder / f"c{number}.safetensors")
    return folder


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory):
    """A bundle of the same base whose pictures are others."""
    import onnx
    from onnx import numpy_helper

    folder = Path(shutil.copytree(TOY_BUNDLE, tmp_path_factory.mktemp("other") / "bundle"))
    path = folder / "vae_decoder.onnx"
    model = onnx.load(path)
    weights = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims, initial=1))
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    onnx.save(model, path)
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    return folder


def spec_of(folder, shop):
    return ReplicaSpec(
        bundle=str(folder), bundle_hash=bundle_hash(str(folder)), library=str(shop), provider="cpu", threads=1,
        batch_size=4,
    )  # fmt: skip


SCALE = FleetScale(least=2, most=2, grace=20.0)


@pytest.fixture(scope="module")
def serve(shop):
    with cluster(None, cpus=2):
        from ray import serve

        start_listening(serve, "127.0.0.1", PORT)
        deploy(serve, spec_of(TOY_BUNDLE, shop), SCALE)
        yield serve
        serve.shutdown()


@pytest.fixture(scope="module")
def expected(shop):
    """The pictures of a bundle, by concept and seed, drawn alone."""

    def expected(folder):
        with Runtime(folder, provider="cpu", threads=1) as runtime:
            for number in range(CLIENTS):
                runtime.load_concept(shop / f"c{number}.safetensors", token=f"<c{number}>")
            return {
                (number, seed): np.asarray(
                    runtime.generate(f"a <c{number}> here", seed=seed, num_inference_steps=6)
                )
                for number in range(CLIENTS)
                for seed in range(SEEDS)
            }

    return expected


class Load:
    """Clients that ask until they are told to stop; every answer is kept."""

    def __init__(self, *, exact):
        self.answers: list[tuple[int, int, httpx.Response]] = []
        self.errors: list[Exception] = []
        self._exact, self._ended = exact, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more, seconds=120):
        """Until so many more answers are there."""
        goal, ends = len(self.answers) + more, time.monotonic() + seconds
        while len(self.answers) < goal and not self.errors and time.monotonic() < ends:
            time.sleep(0.05)
        assert len(self.answers) >= goal, self.errors

    def _ask(self, number):
        seed = 0
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120) as client:
            while not self._ended.is_set():
                fields = {
                    "prompt": f"a <c{number}> here", "seed": seed % SEEDS, "num_inference_steps": 6,
                    "exact": self._exact,
                }  # fmt: skip
                try:
                    self.answers.append(
                        (number, seed % SEEDS, client.post("/v1/images/generations", json=fields))
                    )
                except Exception as error:
                    self.errors.append(error)
                    return
                seed += 1


def pixels(answer):
    assert answer.status_code == 200, answer.text
    (entry,) = answer.json()["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))).astype(int)


def replicas():
    """The processes of the replicas."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(TITLE):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_sixteen_clients_share_calls_with_their_own_concepts(serve, expected):
    pictures = expected(TOY_BUNDLE)
    with Load(exact=False) as load:
        load.wait_for(80)
    assert not load.errors
    for number, seed, answer in load.answers:
        assert np.abs(pixels(answer) - pictures[number, seed]).max() <= 2
    text = httpx.get(f"http://127.0.0.1:{PORT}/metrics").text
    (calls,) = (each for each in text_string_to_metric_families(text) if each.name == "perfusion_unet_calls")
    samples = [sample for sample in calls.samples if sample.name.endswith("_total")]
    assert len({sample.labels["replica"] for sample in samples}) == 2
    assert max(int(sample.labels["concepts"]) for sample in samples) == 4


def test_a_replica_that_is_killed_loses_no_request(serve, expected):
    pictures = expected(TOY_BUNDLE)
    before = replicas()
    assert len(before) == 2
    with Load(exact=True) as load:
        load.wait_for(20)
        os.kill(before[0], signal.SIGKILL)
        load.wait_for(60)
    assert not load.errors
    assert all(
        np.array_equal(pixels(answer), pictures[number, seed]) for number, seed, answer in load.answers
    )
    ends = time.monotonic() + 120
    while len(replicas()) < 2 and time.monotonic() < ends:
        time.sleep(0.5)
    assert len(replicas()) == 2 and set(replicas()) != set(before)  # another one came


def test_a_bundle_is_changed_under_load_without_a_lost_or_mixed_picture(serve, shop, expected, other_bundle):
    of = {bundle_hash(str(folder))[:16]: expected(folder) for folder in (TOY_BUNDLE, other_bundle)}
    former, latter = of
    assert not np.array_equal(of[former][0, 0], of[latter][0, 0])
    with Load(exact=True) as load:
        load.wait_for(20)
        deploy(serve, spec_of(other_bundle, shop), SCALE)
        load.wait_for(40)
    assert not load.errors
    drawn_by = []
    for number, seed, answer in load.answers:
        drawn_by.append(answer.headers[BUNDLE_HEADER.decode()])
        assert np.array_equal(pixels(answer), of[drawn_by[-1]][number, seed])
    assert set(drawn_by) == {former, latter}
    assert drawn_by[0] == former and set(drawn_by[-20:]) == {latter}
