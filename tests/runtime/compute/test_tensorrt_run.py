"""The TensorRT path without a GPU: a pretended driver over main memory, and engines that compute with onnxruntime.

The pretended driver is called through ctypes as the real one is, copies nothing before the stream is waited for, and
knows the bounds of every allocation; the pretended engines refuse what real ones refuse. What they are called by is
held against the real bindings.
"""
# ruff: noqa: N802  (the driver's calls keep their names)

import ctypes
import functools
import json
import os
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import perfusion.runtime.compute.engine_graph
import perfusion.tensorrt.cuda
from perfusion.bundle.facts import graph_facts
from perfusion.bundle.graph_io import graph_io_of
from perfusion.bundle.reader import read_bundle
from perfusion.errors import BundleError, DeviceError, PerfusionError, RequestError
from perfusion.runtime import Runtime as DrawingRuntime
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.compute.tiles import decode_in_tiles
from perfusion.tensorrt.build import Built
from perfusion.tensorrt.cuda import CALLS, Cuda
from perfusion.tensorrt.deserialise import load_engine, make_runtime
from perfusion.tensorrt.driver import Driver as DriverFacts
from perfusion.tensorrt.engine_store import store_engine
from perfusion.tensorrt.execution import Arena, TensorRTGraph
from perfusion.tensorrt.keys import EngineKey, platform_of

ARENA = 4096
SIZES = {
    "tokens": (77, 77, 77),
    "regions": (1, 1, 1),
    "height": (8, 8, 8),
    "width": (8, 8, 8),
    "concepts": (4, 4, 4),
}


PICTURE = {"picture_height": (32, 32, 32), "picture_width": (32, 32, 32)}


@functools.cache
def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Driver:
    """libcuda's calls over main memory, everything in the order of one stream and not before it is waited for."""

    def __init__(self, memory=1 << 24):
        self.memory, self.live, self.queue, self.failing = memory, {}, [], {}
        self.uploads = self.retained = 0
        self.current = threading.local()
        for name, kinds in CALLS.items():
            call = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(getattr(self, f"_{name}", lambda *_: 0))
            setattr(self, name, self._maybe_failing(name, call))

    def _maybe_failing(self, name, call):
        def called(*arguments):
            converted = [
                kind(value) if isinstance(value, int) else value
                for kind, value in zip(CALLS[name], arguments, strict=True)
            ]
            if name.startswith(("cuMem", "cuStream")) and not getattr(self.current, "context", None):
                return 201  # CUDA_ERROR_INVALID_CONTEXT: this thread has not said which GPU it means
            return self.failing.get(name) or call(*converted)

        return called

    def _cuGetErrorString(self, code, text):
        self.words = ctypes.c_char_p(f"pretended error {code}".encode())
        ctypes.c_char_p.from_address(text).value = self.words.value
        return 0

    def _cuDeviceGetAttribute(self, value, attribute, device):
        ctypes.c_int.from_address(value).value = 0
        return 0

    def _cuDevicePrimaryCtxRetain(self, context, device):
        ctypes.c_uint64.from_address(context).value = 77
        self.retained += 1
        return 0

    def _cuDevicePrimaryCtxRelease_v2(self, device):
        self.retained -= 1
        return 0

    def _cuCtxSetCurrent(self, context):
        self.current.context = context
        return 0

    def _cuStreamCreate(self, stream, flags):
        ctypes.c_uint64.from_address(stream).value = 88
        return 0

    def _cuMemGetInfo_v2(self, free, total):
        ctypes.c_uint64.from_address(free).value = self.memory - sum(map(len, self.live.values()))
        return 0

    def _cuMemAlloc_v2(self, address, size):
        if sum(map(len, self.live.values())) + size > self.memory:
            return 2
        block = (ctypes.c_char * size)()
        self.live[ctypes.addressof(block)] = block
        ctypes.c_uint64.from_address(address).value = ctypes.addressof(block)
        return 0

    def _cuMemFree_v2(self, address):
        return 0 if self.live.pop(address, None) is not None else 1

    def check(self, address, size):
        assert any(
            start <= address and address + size <= start + len(block) for start, block in self.live.items()
        )

    def _cuMemcpyHtoDAsync_v2(self, target, source, size, stream):
        self.check(target, size)
        assert stream == 88
        self.uploads += 1
        self.queue.append(lambda: ctypes.memmove(target, source, size))
        return 0

    def _cuMemcpyDtoHAsync_v2(self, target, source, size, stream):
        self.check(source, size)
        self.queue.append(lambda: ctypes.memmove(target, source, size))
        return 0

    def _cuStreamSynchronize(self, stream):
        while self.queue:
            self.queue.pop(0)()
        return 0


