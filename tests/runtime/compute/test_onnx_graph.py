"""Sessions say which provider they got and what they were fed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from perfusion.errors import BundleError, DeviceError, PerfusionError, RequestError
from perfusion.runtime import Runtime
from perfusion.runtime.compute.onnx_graph import OnnxGraph, available_providers

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture
def decoder(bundle):
    return OnnxGraph(bundle.decoder.file, ["latent_sample"], "sample", "cpu", threads=1)


def pretend(monkeypatch, available, obtained):
    """An onnxruntime with these providers, whose sessions run on that one."""
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            super().__init__(path, options, providers=[CPU])

        def get_providers(self):
            return [obtained]

    fake = SimpleNamespace(
        get_available_providers=lambda: available,
        InferenceSession=Session,
        SessionOptions=onnxruntime.SessionOptions,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)


@pytest.mark.parametrize("threads, usable, expected", [(None, 3, 3), (None, 8, 0), (5, 3, 5)])
def test_threads_are_as_many_as_cores_may_be_used(monkeypatch, bundle, threads, usable, expected):
    """0 leaves the number to onnxruntime, which sees neither a container's quota nor, everywhere, an affinity."""
    import onnxruntime

    counts = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            counts.append(options.intra_op_num_threads)
            super().__init__(path, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("perfusion.devices.system.cores", lambda root: usable)
    OnnxGraph(bundle.decoder.file, ["latent_sample"], "sample", "cpu", threads=threads)
    assert counts == [expected]


def test_threads_of_a_graph_do_not_wait_awake_after_its_run(monkeypatch, bundle):
    """They would take the cores from the threads of the graph that runs next."""
    import onnxruntime

    waits = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            waits.append(options.get_session_config_entry("session.force_spinning_stop"))
            super().__init__(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    OnnxGraph(bundle.decoder.file, ["latent_sample"], "sample", "cpu")
    assert waits == ["1"]


def test_an_unknown_provider_is_refused_with_the_known_ones(toy_bundle):
    with pytest.raises(RequestError, match="'tpu', expected one of auto, cpu, cuda, trt, trt-rtx"):
        Runtime(toy_bundle, provider="tpu")


def test_cuda_that_is_not_there_is_an_error_and_never_the_cpu(monkeypatch, toy_bundle):
    pretend(monkeypatch, [CPU], CPU)
    with pytest.raises(DeviceError, match=r"CUDAExecutionProvider was asked for.*perfusion-edge\[cuda\]"):
        Runtime(toy_bundle, provider="cuda")
    assert available_providers() == ("cpu",)


def test_a_silent_fallback_to_the_cpu_is_an_error(monkeypatch, toy_bundle):
    pretend(monkeypatch, [CUDA, CPU], CPU)
    with pytest.raises(DeviceError, match="was asked for and onnxruntime took CPUExecutionProvider"):
        Runtime(toy_bundle, provider="cuda")


def test_auto_falls_back_with_a_warning(monkeypatch, toy_bundle, caplog):
    pretend(monkeypatch, [CUDA, CPU], CPU)
    assert Runtime(toy_bundle, provider="auto").provider == "cpu"
    assert "Drawing without it" in caplog.text


def test_a_missing_onnxruntime_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match=r"not installed.*perfusion-edge\[cpu\]"):
        available_providers()


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "unet.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"unet\.onnx could not be opened as a graph"):
        OnnxGraph(path, ["sample"], "out_sample", "cpu")


def test_a_graph_with_other_ends_is_refused_with_both(bundle):
    with pytest.raises(
        BundleError, match="takes latent_sample and gives sample; expected sample and out_sample"
    ):
        OnnxGraph(bundle.decoder.file, ["sample"], "out_sample", "cpu")


def test_an_input_of_another_shape_is_refused_with_both(decoder):
    with pytest.raises(
        BundleError, match=r"'latent_sample' as \[.*4.*\], bundle\.json makes it \[1, 9, 8, 8\]"
    ):
        decoder(latent_sample=np.zeros((1, 9, 8, 8), np.float32))
    with pytest.raises(BundleError, match=r"makes it \[4, 8, 8\]"):
        decoder(latent_sample=np.zeros((4, 8, 8), np.float32))


def test_any_floating_point_input_is_cast_to_the_graphs_own(decoder):
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8))
    answer = decoder(latent_sample=latents)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, decoder(latent_sample=latents.astype(np.float32)))


def test_a_failure_inside_onnxruntime_is_one_sentence(bundle):
    unet = OnnxGraph(
        bundle.unet.file,
        ["sample", "timestep", "encoder_hidden_states", "key_hidden_states", "key_gate", "value_gate",
         "concept_keys", "concept_values", "regions"],
        "out_sample", "cpu", threads=1,
    )  # fmt: skip
    states, gate = np.zeros((1, 77, 16), np.float32), np.zeros((1, 77, 0), np.float32)
    with pytest.raises(PerfusionError, match=r"unet\.onnx could not be run: .+\.") as caught:
        unet(  # latents of odd height meet no partner on the way up
            sample=np.zeros((1, 4, 7, 7), np.float32), timestep=np.zeros(1, np.float32),
            encoder_hidden_states=states, key_hidden_states=states, key_gate=gate, value_gate=gate,
            regions=np.ones((1, 1, 7, 7), np.float32),
            concept_keys=np.zeros((0, 40), np.float32), concept_values=np.zeros((0, 40), np.float32),
        )  # fmt: skip
    assert "\n" not in str(caught.value)
