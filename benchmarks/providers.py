"""python benchmarks/providers.py: OpenVINO against ONNX Runtime and torch on the same cores, in turns.

The embedded model end to end, and one step of a UNet of Stable Diffusion 1.5's size with random weights, with one and
with four concepts; what swapping a concept costs; the first picture of a fresh process, with and without what an
earlier one compiled, and the memory. Where the processor has bf16 or fp16, OpenVINO also computes in them; how far that
is from float32 is measured too. The step needs some 14 GB of memory and 8 GB of disk. --short takes a narrow UNet, two
turns and writes no record.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import ROOT, write_record
from benchmarks.step import CONFIG, SHORT, build_unet, export, feeds
from perfusion.bundle.graph_io import GraphIO
from perfusion.devices.system import cpu_flags
from perfusion.errors import DeviceError
from perfusion.runtime import Runtime
from perfusion.runtime.compute.onnx_graph import OnnxGraph
from perfusion.runtime.compute.openvino_device import OpenVINODevice
from perfusion.runtime.compute.openvino_graph import OpenVINOGraph

FOLDER = ROOT / "build" / "providers"
PROMPT, STEPS = "a photo of a {} on a beach", 20
FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "amx_bf16",
    "asimd",
    "i8mm",
    "bf16",
)
TARGETS = {"openvino": 1.15, "openvino bf16": 1.9}  # of ONNX Runtime's step, on a processor with avx512_bf16
Turn = Callable[[], Any]

FIRST_PICTURE = """
import json, resource, sys, time
began = time.perf_counter()
from perfusion.runtime import Runtime
runtime = Runtime(provider=sys.argv[1], threads=int(sys.argv[2]))
runtime.load_concept("school-bus")
runtime.generate("a photo of a <school-bus> on a beach", seed=0)
"""
FIRST_STEP = """
import json, resource, sys, time
began = time.perf_counter()
from pathlib import Path
import numpy as np
from benchmarks.providers import open_graph
arrays = dict(np.load(Path(sys.argv[3]) / "feeds.npz"))
open_graph(sys.argv[1], Path(sys.argv[3]) / "unet.onnx", tuple(arrays), int(sys.argv[2]), cached=True).run(**arrays)
"""
TELL = """
usage = resource.getrusage(resource.RUSAGE_SELF)
facts = {"seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2)}
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]  # ru_maxrss begins with the parent's
print(json.dumps(facts | {"peak_memory_mb": round(int(peak) / 1024)}))
"""


def open_graph(
    library: str, path: Path, inputs: tuple[str, ...], threads: int, *, cached: bool = False
) -> Any:
    """A graph by one of the libraries: "onnxruntime", "openvino", "openvino bf16"."""
    if library == "onnxruntime":
        return OnnxGraph(path, inputs, "out_sample", "cpu", threads)
    from perfusion.runtime.compute.compiled_models import CompiledModels

    device = OpenVINODevice("CPU", threads, library.partition(" ")[2] or "fp32")
    ends = GraphIO(file=path, inputs=inputs, outputs=("out_sample",))
    return OpenVINOGraph(device, ends, path.name, CompiledModels() if cached else None)


def precisions() -> list[str]:
    """What OpenVINO computes in here."""
    known = []
    for precision in ("fp32", "bf16", "fp16"):
        try:
            OpenVINODevice(precision=precision)
        except DeviceError:
            continue
        known.append(precision)
    return known


def in_turns(turns: Mapping[str, Turn], count: int) -> dict[str, dict[str, float]]:
    """Medians of wall seconds and of the processor's seconds, one call of each after the other."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for _ in range(count):
        for name, turn in turns.items():
            wall, processor = time.perf_counter(), time.process_time()
            turn()
            spent[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {
        name: {
            "seconds": round(statistics.median(wall for wall, _ in times), 4),
            "cpu_seconds": round(statistics.median(processor for _, processor in times), 4),
        }
        for name, times in spent.items()
    }  # fmt: skip


def decibels(picture: Any, reference: Any) -> float:
    """PSNR of two pictures."""
    difference = np.asarray(picture, np.float64) - np.asarray(reference, np.float64)
    return round(float(10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9))), 1)


def embedded_rows(threads: int, turns: int) -> list[dict[str, Any]]:
    """The embedded model end to end: time, distance from ONNX Runtime's picture, and the swap of a concept."""
    kinds = {"onnxruntime": ("cpu", "fp32")}
    for precision in precisions():
        kinds["openvino" if precision == "fp32" else f"openvino {precision}"] = ("openvino", precision)
    runtimes = {
        name: Runtime(provider=provider, threads=threads, precision=precision)
        for name, (provider, precision) in kinds.items()
    }
    pictures = {}
    for name, runtime in runtimes.items():
        runtime.load_concept("school-bus")
        pictures[name] = runtime.generate(PROMPT.format("<school-bus>"), seed=0, num_inference_steps=STEPS)

    def draw(runtime: Runtime) -> Turn:
        return lambda: runtime.generate(PROMPT.format("<school-bus>"), seed=0, num_inference_steps=STEPS)

    times = in_turns({name: draw(runtime) for name, runtime in runtimes.items()}, turns)
    return [
        {"what": "picture", "model": "pocket", "library": name, "steps": STEPS, "threads": threads, **times[name],
         "psnr_db": decibels(pictures[name], pictures["onnxruntime"]), "swap_ms": swap_ms(runtime)}
        for name, runtime in runtimes.items()
    ]  # fmt: skip