class Logger:
    ERROR, INTERNAL_ERROR, WARNING = 1, 0, 2

    def __init__(self):
        self.said = []


class Runtime:
    driver: Driver

    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, data):
        try:
            facts = json.loads(bytes(data))
        except ValueError:
            self.logger.log(Logger.ERROR, "the plan is of\n another release.")
            return None
        return ICudaEngine(facts, self.driver)


class ICudaEngine:
    device_memory_size_v2 = ARENA

    def __init__(self, facts, driver):
        self._session = session(facts["onnx"])
        self._ends = {end.name: end for end in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._inputs = [end.name for end in self._session.get_inputs()]
        self._shape_ranges = facts["shape_ranges"]
        self._driver = driver
        self.num_io_tensors = len(self._ends)
        self.num_optimization_profiles = len(self._shape_ranges)

    def get_tensor_name(self, index):
        return list(self._ends)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return {"tensor(float)": np.float32, "tensor(int64)": np.int64}[self._ends[name].type]

    def get_tensor_profile_shape(self, name, profile_index):
        sizes = self._shape_ranges[profile_index]
        return [
            tuple(size if isinstance(size, int) else sizes[size][which] for size in self._ends[name].shape)
            for which in range(3)
        ]

    def get_tensor_shape(self, name):
        shapes = {
            shape
            for index in range(self.num_optimization_profiles)
            for shape in self.get_tensor_profile_shape(name, index)
        }
        return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))

    def create_runtime_config(self):
        return IRuntimeConfig()

    def create_execution_context(self, how):
        if isinstance(how, IRuntimeConfig):
            assert how.get_runtime_cache() is not None
            how.get_runtime_cache().compiled = b"compiled"
            how = how.get_execution_context_allocation_strategy()
        assert how == ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._shape_range = engine, 0
        self._shapes, self._addresses, self._memory = {}, {}, (0, 0)

    def set_optimization_profile_async(self, profile_index, stream_handle):
        assert stream_handle == 88
        self._shape_range, self._shapes = profile_index, {}
        return profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name, shape):
        low, _, high = self._engine.get_tensor_profile_shape(name, self._shape_range)
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self):
        missing = [name for name in self._engine._inputs if name not in self._shapes]
        if not missing:
            self._shapes |= {name: answer.shape for name, answer in self._run(zeros=True).items()}
        return missing

    def get_tensor_shape(self, name):
        return self._shapes[name]

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return memory in self._engine._driver.live

    def set_device_memory(self, memory, size):
        self._engine._driver.check(memory, size)
        self._memory = (memory, size)

    def execute_async_v3(self, stream_handle):
        assert stream_handle == 88
        assert self._memory[1] >= ARENA
        self._engine._driver.queue.append(self._execute)
        return True

    def _execute(self):
        ctypes.memset(self._memory[0], 0xFF, self._memory[1])  # every engine computes all over the arena
        for name, answer in self._run().items():
            self._numbers(name, answer.shape)[...] = answer

    def _run(self, zeros=False):
        feeds = {}
        for name in self._engine._inputs:
            shape, kind = self._shapes[name], self._engine.get_tensor_dtype(name)
            feeds[name] = np.zeros(shape, kind) if zeros else self._numbers(name, shape).copy()
        names = [end.name for end in self._engine._session.get_outputs()]
        return dict(zip(names, self._engine._session.run(names, feeds), strict=True))

    def _numbers(self, name, shape):
        kind = np.dtype(self._engine.get_tensor_dtype(name))
        size = int(np.prod(shape)) * kind.itemsize
        self._engine._driver.check(self._addresses[name], size)
        block = (ctypes.c_char * size).from_address(self._addresses[name])
        return np.frombuffer(block, kind).reshape(shape)


