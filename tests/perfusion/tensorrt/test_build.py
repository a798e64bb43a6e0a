"""Real plans from real graphs, built by TensorRT for RTX, which needs no GPU for it."""

import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from perfusion.bundle.reader import read_bundle
from perfusion.embedded import model_path
from perfusion.errors import BundleError, DeviceError, ExportError
from perfusion.tensorrt import engines
from perfusion.tensorrt.build import BuildOptions, build_engine
from perfusion.tensorrt.driver import Driver
from perfusion.tensorrt.engines import EngineSettings, build_engines
from perfusion.tensorrt.interrupts import held_interrupts
from perfusion.tensorrt.jobs import engine_jobs
from perfusion.tensorrt.shape_ranges import ShapeOptions
from perfusion.tensorrt.targets import TARGETS

pytestmark = pytest.mark.trt_build

POCKET = model_path()
TEXT = ({"batch": (1, 1, 1), "concepts": (4, 4, 4)},)


def malformed(rtx, plan) -> bool:
    """What TensorRT itself says of a plan; the only part of its answer that needs no GPU."""
    _, diagnostics = rtx.Runtime(rtx.Logger(rtx.Logger.INTERNAL_ERROR)).get_engine_validity(bytes(plan))
    return bool(diagnostics & int(rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE))


@pytest.fixture(scope="module")
def text_plan(rtx):
    """The toy bundle's text encoder, for every GPU from Ampere on."""
    toy = Path(__file__).parents[2] / "data" / "toy_bundle"
    return build_engine(rtx, toy / "text_encoder.onnx", shape_ranges=TEXT, targets=("portable",))


def test_every_graph_of_the_embedded_bundle_becomes_a_plan(rtx, tmp_path):
    bundle = tmp_path / "pocket"
    shutil.copytree(POCKET, bundle)
    whole, seen = read_bundle(bundle), []
    jobs = engine_jobs(whole, ShapeOptions(batches=(1,)))
    settings = EngineSettings(
        flavour="trt-rtx",
        target="sm86+sm89",
        precision=whole.precision,
        options=BuildOptions(workspace=1 << 30),
    )
    outcomes = build_engines(
        rtx, bundle, jobs, settings, progress=lambda graph, phase, *_: seen.append((graph, phase))
    )
    assert [one.engine.key.graph for one in outcomes] == [job.graph for job in jobs]
    assert all(one.built and one.engine.bytes > 1e6 for one in outcomes)
    assert {graph for graph, _ in seen} == {job.graph for job in jobs}
    unet = next(one.engine for one in outcomes if one.engine.key.graph == "unet")
    weights = POCKET / "unet" / "diffusion_pytorch_model.safetensors"  # float16, outside the graph's file
    assert unet.bytes > 2 * weights.stat().st_size
    assert unet.inputs["key_gate"] == ("float", ("batch", "tokens", "concepts"))
    assert unet.shape_ranges == jobs[1].shape_ranges
    assert not malformed(rtx, unet.file.read_bytes())


def test_two_builds_are_equal_byte_for_byte(rtx, text_plan, toy):
    again = build_engine(rtx, toy / "text_encoder.onnx", shape_ranges=TEXT, targets=("portable",))
    assert again.engine == text_plan.engine
    assert again.timing is None


def test_a_plan_is_one_to_tensorrt_itself_and_a_cut_one_is_not(rtx, text_plan):
    assert not malformed(rtx, text_plan.engine)
    assert malformed(rtx, text_plan.engine[:20])


@pytest.mark.parametrize("target", [name for name, one in TARGETS.items() if one.rtx and name != "sm75"])
def test_a_plan_is_built_for_every_gpu_in_the_table(rtx, text_plan, toy, target):
    built = build_engine(rtx, toy / "text_encoder.onnx", shape_ranges=TEXT, targets=(target,))
    assert built.engine != text_plan.engine


def test_the_table_of_gpus_is_tensorrts_own(rtx):
    known = {name.lower() for name in rtx.ComputeCapability.__members__ if name.startswith("SM")}
    assert {name for name, one in TARGETS.items() if one.rtx} == known - {
        "sm121"
    }  # no wheel for its Arm processor


