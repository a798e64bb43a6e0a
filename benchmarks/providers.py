"""python benchmarks/providers.py: OpenVINO against ONNX Runtime, torch and stable-diffusion.cpp, on the same cores.

The embedded model end to end, with all cores and with one, and what swapping a concept costs; the first result of a
fresh process, with and without what an earlier one compiled; and one step of a UNet of Stable Diffusion 1.5's size with
random weights, with one and with four concepts, all libraries in turns. Then what compiling takes in memory, and what
more rows at once bring. Where the processor has bf16 or fp16, OpenVINO also computes in them; how far that is from
float32 is measured too. stable-diffusion.cpp takes part where the package stable-diffusion-cpp-python is installed.

The parts may run one by one (`prepare`, `pocket`, `starts`, `memory`, `step`, `batch`, `cpp`, then `record`), as each
but the first and the last needs a quiet machine for some minutes; `memory` needs none. What they leave in
build/providers is then kept. They need some 16 GB of memory and 20 GB of disk. --short takes a narrow UNet
(stable-diffusion.cpp: a small picture of the true one), two turns and writes no record.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.libraries import library_processes as processes
from benchmarks.libraries.library_graphs import (
    SIDE,
    libraries,
    open_graph,
    precisions,
    prepare,
    subjects,
    with_concepts,
)
from benchmarks.libraries.library_memory import batch_rows, memory_rows
from benchmarks.libraries.torch_unet import load_unet
from benchmarks.libraries.turns import Turn, in_turns
from benchmarks.record import ROOT, write_record
from perfusion.devices.system import cpu_flags
from perfusion.runtime import Runtime

PROMPT, STEPS = "a photo of a <school-bus> on a beach", 20
PARTS = ("pocket", "starts", "memory", "step", "batch", "cpp")
FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "asimd", "i8mm", "bf16",
)  # fmt: skip
TARGETS = {"openvino": 1.15, "openvino bf16": 1.9}  # of ONNX Runtime's step, on a processor with avx512_bf16
MOST_SWAP_MS = 1.0
CPP_STEPS = 6
Rows = list[dict[str, Any]]


def decibels(picture: Any, reference: Any) -> float:
    """PSNR of two pictures."""
    difference = np.asarray(picture, np.float64) - np.asarray(reference, np.float64)
    return round(float(10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9))), 1)


def pocket_rows(threads: int, turns: int) -> Rows:
    """The embedded model end to end: time, distance from ONNX Runtime's picture, and the swap of a concept."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PERFUSION_CACHE"] = cache
        return [row for count in sorted({1, threads}) for row in _pocket_rows(count, turns)]


def _pocket_rows(threads: int, turns: int) -> Rows:
    runtimes = {}
    for name in libraries():
        library, _, precision = name.partition(" ")
        provider = "cpu" if library == "onnxruntime" else library
        runtimes[name] = Runtime(provider=provider, threads=threads, precision=precision or "fp32")
    draw: dict[str, Turn] = {}
    for name, runtime in runtimes.items():
        runtime.load_concept("school-bus")
        draw[name] = partial(runtime.generate, PROMPT, seed=0, num_inference_steps=STEPS)
    pictures = {name: turn() for name, turn in draw.items()}  # the first pays for what is set up once
    times = in_turns(draw, turns)
    return [
        {"what": "picture", "model": "pocket", "library": name, "steps": STEPS, "threads": threads, **times[name],
         "psnr_db": decibels(pictures[name], pictures["onnxruntime"]), "swap_ms": swap_ms(runtime),
         "onnxruntime_over_it": round(times["onnxruntime"]["seconds"] / times[name]["seconds"], 3)}
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


def start_rows(threads: int, folder: Path) -> Rows:
    """The first result of fresh processes, OpenVINO's without and with what an earlier one compiled."""
    subject = subjects(folder)[1]
    step = subject.graph, subject.feeds, "kept"
    scripts: list[tuple[str, str, str, tuple[object, ...]]] = [
        ("pocket", "cpu", processes.FIRST_PICTURE, ()),
        (subject.model, "onnxruntime", processes.FIRST_STEP, step),
    ]
    rows: Rows = []
    for name, first, script, arguments in scripts:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            for library, start in ((first, "only"), ("openvino", "cold"), ("openvino", "warm")):
                facts = processes.run_alone(script, (library, threads, *arguments), Path(cache))
                library = library.replace("cpu", "onnxruntime")
                rows.append(
                    {"what": "first result", "model": name, "library": library, "start": start, **facts}
                )
            size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
            rows[-1]["cache_mb"] = round(size / 1e6)
    arguments = ("torch", threads, folder, subject.feeds)
    facts = processes.run_alone(processes.FIRST_TORCH_STEP, arguments, folder)
    return [
        *rows,
        {"what": "first result", "model": subject.model, "library": "torch", "start": "only", **facts},
    ]


def step_rows(threads: int, turns: int, folder: Path) -> Rows:
    """One step of a UNet, with one and with four concepts."""
    subject = subjects(folder)[1]
    fed = dict(np.load(subject.feeds))
    graphs = {name: open_graph(name, subject.graph, tuple(fed), threads) for name in libraries()}
    unet = load_unet(folder)
    tensors = [torch.from_numpy(fed[name]) for name in ("sample", "timestep", "encoder_hidden_states")]

    @torch.inference_mode()
    def by_torch() -> Any:
        return unet(*tensors, return_dict=False)[0].numpy()

    rows: Rows = []
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
                {"what": "step", "model": subject.model, "library": name, "concepts": concepts, "latents": SIDE,
                 "rows": 2, "threads": threads, "turns": turns, **spent, "relative_l2": float(f"{distance:.2g}"),
                 "onnxruntime_over_it": round(times["onnxruntime"]["seconds"] / spent["seconds"], 3)}
            )  # fmt: skip
    return rows