class IRuntimeCache:
    compiled = b""

    def deserialize(self, data):
        self.compiled = data
        return data == b"compiled"

    def serialize(self):
        return self.compiled


class IRuntimeConfig:
    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True

    def get_runtime_cache(self):
        return self._cache

    def set_execution_context_allocation_strategy(self, strategy):
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self):
        return self._strategy


class TensorIOMode:
    NONE, INPUT, OUTPUT = 0, 1, 2


class ExecutionContextAllocationStrategy:
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


PRETENDED = (
    Runtime, ICudaEngine, IExecutionContext, IRuntimeCache, IRuntimeConfig, TensorIOMode,
    ExecutionContextAllocationStrategy,
)  # fmt: skip


def pretended_trt(driver):
    return SimpleNamespace(
        __version__="10.3.0",
        ILogger=Logger,
        Runtime=type("Runtime", (Runtime,), {"driver": driver}),
        nptype=lambda kind: kind,
        **{one.__name__: one for one in PRETENDED[1:]},
    )


def test_the_pretended_calls_are_those_of_the_real_bindings():
    real = pytest.importorskip("tensorrt_rtx_bindings", reason="the extra trt-rtx is not installed")
    for one in PRETENDED:
        ours = {name for name in vars(one) if not name.startswith("_")} - {"driver", "compiled"}
        if one is ICudaEngine:
            ours |= {"num_io_tensors", "num_optimization_profiles"}
        assert ours
        assert ours <= set(dir(getattr(real, one.__name__))), one.__name__
    assert {"ERROR", "INTERNAL_ERROR", "log"} <= set(dir(real.ILogger))
    assert real.nptype(real.DataType.HALF) == np.float16


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def cuda(driver):
    return Cuda(driver)


@pytest.fixture
def open_graph(bundle, tmp_path, driver, cuda):
    """Open a graph of the toy bundle as an engine with these shape ranges; and as it is, to compare."""
    trt = pretended_trt(driver)
    runtime, logger = make_runtime(trt)
    arena = Arena(cuda)

    def opened(name, *shape_ranges, **options):
        ends = graph_io_of(bundle)[name]
        plan = tmp_path / f"{name}.engine"
        plan.write_text(
            json.dumps(
                {"onnx": str(ends.file), "shape_ranges": [{**SIZES, **profile} for profile in shape_ranges]}
            )
        )
        facts = {"inputs": ends.inputs, "outputs": ends.outputs, **options}
        return TensorRTGraph(plan, trt=trt, runtime=runtime, logger=logger, arena=arena, **facts)

    yield opened
    arena.close()
    cuda.close()
    assert not driver.live, "memory that was never given back"
    assert not driver.retained, "a context that was never given back"


def batch(*sizes):
    return {"batch": sizes * 3 if len(sizes) == 1 else sizes}