def test_turing_lacks_products_in_fp32_as_the_table_says(rtx, toy):
    with pytest.raises(ExportError, match=r"Leave sm75 out; .*engine 'trt'\. .*FP32 GEMM is not supported"):
        build_engine(rtx, toy / "text_encoder.onnx", shape_ranges=TEXT, targets=("sm75",))


def test_an_unknown_gpu_is_refused_with_those_there_are(rtx, toy):
    with pytest.raises(ExportError, match=r"does not build for sm87, expected one of .*sm89"):
        build_engine(rtx, toy / "text_encoder.onnx", shape_ranges=TEXT, targets=("sm87",))


def test_the_number_of_concept_slots_is_built_in(rtx, text_plan, toy):
    eight = ({"batch": (1, 1, 1), "concepts": (8, 8, 8)},)
    assert (
        build_engine(rtx, toy / "text_encoder.onnx", shape_ranges=eight, targets=("portable",)).engine
        != text_plan.engine
    )


# --- what goes wrong is said


def test_a_file_that_is_no_graph_is_said_in_tensorrts_words(rtx, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"graph\.onnx: the graph could not be read .*TensorRT says"):
        build_engine(rtx, tmp_path / "graph.onnx", shape_ranges=TEXT, targets=("portable",))


def test_a_graph_with_an_operator_that_tensorrt_lacks_is_refused_by_the_operators_name(rtx, tmp_path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    shape, weight = ["batch", 4], np.ones((4, 4), np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w"], ["y"]),
        ],
        "int8",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, shape)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "int8.onnx")
    with pytest.raises(ExportError, match=r"DynamicQuantizeLinear|MatMulInteger"):
        build_engine(rtx, tmp_path / "int8.onnx", shape_ranges=({"batch": (1, 1, 1)},), targets=("portable",))


def test_a_graph_whose_weights_are_gone_is_refused(rtx, tmp_path):
    shutil.copy(POCKET / "vae_encoder.onnx", tmp_path)
    sizes = {"batch": (1, 1, 1), "picture_height": (128, 128, 128), "picture_width": (128, 128, 128)}
    with pytest.raises(ExportError, match="could not be read"):
        build_engine(rtx, tmp_path / "vae_encoder.onnx", shape_ranges=(sizes,), targets=("portable",))


def test_a_dimension_without_a_size_is_named(rtx, toy):
    with pytest.raises(
        ExportError, match="'concept_embeddings' has the dimension 'concepts', expected one of batch"
    ):
        build_engine(
            rtx, toy / "text_encoder.onnx", shape_ranges=({"batch": (1, 1, 1)},), targets=("portable",)
        )


def test_sizes_that_no_graph_can_have_are_refused(rtx, toy):
    upside_down = ({"batch": (1, 1, 1), "concepts": (8, 4, 2)},)
    with pytest.raises(ExportError, match=r"concepts|sizes"):
        build_engine(rtx, toy / "text_encoder.onnx", shape_ranges=upside_down, targets=("portable",))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_exception_in_the_progress_ends_the_build_and_comes_through(rtx, toy, kind):
    def stop(*_):
        raise kind

    with pytest.raises(kind):
        build_engine(rtx, toy / "text_encoder.onnx", shape_ranges=TEXT, targets=("portable",), progress=stop)


def test_an_interrupt_that_comes_while_tensorrt_logs_ends_the_build(rtx, toy, monkeypatch):
    """Python would raise it in the logger, whose exceptions TensorRT's bindings lose."""
    came: list[int] = []
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(*_):
        if not came:
            came.append(1)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("perfusion.tensorrt.logger._log.debug", interrupt)
    phases = []
    with pytest.raises(KeyboardInterrupt):
        build_engine(
            rtx,
            toy / "text_encoder.onnx",
            shape_ranges=TEXT,
            targets=("portable",),
            progress=lambda *seen: phases.append(seen),
        )
    assert came
    assert signal.getsignal(signal.SIGINT) is handler
    whole = []
    build_engine(
        rtx,
        toy / "text_encoder.onnx",
        shape_ranges=TEXT,
        targets=("portable",),
        progress=lambda *seen: whole.append(seen),
    )
    assert len(phases) < len(whole) / 2