def _out_sample(graph: Any, arrays: Mapping[str, Any]) -> Any:
    return graph.run(**arrays)["out_sample"]


def cpp_rows(threads: int, folder: Path, *, short: bool) -> Rows:
    """stable-diffusion.cpp's own steps of two rows, in half precision and in float32."""
    name = "stable-diffusion.cpp"
    if importlib.util.find_spec("stable_diffusion_cpp") is None:
        reason = "stable-diffusion-cpp-python is not installed"
        return [{"what": "step", "model": "sd15", "library": name, "absent": reason}]
    release = version("stable-diffusion-cpp-python")
    side, steps = (64, 3) if short else (8 * SIDE, CPP_STEPS)
    return [
        {"what": "step", "model": "sd15", "library": f"{name} {precision}", "concepts": 0, "latents": side // 8,
         "rows": 2, "threads": threads, "package": f"stable-diffusion-cpp-python {release}",
         **processes.run_alone(
             processes.STABLE_DIFFUSION_CPP, (precision, threads, folder / "diffusers", steps, side), folder
         )}
        for precision in (("f16",) if short else ("f16", "f32"))
    ]  # fmt: skip


def processor_row() -> dict[str, Any]:
    """The instructions that decide, and what OpenVINO computes in with them."""
    flags = cpu_flags(Path("/"))
    return {
        "what": "processor",
        "flags": [flag for flag in FLAGS if flag in flags],
        "precisions": precisions(),
    }


def install_rows() -> Rows:
    """What each library takes on the disk, without what it depends on and without bytecode."""
    rows: Rows = []
    for package in ("onnxruntime", "openvino", "torch", "stable-diffusion-cpp-python"):
        try:
            files = distribution(package).files or []
        except PackageNotFoundError:
            continue
        paths = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
        size = sum(path.stat().st_size for path in paths if path.is_file())
        rows.append(
            {"what": "install", "package": package, "release": version(package), "mb": round(size / 1e6)}
        )
    return rows


def record(folder: Path) -> int:
    """Write what the parts measured as one record; 1 where a target is missed on a processor that it is for."""
    rows = [processor_row(), *install_rows()]
    bfloat16 = "avx512_bf16" in rows[0]["flags"]  # processors of one name have it or not
    for part in PARTS:
        path = folder / f"{part}.json"
        rows += json.loads(path.read_text()) if path.exists() else [{"what": "not measured", "part": part}]
    print(write_record("providers", rows, kind="bf16" if bfloat16 else ""))
    late = [
        row["library"] for row in rows
        if row["what"] == "step" and row.get("onnxruntime_over_it", 9) < TARGETS.get(row["library"], 0)
    ]  # fmt: skip
    slow = [row["library"] for row in rows if row.get("swap_ms", 0) > MOST_SWAP_MS]
    problems = (late if bfloat16 else []) + slow
    if problems:
        print(f"below the target: {', '.join(problems)}", file=sys.stderr)
    return int(bool(problems))


def main() -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"prepare, {', '.join(PARTS)}, record (default: all)")
    parser.add_argument("--short", action="store_true", help="a narrow UNet, two turns, and no record")
    args = parser.parse_args()
    if importlib.util.find_spec("openvino") is None:
        print('OpenVINO is not installed: pip install "perfusion-edge[openvino]"')
        return 0
    parts = args.parts or ["prepare", *PARTS, "record"]
    if unknown := set(parts) - {"prepare", *PARTS, "record"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    folder = ROOT / "build" / ("providers-short" if args.short else "providers")
    if "prepare" in parts:
        prepare(folder, short=args.short)
    _measure([part for part in PARTS if part in parts], folder, short=args.short)
    status = record(folder) if "record" in parts and not args.short else 0
    if not args.parts:
        shutil.rmtree(folder)
    return status


def _measure(parts: list[str], folder: Path, *, short: bool) -> None:
    """Run parts, print what they measure, and leave it for the record."""
    threads, turns = torch.get_num_threads(), 2 if short else 7
    measured: dict[str, Callable[[], Rows]] = {
        "pocket": partial(pocket_rows, threads, turns),
        "starts": partial(start_rows, threads, folder),
        "memory": lambda: [row for subject in subjects(folder) for row in memory_rows(threads, subject)],
        "step": partial(step_rows, threads, turns, folder),
        "batch": lambda: [row for subject in subjects(folder) for row in batch_rows(threads, turns, subject)],
        "cpp": partial(cpp_rows, threads, folder, short=short),
    }
    for part in parts:
        rows = measured[part]()
        print(*rows, sep="\n", flush=True)
        (folder / f"{part}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    raise SystemExit(main())