def unet_feeds(rows=2, concepts=2, side=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "sample": (rows, 4, side, side), "timestep": (rows,), "encoder_hidden_states": (rows, 77, 16),
        "key_hidden_states": (rows, 77, 16), "key_gate": (rows, 77, concepts), "value_gate": (rows, 77, concepts),
        "concept_keys": (concepts, 40), "concept_values": (concepts, 40), "regions": (rows, 1, side, side),
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def expected(bundle, feeds):
    return session(str(bundle.unet.file)).run(["out_sample"], feeds)[0]


@pytest.mark.parametrize("concepts", [0, 1, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8])
def test_any_batch_and_number_of_concepts_is_what_the_graph_itself_computes(
    bundle, open_graph, rows, concepts
):
    unet = open_graph("unet", batch(2), batch(4))
    for seed in range(2):
        feeds = unet_feeds(rows, concepts, seed=seed)
        found = unet.run(**feeds)["out_sample"]
        assert found.shape == feeds["sample"].shape
        np.testing.assert_allclose(found, expected(bundle, feeds), atol=2e-6)
    unet.close()


def test_one_dynamic_profile_serves_its_whole_range(bundle, open_graph):
    unet = open_graph(
        "unet", {**batch(1, 2, 4), "height": (4, 8, 8), "width": (4, 8, 8), "concepts": (0, 4, 4)}
    )
    for rows, side in ((1, 8), (3, 4), (4, 6), (6, 8)):
        feeds = unet_feeds(rows, 1, side)
        np.testing.assert_allclose(unet.run(**feeds)["out_sample"], expected(bundle, feeds), atol=2e-6)
    unet.close()


def test_what_did_not_change_is_not_copied_again_and_what_did_is(bundle, open_graph, driver):
    unet = open_graph("unet", batch(2))
    feeds = unet_feeds()
    unet.run(**feeds)
    assert driver.uploads == len(feeds)
    driver.uploads = 0
    feeds["sample"] += 1  # in place, as a sampler may
    np.testing.assert_allclose(unet.run(**feeds)["out_sample"], expected(bundle, feeds), atol=2e-6)
    assert driver.uploads == 2
    driver.uploads = 0
    feeds["value_gate"] = feeds["value_gate"] * 2
    np.testing.assert_allclose(unet.run(**feeds)["out_sample"], expected(bundle, feeds), atol=2e-6)
    assert driver.uploads == 3
    unet.close()


def test_addresses_stay_and_all_engines_share_one_arena(bundle, open_graph, driver):
    unet, decoder = open_graph("unet", batch(2)), open_graph("vae_decoder", {**batch(1), **PICTURE})  # fmt: skip
    feeds = unet_feeds()
    first = unet.run(**feeds)["out_sample"]
    decoder.run(latent_sample=feeds["sample"])
    before = set(driver.live)
    np.testing.assert_array_equal(unet.run(**feeds)["out_sample"], first)
    decoder.run(latent_sample=feeds["sample"])
    assert set(driver.live) == before
    assert sum(len(block) == ARENA for block in driver.live.values()) == 1
    unet.close()
    decoder.close()


def test_more_concepts_than_slots_are_refused_with_the_remedy(open_graph):
    unet = open_graph("unet", batch(2))
    with pytest.raises(RequestError, match=r"5 rows of concepts.*slots for 4.*--concepts 5.*'cpu'"):
        unet.run(**unet_feeds(concepts=5))
    unet.close()


def test_a_size_it_was_not_built_for_is_refused_with_both(open_graph):
    unet = open_graph("unet", batch(2))
    with pytest.raises(
        RequestError, match=r"built for sample of \[2, 4, 8, 8\] and is asked for \[2, 4, 10, 10\]"
    ):
        unet.run(**unet_feeds(side=10))
    unet.close()


def test_a_plan_of_another_release_is_refused_with_tensorrts_own_words(tmp_path, driver):
    trt = pretended_trt(driver)
    (tmp_path / "unet.engine").write_bytes(b"\x00\x01 not for you")
    with pytest.raises(
        DeviceError, match=r"TensorRT 10\.3\.0 here: the plan is of another release\. An engine"
    ):
        load_engine(tmp_path / "unet.engine", trt, *make_runtime(trt))
    (tmp_path / "empty.engine").write_bytes(b"")
    with pytest.raises(DeviceError, match="cannot be read"):
        load_engine(tmp_path / "empty.engine", trt, *make_runtime(trt))


def test_an_engine_with_other_ends_is_refused(open_graph):
    with pytest.raises(BundleError, match="takes latent_sample and gives sample; expected"):
        open_graph("vae_decoder", {**batch(1), **PICTURE}, inputs=("sample",))  # fmt: skip


def test_what_rtx_compiled_is_kept_for_the_next_start(bundle, open_graph, tmp_path):
    for turn in range(2):
        unet = open_graph("unet", batch(2), compiles=True)
        feeds = unet_feeds(seed=turn)
        np.testing.assert_allclose(unet.run(**feeds)["out_sample"], expected(bundle, feeds), atol=2e-6)
        unet.close()
        assert (tmp_path / "unet.jit").read_bytes() == b"compiled"


def test_what_rtx_compiled_for_a_further_profile_is_kept_too(open_graph, tmp_path, monkeypatch):
    unet = open_graph("unet", batch(2), compiles=True)
    unet.close()
    monkeypatch.setattr(IRuntimeCache, "serialize", lambda self: b"compiled, and more")
    unet = open_graph("unet", batch(2), compiles=True)
    unet.close()
    assert (tmp_path / "unet.jit").read_bytes() == b"compiled, and more"


def test_what_rtx_compiled_for_another_gpu_is_replaced(open_graph, tmp_path):
    (tmp_path / "unet.jit").write_bytes(b"of another driver")
    unet = open_graph("unet", batch(2), compiles=True)
    unet.run(**unet_feeds())
    unet.close()
    assert (tmp_path / "unet.jit").read_bytes() == b"compiled"


def test_one_thread_may_open_another_run_and_a_third_close_it(bundle, open_graph):
    """The driver asks every thread anew which GPU it means."""
    unet, feeds, failed = open_graph("unet", batch(2)), unet_feeds(), []

    def elsewhere(work):
        def caught():
            try:
                work()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=caught)
        thread.start()
        thread.join()

    elsewhere(
        lambda: np.testing.assert_allclose(
            unet.run(**feeds)["out_sample"], expected(bundle, feeds), atol=2e-6
        )
    )
    elsewhere(unet.close)
    assert not failed