def swap_ms(runtime: Runtime) -> float:
    """From one concept's file to another's in force; no graph is touched, which the next picture's time shows."""
    times = []
    for turn in range(20):
        names = ("pink-cake", "<pink-cake>"), ("school-bus", "<school-bus>")
        (name, _), (_, former) = names[turn % 2], names[1 - turn % 2]
        start = time.perf_counter()
        runtime.unload_concept(former)
        runtime.load_concept(name)
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 3)


def start_rows(
    script: str, threads: int, model: str, arguments: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """The first result of a fresh process, OpenVINO's without and with what an earlier one compiled."""
    library = "cpu" if script is FIRST_PICTURE else "onnxruntime"
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name, start in ((library, "only"), ("openvino", "cold"), ("openvino", "warm")):
            process = subprocess.run(
                [sys.executable, "-c", script + TELL, name, str(threads), *arguments],
                cwd=ROOT, env={**os.environ, "PERFUSION_CACHE": cache}, stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
            facts = json.loads(process.stdout.splitlines()[-1])
            rows.append({"what": "first result", "model": model, "library": name, "start": start, **facts})
            print(rows[-1])
        size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
        rows[-1]["cache_mb"] = round(size / 1e6)
    return rows


def step_rows(threads: int, turns: int, *, short: bool) -> list[dict[str, Any]]:
    """One step of a UNet, with one and with four concepts."""
    unet = build_unet(json.loads(CONFIG.read_text())["unet"] | (SHORT if short else {}))
    model = "narrow" if short else "sd15"
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    names, fed = export(unet, FOLDER / "unet.onnx"), feeds(unet, 32)
    arguments: Any = fed
    np.savez(FOLDER / "feeds.npz", **arguments)
    rows = start_rows("import sys; sys.path.insert(0, '.')" + FIRST_STEP, threads, model, (str(FOLDER),))
    libraries = ["onnxruntime", *("openvino" if one == "fp32" else f"openvino {one}" for one in precisions())]
    graphs = {name: open_graph(name, FOLDER / "unet.onnx", names, threads) for name in libraries}
    sample, timestep, states = (
        torch.from_numpy(fed[name]) for name in ("sample", "timestep", "encoder_hidden_states")
    )

    @torch.inference_mode()
    def by_torch() -> Any:
        return unet(sample, timestep, states, return_dict=False)[0].numpy()

    for concepts in (1, 4):
        arrays = with_concepts(fed, concepts)
        calls: dict[str, Turn] = {name: partial(_out_sample, graph, arrays) for name, graph in graphs.items()}
        calls["torch, no concepts"] = by_torch
        results = {name: call() for name, call in calls.items()}  # the first pays for what is set up once
        times = in_turns(calls, turns)
        reference = results["onnxruntime"]
        for name, spent in times.items():
            distance = np.linalg.norm(results[name] - reference) / np.linalg.norm(reference)
            rows.append(
                {"what": "step", "model": model, "library": name, "concepts": concepts, "latents": 32, "rows": 2,
                 "threads": threads, "turns": turns, **spent, "relative_l2": float(f"{distance:.2g}"),
                 "onnxruntime_over_it": round(times["onnxruntime"]["seconds"] / spent["seconds"], 3)}
            )  # fmt: skip
            print(rows[-1])
    shutil.rmtree(FOLDER)
    return rows


def _out_sample(graph: Any, arrays: Mapping[str, Any]) -> Any:
    return graph.run(**arrays)["out_sample"]


def with_concepts(fed: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The inputs with so many rows of concepts, whose gates stay closed so that torch computes the same."""
    axes = {"key_gate": 2, "value_gate": 2, "concept_keys": 0, "concept_values": 0}
    return {
        name: np.repeat(array, count, axes[name]) if name in axes else array for name, array in fed.items()
    }


def main() -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a narrow UNet, two turns, and no record")
    parser.add_argument(
        "--no-step", action="store_true", help="leave the large UNet out, and write no record"
    )
    args = parser.parse_args()
    if importlib.util.find_spec("openvino") is None:
        print('OpenVINO is not installed: pip install "perfusion-edge[openvino]"')
        return 0
    threads, turns = torch.get_num_threads(), 2 if args.short else 7
    flags = cpu_flags(Path("/"))
    rows: list[dict[str, Any]] = [
        {"what": "processor", "flags": [flag for flag in FLAGS if flag in flags], "precisions": precisions()}
    ]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PERFUSION_CACHE"] = cache
        rows += embedded_rows(threads, turns)
    print(*rows, sep="\n")
    rows += start_rows(FIRST_PICTURE, threads, "pocket")
    if not args.no_step:
        rows += step_rows(threads, turns, short=args.short)
    if args.short or args.no_step:
        return 0
    print(write_record("providers", rows))
    late = [
        row["library"] for row in rows
        if row["what"] == "step" and row["onnxruntime_over_it"] < TARGETS.get(row["library"], 0)
    ]  # fmt: skip
    if late and "avx512_bf16" in flags:
        print(f"below the target: {', '.join(late)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
