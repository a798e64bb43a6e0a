"""One engine from one graph, by the Python interface both TensorRTs share: 10.3 to 11, and TensorRT for RTX.

TensorRT answers None or False where something is wrong and tells its logger why. Each answer is checked here, and
what the logger said last is in the message. Networks are strongly typed: the graph's own types are what is computed
in, which is the only way in TensorRT 11 and gives the same arithmetic in 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion.errors import ExportError
from perfusion.tensorrt.interrupts import held_interrupts
from perfusion.tensorrt.logger import KeptErrors, make_logger
from perfusion.tensorrt.rtx import PORTABLE, set_targets

__all__ = ["BuildOptions", "Built", "Phase", "ShapeRange", "build_engine"]

ShapeRange = Mapping[str, tuple[int, int, int]]
"""The smallest, usual and largest size of each named dimension of a graph ("batch", "height", …)."""

Phase = Callable[[str, int, int], None]
"""Told what the builder does: the name of a phase, and how many of how many steps of it are done."""

_NOT_ON_TURING = (
    " TensorRT for RTX has no matrix products in fp32 for sm75, and this graph keeps some in fp32. Leave sm75 out; "
    "such a card can run the bundle on ONNX Runtime, or by the engine 'trt'."
)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How an engine is built; part of its key."""

    workspace: int | None = None  # bytes the builder's choices may use as scratch memory; None: all there is
    optimization_level: int | None = None  # 0 to 5; None: TensorRT's own, 3
    tf32: bool = (
        True  # let float32 products be rounded to TF32 where the GPU gains by it, as TensorRT does by itself
    )


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine, and what its graph takes and gives by name: the kind of number and the named shape."""

    engine: memoryview
    inputs: Mapping[str, tuple[str, tuple[int | str, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int | str, ...]]]
    timing: memoryview | None  # what was timed, to make the next build shorter; never on TensorRT for RTX


def build_engine(
    trt: Any,
    graph: Path,
    *,
    shape_ranges: Sequence[ShapeRange],
    options: BuildOptions | None = None,
    targets: Sequence[str] | None = None,
    timing: bytes | None = None,
    progress: Phase | None = None,
) -> Built:
    """Build the engine of an ONNX graph, whose external weights lie where it says.

    Args:
        trt: the module, of either flavour.
        graph: the file.
        shape_ranges: sizes to build for; all in one engine, so that they share the weights.
        options: what the builder may use.
        targets: for TensorRT for RTX, which needs no GPU: names as "sm86", or ("portable",). None is the full TensorRT,
            which builds for the GPU of this machine.
        timing: what an earlier build timed on the same kind of GPU; ignored where it does not fit.
        progress: called often, also with the name of the phase being worked on.

    Raises:
        ExportError: the graph cannot be built; with TensorRT's own words.
    """
    log = make_logger(trt)
    with held_interrupts() as interrupted:
        try:
            builder = trt.Builder(log)
        except TypeError as error:  # how the bindings say that the library gave nothing
            raise _failure(graph, "the builder could not be made", log) from error
        network, _parser = _parsed(trt, builder, graph, log)  # the parser holds the weights, hence stays
        inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
        outputs = {tensor.name: tensor for tensor in map(network.get_output, range(network.num_outputs))}
        config = builder.create_builder_config()
        if config is None:
            raise _failure(graph, "the settings could not be made", log)
        _configure(trt, config, options or BuildOptions())
        if targets is not None and list(targets) != [PORTABLE]:
            set_targets(trt, config, targets)
        for shape_range in shape_ranges:
            _add_shape_range(builder, config, graph, inputs, shape_range, log)
        timing_cache = None if targets is not None else _timing_cache(config, timing)
        monitor = _make_monitor(trt, progress, interrupted)
        config.progress_monitor = monitor
        serialized = builder.build_serialized_network(network, config)
        if monitor.problem is not None:
            raise monitor.problem
        if serialized is None:
            turing = "sm75" in (targets or ()) and "FP32 GEMM" in log.last
            raise _failure(graph, "the engine could not be built", log, _NOT_ON_TURING if turing else "")
    timed = timing_cache.serialize() if timing_cache is not None else None
    return Built(
        engine=_bytes_of(serialized),
        inputs={name: _facts(tensor) for name, tensor in inputs.items()},
        outputs={name: _facts(tensor) for name, tensor in outputs.items()},
        timing=None if timed is None else _bytes_of(timed),
    )


def _parsed(trt: Any, builder: Any, graph: Path, log: KeptErrors) -> tuple[Any, Any]:
    """The network of a graph's file, and the parser."""
    network = builder.create_network(_network_flags(trt))
    if network is None:
        raise _failure(graph, "the network could not be made", log)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(
            f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors[:3]
        )
        raise _failure(graph, f"the graph could not be read ({said})", log)
    return network, parser