def test_a_gpu_without_room_says_how_much_was_asked_for(open_graph, driver, cuda):
    unet = open_graph("unet", batch(2))
    driver.memory = 30_000
    with pytest.raises(PerfusionError, match=r'MB were asked of the GPU, which has 0 MB left.*memory="low"'):
        unet.run(**unet_feeds())
    unet.close()


def test_a_buffer_that_could_not_grow_is_neither_used_nor_given_back_again(bundle, open_graph, driver):
    unet = open_graph("unet", batch(1, 2, 4))
    small, large = unet_feeds(1), unet_feeds(4)
    unet.run(**small)
    room, driver.memory = driver.memory, sum(map(len, driver.live.values()))
    with pytest.raises(PerfusionError, match="were asked of the GPU"):
        unet.run(**large)
    driver.memory = room
    for feeds in (small, large):
        np.testing.assert_allclose(unet.run(**feeds)["out_sample"], expected(bundle, feeds), atol=2e-6)
    unet.close()


def test_after_a_failure_nothing_is_taken_for_copied(bundle, open_graph, driver):
    unet, feeds = open_graph("unet", batch(2)), unet_feeds()
    unet.run(**unet_feeds(seed=1))
    driver.failing["cuStreamSynchronize"] = 700
    with pytest.raises(PerfusionError, match="cuStreamSynchronize failed"):
        unet.run(**feeds)
    driver.queue.clear()  # what was asked for is never done
    driver.failing.clear()
    np.testing.assert_allclose(unet.run(**feeds)["out_sample"], expected(bundle, feeds), atol=2e-6)
    unet.close()


def test_inputs_that_are_not_the_engines_are_refused_by_name(open_graph):
    unet, feeds = open_graph("unet", batch(2), batch(4)), unet_feeds(4)
    unet.run(**feeds)
    left = {name: array for name, array in feeds.items() if name != "key_gate"}
    for wrong in (left, {**feeds, "gate": feeds["key_gate"]}):
        with pytest.raises(PerfusionError, match=r"unet\.engine takes sample, .* and was given sample, "):
            unet.run(**wrong)
    with pytest.raises(
        PerfusionError, match=r"not have equally many rows: sample \[4.*key_gate \[2, 77, 2\]"
    ):
        unet.run(**{**feeds, "key_gate": feeds["key_gate"][:2]})
    unet.close()


def test_a_context_without_room_for_a_stream_is_given_back():
    driver = Driver()
    driver.failing["cuStreamCreate"] = 2
    with pytest.raises(PerfusionError, match="cuStreamCreate failed"):
        Cuda(driver)
    assert driver.retained == 0


def test_a_runtime_that_tensorrt_does_not_give_is_a_sentence(driver):
    def nothing(logger):
        logger.log(Logger.ERROR, "CUDA driver version is insufficient")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt = pretended_trt(driver)
    trt.Runtime = nothing
    with pytest.raises(
        DeviceError, match=r"10\.3\.0 does not go with .*: CUDA driver version is insufficient\."
    ):
        make_runtime(trt)


