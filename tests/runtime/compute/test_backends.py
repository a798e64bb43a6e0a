"""Buffers that stay on the device: the same bits as a plain call, and no copy of what did not change."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from perfusion.bundle.graph_io import graph_io_of
from perfusion.errors import BundleError, RequestError
from perfusion.runtime import Runtime
from perfusion.runtime.compute.backend import OnnxBackend, make_backend, offers
from perfusion.runtime.compute.binding import CHANGING
from perfusion.runtime.compute.onnx_graph import OnnxGraph


def unet_feeds(rows=2, concepts=2, side=8, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "sample": normal(rows, 4, side, side),
        "timestep": np.full(rows, 500, np.float32),
        "encoder_hidden_states": normal(rows, 77, 16),
        "key_hidden_states": normal(rows, 77, 16),
        "key_gate": normal(rows, 77, concepts),
        "value_gate": normal(rows, 77, concepts),
        "concept_keys": normal(concepts, 40),
        "concept_values": normal(concepts, 40),
        "regions": np.ones((rows, 1, side, side), np.float32),
    }


def open_unet(bundle, **options):
    ends = graph_io_of(bundle)["unet"]
    return OnnxGraph(ends.file, ends.inputs, ends.outputs, "cpu", threads=1, **options)


@pytest.fixture(scope="module")
def plain(bundle):
    return open_unet(bundle)


@pytest.fixture
def counting(monkeypatch):
    """An onnxruntime that counts what is copied into its buffers, by the copied array's address."""
    copied = []

    class Counted(onnxruntime.OrtValue):
        @staticmethod
        def ortvalue_from_shape_and_type(shape, kind, device, number):
            assert device in ("cpu", "cuda")
            made = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", number)
            return Counted(made._ortvalue)

        def update_inplace(self, array):
            copied.append(array.ctypes.data)
            super().update_inplace(array)

    fake = SimpleNamespace(
        get_available_providers=onnxruntime.get_available_providers,
        InferenceSession=onnxruntime.InferenceSession,
        SessionOptions=onnxruntime.SessionOptions,
        OrtValue=Counted,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return copied


@pytest.mark.parametrize("rows, concepts, side", [(2, 2, 8), (1, 0, 8), (4, 1, 10), (2, 3, 8)])
def test_the_bound_path_gives_the_same_bits_as_a_plain_call(bundle, plain, rows, concepts, side):
    bound = open_unet(bundle, bound=True)
    feeds = unet_feeds(rows, concepts, side)
    for seed in range(3):
        feeds["sample"] = unet_feeds(rows, concepts, side, seed)["sample"]
        np.testing.assert_array_equal(bound(**feeds), plain(**feeds))


def test_shapes_may_come_and_go(bundle, plain):
    bound = open_unet(bundle, bound=True)
    for turn in range(12):  # more shapes than there are buffers for, each several times
        feeds = unet_feeds(rows=1 + turn % 6, concepts=turn % 3, seed=turn)
        np.testing.assert_array_equal(bound(**feeds), plain(**feeds))


def test_an_answer_is_not_changed_by_the_next_call(bundle):
    bound = open_unet(bundle, bound=True)
    first = bound(**unet_feeds(seed=1))
    kept = first.copy()
    bound(**unet_feeds(seed=2))
    np.testing.assert_array_equal(first, kept)


def test_an_array_fed_again_is_not_copied_again(bundle, plain, counting):
    bound = open_unet(bundle, bound=True)
    feeds = unet_feeds()
    bound(**feeds)
    assert len(counting) == len(feeds)
    del counting[:]
    bound(**{**feeds, "sample": feeds["sample"] + 1})
    assert len(counting) == 2  # the new latents, and the timestep, which is always copied
    del counting[:]
    changed = {**feeds, "key_gate": feeds["key_gate"] * 2}
    np.testing.assert_array_equal(bound(**changed), plain(**changed))
    assert len(counting) == 3


def test_latents_changed_in_place_are_seen(bundle, plain):
    bound = open_unet(bundle, bound=True)
    feeds = unet_feeds()
    bound(**feeds)
    feeds["sample"] += 1
    feeds["timestep"] -= 100
    np.testing.assert_array_equal(bound(**feeds), plain(**feeds))
    assert {"sample", "timestep"} <= CHANGING


def test_wrong_shapes_are_refused_before_they_are_bound(bundle):
    bound = open_unet(bundle, bound=True)
    with pytest.raises(BundleError, match="takes 'concept_keys' as"):
        bound(**{**unet_feeds(), "concept_keys": np.zeros((2, 41), np.float32)})


class LendingBinding:
    """An io_binding as onnxruntime had it up to 1.29: what `get_outputs` gives is freed with the outputs."""

    def __init__(self, binding):
        self._binding = binding
        self._lent = []

    def __getattr__(self, name):
        return getattr(self._binding, name)

    def get_outputs(self):
        self._lent = [LentValue(value) for value in self._binding.get_outputs()]
        return self._lent

    def clear_binding_outputs(self):
        for value in self._lent:
            value.freed = True
        self._binding.clear_binding_outputs()

    def bind_ortvalue_output(self, name, value):
        assert not isinstance(value, LentValue), "a value that lies inside the binding is bound to it"
        self._binding.bind_ortvalue_output(name, value)


class LentValue:
    def __init__(self, value):
        self._value = value
        self.freed = False

    def numpy(self):
        assert not self.freed, "a freed value is read"
        return self._value.numpy()


def test_no_output_is_read_after_the_binding_gave_it_up(bundle, plain):
    bound = open_unet(bundle, bound=True)
    session = bound._session
    bound._binding._session = SimpleNamespace(
        io_binding=lambda: LendingBinding(session.io_binding()),
        run_with_iobinding=lambda binding, options: session.run_with_iobinding(binding._binding, options),
    )
    for seed in range(3):
        feeds = unet_feeds(seed=seed)
        np.testing.assert_array_equal(bound(**feeds), plain(**feeds))


class Recorder:
    """A session on pretended CUDA, with the options of each of its runs."""

    def __init__(self):
        self.numbers = []
        self.settings = {}

    def session(self, path, options, providers):
        if isinstance(providers[0], str):
            return onnxruntime.InferenceSession(path, options, providers=providers)
        self.settings = {**self.settings, **providers[0][1]}
        real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        numbers = self.numbers

        class Binding:
            def __init__(self):
                self.real = real.io_binding()

            def __getattr__(self, name):
                return getattr(self.real, name)

            def bind_output(self, name, device, number):
                assert device == "cuda"
                self.real.bind_output(name, "cpu", number)

        class Session:
            def get_providers(self):
                return ["CUDAExecutionProvider"]

            def get_inputs(self):
                return real.get_inputs()

            def get_outputs(self):
                return real.get_outputs()

            def io_binding(self):
                return Binding()

            def run_with_iobinding(self, binding, options):
                numbers.append(options and options.get_run_config_entry("gpu_graph_annotation_id"))
                real.run_with_iobinding(binding.real)

        return Session()


@pytest.fixture
def cuda(monkeypatch, counting):
    recorder = Recorder()
    fake: Any = sys.modules["onnxruntime"]
    fake.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    fake.InferenceSession = recorder.session
    fake.RunOptions = onnxruntime.RunOptions
    return recorder


def test_a_cuda_graph_is_recorded_for_each_set_of_shapes_after_a_first_run_without(bundle, plain, cuda):
    unet = OnnxBackend(graph_io_of(bundle), "cuda", None, capture=True).open("unet")
    small, large = unet_feeds(rows=1), unet_feeds(rows=2)
    for feeds in (small, small, small, large, large, small):
        np.testing.assert_array_equal(unet.run(**feeds)["out_sample"], plain(**feeds))
    assert cuda.settings["enable_cuda_graph"] == "1"
    assert cuda.numbers == ["-1", "1", "1", "-1", "2", "1"]


def test_no_more_cuda_graphs_are_recorded_than_their_buffers_can_be_kept_for(bundle, plain, cuda):
    unet = OnnxBackend(graph_io_of(bundle), "cuda", None, capture=True).open("unet")
    for _ in range(2):
        for rows in range(1, 11):
            feeds = unet_feeds(rows=rows, concepts=1)
            np.testing.assert_array_equal(unet.run(**feeds)["out_sample"], plain(**feeds))
    assert set(cuda.numbers) == {"-1", "1", "2", "3", "4"}


def test_without_capture_a_cuda_session_records_nothing(bundle, cuda):
    unet = OnnxBackend(graph_io_of(bundle), "cuda", None).open("unet")
    unet.run(**unet_feeds())
    assert "enable_cuda_graph" not in cuda.settings
    assert cuda.numbers == [None]


def test_cuda_graphs_are_refused_elsewhere(bundle):
    with pytest.raises(RequestError, match=r"CUDA graphs were asked for, and the provider is 'cpu'"):
        make_backend(bundle, "cpu", cuda_graph=True)
    with pytest.raises(RequestError, match=r"CUDA graphs were asked for"):
        Runtime(bundle.folder, provider="cpu", cuda_graph=True)


def test_a_runtime_on_recorded_cuda_graphs_draws_the_same_with_whatever_concept(
    toy_bundle, make_concept, cuda
):
    """Concepts are read at every replay: changing one between two pictures changes the picture as on the CPU."""
    pictures: dict[str, list[bytes]] = {"cpu": [], "cuda": []}
    for provider, drawn in pictures.items():
        with Runtime(toy_bundle, provider=provider, threads=1, cuda_graph=provider == "cuda") as runtime:
            for seed in range(3):
                runtime.load_concept(make_concept(seed))
                drawn.append(runtime.generate("a <cat>", num_inference_steps=2).tobytes())
                runtime.unload_concept("<cat>")
    assert pictures["cuda"] == pictures["cpu"]
    assert len(set(pictures["cpu"])) == 3
    assert "1" in cuda.numbers


@pytest.mark.parametrize(
    "folder, offered",
    [("trt-sm87", "trt"), ("trt-rtx-portable", "trt-rtx"), ("trt-rtx-sm89", "trt-rtx")],
)
def test_engines_are_offered_by_the_name_of_their_folder(bundle_copy, folder, offered):
    from perfusion.runtime import read_bundle

    (bundle_copy / "engines" / folder).mkdir(parents=True)
    (bundle_copy / "engines" / folder / "unet-0123456789abcdef.engine").write_bytes(b"plan")
    against = dict(offers(read_bundle(bundle_copy)))
    assert against.pop(offered) == ""
    assert against.pop("cpu") == ""
    assert set(against.values()) >= {"onnxruntime has no CUDA here"}
    assert len([text for text in against.values() if text.startswith("the bundle holds no")]) == 1


def test_every_graph_of_the_bundle_has_the_ends_that_are_expected(bundle):
    for name, ends in graph_io_of(bundle).items():
        session = onnxruntime.InferenceSession(ends.file, providers=["CPUExecutionProvider"])
        assert sorted(end.name for end in session.get_inputs()) == sorted(ends.inputs), name
        assert [end.name for end in session.get_outputs()] == list(ends.outputs), name