def test_signals_that_python_does_not_handle_are_left_alone(monkeypatch):
    with held_interrupts() as interrupted:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert not interrupted()
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_interrupts() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.skipif(
    not hasattr(signal, "SIGUSR1"), reason="stands for Windows' SIGBREAK, and is not on Windows"
)
def test_ctrl_break_is_held_as_ctrl_c_is(monkeypatch):
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    reached = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: reached.append("handled"))
    try:
        with held_interrupts() as interrupted:
            signal.raise_signal(signal.SIGUSR1)
            assert interrupted()
            assert reached == []
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert reached == ["handled"]


def test_an_interrupt_is_raised_behind_the_block_and_none_is_held_in_another_thread():
    reached = []
    with pytest.raises(KeyboardInterrupt), held_interrupts() as interrupted:
        signal.raise_signal(signal.SIGINT)
        reached.append(interrupted())
    assert reached == [True]

    def elsewhere():
        with held_interrupts() as interrupted:
            reached.append(interrupted())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert reached == [True, False]


def test_a_graph_that_is_not_the_bundles_is_found_before_anything_is_built(rtx, toy, text_job, settings):
    with open(toy / "text_encoder.onnx", "ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match="does not have the checksum"):
        build_engines(rtx, toy, [text_job], settings)
    assert not (toy / "engines").exists()


# --- from the cache


def test_what_is_there_is_kept_and_what_was_damaged_is_built_again_to_the_same_bytes(
    rtx, toy, text_job, settings
):
    (first,) = build_engines(rtx, toy, [text_job], settings)
    (second,) = build_engines(rtx, toy, [text_job], settings)
    assert (first.built, second.built, second.engine) == (True, False, first.engine)
    whole = first.engine.file.read_bytes()
    first.engine.file.write_bytes(whole[: len(whole) // 2])
    (third,) = build_engines(rtx, toy, [text_job], settings)
    assert third.built
    assert "cut or changed" in third.reasons[0]
    assert third.engine.file.read_bytes() == whole


# --- the full TensorRT goes the same way; here its GPU is made up and its module is TensorRT for RTX


@pytest.fixture
def orin(monkeypatch):
    driver = Driver(cuda=(12, 6), compute_capability=(8, 7))
    monkeypatch.setattr(engines, "query_driver", lambda: driver)


@pytest.mark.filterwarnings("ignore:.*[Tt]iming cache:DeprecationWarning")
def test_the_full_tensorrt_builds_for_this_gpu_and_keeps_what_it_timed(rtx, toy, text_job, orin):
    settings = EngineSettings(flavour="trt", target="sm87", precision="fp32", options=BuildOptions())
    (outcome,) = build_engines(rtx, toy, [text_job], settings)
    key = outcome.engine.key
    assert (key.flavour, key.target, key.driver, key.version) == ("trt", "sm87", 12, rtx.__version__)
    assert (toy / "engines" / "trt-sm87" / f"timing-{rtx.__version__}.cache").is_file()


def test_the_full_tensorrt_builds_for_no_other_gpu(rtx, toy, text_job, orin):
    settings = EngineSettings(flavour="trt", target="sm89", precision="fp32", options=BuildOptions())
    with pytest.raises(DeviceError, match="GPU is sm87 and the engines are to be for sm89"):
        build_engines(rtx, toy, [text_job], settings)


def test_without_a_gpu_the_full_tensorrt_is_refused(rtx, toy, text_job, monkeypatch):
    monkeypatch.setattr(engines, "query_driver", lambda: None)
    settings = EngineSettings(flavour="trt", target="sm87", precision="fp32", options=BuildOptions())
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        build_engines(rtx, toy, [text_job], settings)