def test_a_driver_without_a_gpu_is_a_sentence():
    driver = Driver()
    driver.failing["cuInit"] = 100
    with pytest.raises(DeviceError, match=r"no usable NVIDIA GPU: pretended error 100.*provider 'cpu'"):
        Cuda(driver)


@pytest.mark.skipif(os.name == "nt", reason="the driver has another name there")
def test_a_machine_without_a_driver_is_a_sentence(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(DeviceError, match=r"driver was not found \(libcuda\.so\.1\)"):
        Cuda()


def test_a_failing_call_is_named(open_graph, driver):
    unet = open_graph("unet", batch(2))
    driver.failing["cuMemcpyHtoDAsync_v2"] = 700
    with pytest.raises(
        PerfusionError, match=r"cuMemcpyHtoDAsync_v2 failed on the GPU: pretended error 700\."
    ):
        unet.run(**unet_feeds())
    driver.queue.clear()
    unet.close()


# --- a whole runtime


@pytest.fixture
def equipped(bundle_copy, monkeypatch):
    """A bundle with engines for the GPU of this pretended machine, and the machine's driver."""
    made = Driver()
    monkeypatch.setattr(perfusion.tensorrt.cuda, "load_driver", lambda: made)
    monkeypatch.setattr(
        perfusion.runtime.compute.engine_graph,
        "query_driver",
        lambda: DriverFacts(cuda=(12, 6), compute_capability=(8, 7)),
    )
    monkeypatch.setattr(
        perfusion.runtime.compute.engine_graph, "import_tensorrt", lambda flavour: pretended_trt(made)
    )
    return bundle_copy, made


def store(
    folder,
    flavour="trt",
    target="sm87",
    version="10.3.0",
    names=("text_encoder", "unet", "vae_decoder"),
    side=8,
    slots=4,
    texts=((1, 77),),
):
    """Engines of the pretended TensorRT where real ones would lie, for latents of `side` by `side`.

    `texts`: pairs of readings, and tokens of all of them, that the UNet's engine takes.
    """
    facts = graph_facts(read_bundle(folder, verify=False))
    sizes = {**SIZES, "height": (side,) * 3, "width": (side,) * 3, "concepts": (slots,) * 3}
    picture = {"picture_height": (4 * side,) * 3, "picture_width": (4 * side,) * 3}
    for name in names:
        shape_ranges = {
            "text_encoder": [{**sizes, **batch(1)}],
            "unet": [
                {**sizes, **batch(rows), "regions": (readings,) * 3, "tokens": (tokens,) * 3}
                for readings, tokens in texts
                for rows in (2, 4)
            ],
        }.get(name, [{**sizes, **batch(1), **picture}])  # fmt: skip
        plan = json.dumps({"onnx": str(folder / facts[name].file), "shape_ranges": shape_ranges}).encode()
        key = EngineKey(
            graph=name, graph_sha256=facts[name].sha256, flavour=flavour, version=version, target=target,
            platform=platform_of(flavour), driver=12 if flavour == "trt" else None, precision="fp32",
            shape_ranges=tuple({name: tuple(sizes) for name, sizes in one.items()} for one in shape_ranges), options={},
        )  # fmt: skip
        store_engine(folder, key, Built(engine=memoryview(plan), inputs={}, outputs={}, timing=None), {})


def pixels(picture):
    return np.asarray(picture, np.int16)


@pytest.mark.parametrize("flavour, target", [("trt", "sm87"), ("trt-rtx", "sm86+sm87")])
def test_a_runtime_on_engines_draws_the_pictures_of_the_cpu(equipped, make_concept, flavour, target):
    folder, driver = equipped
    store(folder, flavour, target)
    pictures = {}
    for provider in ("cpu", flavour):
        with DrawingRuntime(folder, provider=provider, threads=1, batch_size=2) as runtime:
            assert runtime.provider == provider
            runtime.load_concept(make_concept())
            pictures[provider] = [
                *runtime.generate(["a <cat>", "a dog", "a <cat> on a beach"], seed=[0, 1, 2]),
                runtime.generate("a <cat>", seed=3, guidance_scale=1, lock="global"),
            ]
    for ours, theirs in zip(pictures[flavour], pictures["cpu"], strict=True):
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1
    assert not driver.live


def test_a_decoder_built_for_tiles_decodes_larger_pictures_in_them(equipped):
    folder, _ = equipped
    store(folder)
    latents = np.random.default_rng(0).standard_normal((1, 4, 12, 16)).astype(np.float32)
    engines, plain = Graphs(read_bundle(folder), "trt", 1), Graphs(read_bundle(folder), "cpu", 1)
    picture = engines.run("vae_decoder", latent_sample=latents)["sample"]
    assert picture.shape == (1, 3, 48, 64)
    expected = decode_in_tiles(
        lambda one: plain.run("vae_decoder", latent_sample=one)["sample"], latents, 4, 8
    )
    np.testing.assert_allclose(picture, expected, atol=1e-5)
    engines.close()


LONG = "a red cat on a beach with a blue dog " * 9
"""More than 75 tokens, fewer than 150."""


@pytest.mark.parametrize(
    "stored",
    [[((1, 77), (1, 154), (2, 308))], [((1, 77),), ((1, 154),), ((2, 308),)]],
    ids=["one engine", "an engine for each"],
)
def test_long_prompts_are_drawn_by_engines_that_were_built_for_them(equipped, make_concept, stored):
    """Short and long ones in a batch, long negative prompts, a concept in the second part, regions of two parts."""
    folder, driver = equipped
    for texts in stored:
        store(folder, texts=texts)
    pictures = {}
    for provider in ("cpu", "trt"):
        with DrawingRuntime(folder, provider=provider, threads=1, batch_size=2) as runtime:
            runtime.load_concept(make_concept())
            call: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0}
            pictures[provider] = [
                *runtime.generate(["a cat", LONG, f"{LONG} and a <cat>"], seed=[0, 1, 2], **call),
                runtime.generate("a cat", negative_prompt=LONG, **call),
                runtime.generate(LONG, negative_prompt="a cat", **call),
                runtime.generate(f"a {{cat}} and a {{dog}} and {LONG}", **call),
            ]
    short, long, *_ = pictures["cpu"]
    assert np.abs(pixels(short) - pixels(long)).max() > 8, "prompts that hardly show would prove nothing"
    for ours, theirs in zip(pictures["trt"], pictures["cpu"], strict=True):
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1
    assert not driver.live