def _network_flags(trt: Any) -> int:
    """Strongly typed. The flag has another number in each release, and is the only way, hence not asked, from 11 on."""
    major = int(str(trt.__version__).split(".")[0])
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if major == 10 else 0


def _configure(trt: Any, config: Any, options: BuildOptions) -> None:
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)


def _add_shape_range(
    builder: Any,
    config: Any,
    graph: Path,
    inputs: Mapping[str, Any],
    shape_range: ShapeRange,
    log: KeptErrors,
) -> None:
    """Give every input with a named dimension its sizes."""
    optimization = builder.create_optimization_profile()
    shapes = {name: _named_shape(tensor) for name, tensor in inputs.items()}
    for name, shape in shapes.items():
        unknown = [
            size for size in shape if size == -1 or (isinstance(size, str) and size not in shape_range)
        ]
        if unknown:
            raise ExportError(
                f"{graph}: its input {name!r} has the dimension {unknown[0]!r}, expected one of "
                f"{', '.join(shape_range)}. Export the bundle again."
            )
        if any(isinstance(size, str) for size in shape):
            sizes = [
                [shape_range[n][which] if isinstance(n, str) else n for n in shape] for which in range(3)
            ]
            optimization.set_shape(name, *sizes)
    open_sizes = any(isinstance(size, str) for shape in shapes.values() for size in shape)
    if open_sizes and config.add_optimization_profile(optimization) < 0:
        raise _failure(graph, f"the sizes {dict(shape_range)} were not accepted", log)


def _timing_cache(config: Any, timing: bytes | None) -> Any:
    """A timing cache filled with what was timed before, or an empty one where that is damaged or of another GPU."""
    for content in (timing or b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _bytes_of(memory: Any) -> memoryview:
    """TensorRT's memory as bytes, not copied: it gives the buffer a kind of number of its own."""
    return memoryview(memory).cast("B")


def _facts(tensor: Any) -> tuple[str, tuple[int | str, ...]]:
    return str(tensor.dtype).rsplit(".", 1)[-1].lower(), _named_shape(tensor)


def _named_shape(tensor: Any) -> tuple[int | str, ...]:
    """A shape with the names of the dimensions that are open, -1 where one has none, as in outputs."""
    return tuple(
        size if size >= 0 else (tensor.get_dimension_name(at) or -1) for at, size in enumerate(tensor.shape)
    )


def _failure(graph: Path, problem: str, log: KeptErrors, advice: str = "") -> ExportError:
    said = f" TensorRT says: {log.last}" if log.last else ""
    return ExportError(f"{graph}: {problem}.{advice}{said}")


def _make_monitor(trt: Any, progress: Phase | None, interrupted: Callable[[], bool]) -> Any:
    """A progress monitor that calls `progress`, and stops the build at an exception of it or at Ctrl-C."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.problem: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self.steps.pop(phase_name, 0))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.problem is None and not interrupted()

        def _tell(self, phase: str, done: int) -> None:
            if progress is None or self.problem is not None:
                return
            try:
                progress(phase, done, self.steps.get(phase, done))
            except BaseException as error:  # raised through C++ it would end the process
                self.problem = error

    return Monitor()