@pytest.mark.parametrize("order", [(8, 12), (12, 8)])
def test_each_picture_is_drawn_by_the_engines_of_its_size(equipped, order):
    """With engines for two sizes in one bundle, whichever was built first and whichever is open."""
    folder, driver = equipped
    for side in order:
        store(folder, side=side)
    pictures = {}
    for provider in ("cpu", "trt"):
        with DrawingRuntime(folder, provider=provider, threads=1) as runtime:
            pictures[provider] = [
                runtime.generate("a cat", seed=3, width=side, height=side, num_inference_steps=2)
                for side in (48, 32, 48, 32, 32)
            ]
    for ours, theirs in zip(pictures["trt"], pictures["cpu"], strict=True):
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1
    assert not driver.live


def test_what_no_engine_takes_is_refused_before_anything_is_computed(equipped, make_concept, monkeypatch):
    folder, _ = equipped
    store(folder)
    store(folder, side=12)
    with DrawingRuntime(folder, provider="trt", threads=1, batch_size=2) as runtime:
        for seed in range(5):
            runtime.load_concept(make_concept(seed, token=f"<c{seed}>"))
        calls = []
        monkeypatch.setattr(runtime._graphs, "run", lambda name, **feeds: calls.append(name))
        words = " ".join(f"<c{seed}>" for seed in range(5))
        for prompt, size, message in (
            (
                "a cat",
                40,
                r"40 × 40 pixels.*draw 32 × 32 or 48 × 48\. Choose.*--bundle \S+ --engine trt --resolution 40.*'cpu'",
            ),
            (
                "a cat " * 60,
                32,
                r"read in 2 parts.*Shorten it to 75 .*--bundle \S+ --engine trt --readings 1 --tokens 154",
            ),
            (
                "a {cat} and a {dog}",
                32,
                r"read 2 times, once for each region.*regions=None.*--readings 2 --tokens 77",
            ),
            (words, 32, r"5 rows of concepts are used at once.*slots for 4.*--concepts 5"),
        ):
            with pytest.raises(RequestError, match=message):
                runtime.generate(prompt, width=size, height=size)
        assert not calls


def test_many_concepts_in_a_batch_need_only_the_slots_of_one_call(equipped, make_concept):
    folder, _ = equipped
    store(folder, slots=1)
    with DrawingRuntime(folder, provider="trt", threads=1) as runtime:
        for seed in range(3):
            runtime.load_concept(make_concept(seed, token=f"<c{seed}>"))
        pictures = runtime.generate([f"a <c{seed}>" for seed in range(3)], num_inference_steps=1)
    assert len(pictures) == 3


def test_a_decoder_for_a_smaller_picture_decodes_a_larger_one_of_the_unet(equipped):
    folder, _ = equipped
    store(folder, side=12, names=("text_encoder", "unet"))
    store(folder, side=8, names=("vae_decoder",))
    with DrawingRuntime(folder, provider="trt", threads=1) as runtime:
        assert runtime.generate("a cat", width=48, height=48, num_inference_steps=1).size == (48, 48)


def test_a_damaged_engine_of_another_size_is_found_when_it_is_wanted(equipped):
    folder, _ = equipped
    store(folder)
    before = set(folder.rglob("*.engine"))
    store(folder, side=12)
    for plan in set(folder.rglob("unet-*.engine")) - before:
        plan.write_bytes(b"x" * plan.stat().st_size)
    with DrawingRuntime(folder, provider="trt", threads=1) as runtime:
        runtime.generate("a cat", num_inference_steps=1)
        with pytest.raises(
            DeviceError, match=r"cannot be used: the engine does not have its checksum.*Build"
        ):
            runtime.generate("a cat", width=48, height=48)
        runtime.generate("a cat", num_inference_steps=1)


def test_auto_takes_engines_where_they_fit_and_says_so(equipped):
    folder, _ = equipped
    store(folder)
    graphs = Graphs(read_bundle(folder), "auto", 1)
    assert (graphs.provider, graphs.reason) == ("trt", "the bundle holds TensorRT engines for this machine")
    graphs.close()


def test_auto_passes_over_a_tensorrt_that_does_not_go_with_the_driver(equipped, monkeypatch, caplog):
    folder, driver = equipped
    store(folder)

    def nothing(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt = pretended_trt(driver)
    trt.Runtime = nothing
    monkeypatch.setattr(perfusion.runtime.compute.engine_graph, "import_tensorrt", lambda flavour: trt)
    graphs = Graphs(read_bundle(folder), "auto", 1)
    assert graphs.provider == "cpu"
    assert "does not go with this machine's driver" in caplog.text
    assert not driver.retained


def test_auto_passes_over_engines_of_another_gpu_and_says_so(equipped, caplog):
    folder, driver = equipped
    store(folder, target="sm89")
    graphs = Graphs(read_bundle(folder), "auto", 1)
    assert graphs.provider == "cpu"
    assert "trt could not be had" in graphs.reason
    assert "the GPU is sm89, expected sm87" in caplog.text
    assert not driver.live


def test_engines_of_another_release_are_refused_by_name_and_the_remedy(equipped):
    folder, _ = equipped
    store(folder, version="10.13.2")
    wrong = r"no TensorRT engine of text_encoder.*TensorRT's version is 10\.13\.2, expected 10\.3\.0.*--engine trt"
    with pytest.raises(DeviceError, match=wrong):
        Graphs(read_bundle(folder), "trt", 1)


def test_an_engine_of_changed_graphs_is_not_taken(equipped):
    folder, _ = equipped
    store(folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"]["unet.onnx"]["sha256"] = "0" * 64
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(DeviceError, match=r"no TensorRT engine of unet.*the graph's checksum is"):
        Graphs(read_bundle(folder, verify=False), "trt", 1)


def test_engines_without_a_gpu_are_refused_in_a_sentence(equipped, monkeypatch):
    folder, _ = equipped
    store(folder)
    monkeypatch.setattr(perfusion.runtime.compute.engine_graph, "query_driver", lambda: None)
    with pytest.raises(DeviceError, match="trt was asked for, and this machine has no NVIDIA GPU"):
        Graphs(read_bundle(folder), "trt", 1)
