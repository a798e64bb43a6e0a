"""python benchmarks/providers.py: OpenVINO against ONNX Runtime, torch and stable-diffusion.cpp, on the same cores.

The embedded model end to end, with all cores and with one, and what swapping a concept costs; the first result of a
fresh process, with and without what an earlier one compiled, and its memory; and one step of a UNet of Stable Diffusion
1.5's size with random weights, with one and with four concepts, all libraries in turns. Where the processor has bf16 or
fp16, OpenVINO also computes in them; how far that is from float32 is measured too. stable-diffusion.cpp takes part
where the package stable-diffusion-cpp-python is installed.

The parts may run one by one (`prepare`, `pocket`, `starts`, `step`, `cpp`, then `record`), as each but the first and
the last needs a quiet machine for some minutes. They need some 16 GB of memory and 20 GB of disk in build/providers.
--short takes a narrow UNet, two turns and writes no record.
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
    FOLDER,
    SIDE,
    libraries,
    open_graph,
    precisions,
    prepare,
    with_concepts,
)
from benchmarks.record import write_record
from perfusion.devices.system import cpu_flags
from perfusion.runtime import Runtime

PROMPT, STEPS = "a photo of a <school-bus> on a beach", 20
FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "asimd", "i8mm", "bf16",
)  # fmt: skip
TARGETS = {"openvino": 1.15, "openvino bf16": 1.9}  # of ONNX Runtime's step, on a processor with avx512_bf16
MOST_SWAP_MS = 1.0
CPP_STEPS = 6
Rows = list[dict[str, Any]]
Turn = Callable[[], Any]


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


def start_rows(threads: int, model: str) -> Rows:
    """The first result of fresh processes, OpenVINO's without and with what an earlier one compiled."""
    scripts: list[tuple[str, str, str, tuple[object, ...]]] = [
        ("pocket", "cpu", processes.FIRST_PICTURE, ()),
        (model, "onnxruntime", processes.FIRST_STEP, (FOLDER,)),
    ]
    rows: Rows = []
    for name, first, script, arguments in scripts:
        with tempfile.TemporaryDirectory(dir=FOLDER) as cache:
            for library, start in ((first, "only"), ("openvino", "cold"), ("openvino", "warm")):
                facts = processes.run_alone(script, (library, threads, *arguments), Path(cache))
                library = library.replace("cpu", "onnxruntime")
                rows.append(
                    {"what": "first result", "model": name, "library": library, "start": start, **facts}
                )
            size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
            rows[-1]["cache_mb"] = round(size / 1e6)
    facts = processes.run_alone(processes.FIRST_TORCH_STEP, ("torch", threads, FOLDER), FOLDER)
    return [*rows, {"what": "first result", "model": model, "library": "torch", "start": "only", **facts}]


def step_rows(threads: int, turns: int, model: str) -> Rows:
    """One step of a UNet, with one and with four concepts."""
    from diffusers import UNet2DConditionModel

    fed = dict(np.load(FOLDER / "feeds.npz"))
    graphs = {name: open_graph(name, FOLDER / "unet.onnx", tuple(fed), threads) for name in libraries()}
    unet = UNet2DConditionModel.from_pretrained(FOLDER / "diffusers" / "unet").eval()
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
                {"what": "step", "model": model, "library": name, "concepts": concepts, "latents": SIDE, "rows": 2,
                 "threads": threads, "turns": turns, **spent, "relative_l2": float(f"{distance:.2g}"),
                 "onnxruntime_over_it": round(times["onnxruntime"]["seconds"] / spent["seconds"], 3)}
            )  # fmt: skip
    return rows


def _out_sample(graph: Any, arrays: Mapping[str, Any]) -> Any:
    return graph.run(**arrays)["out_sample"]


def cpp_rows(threads: int, model: str) -> Rows:
    """stable-diffusion.cpp's own steps of two rows, in half precision and in float32."""
    if importlib.util.find_spec("stable_diffusion_cpp") is None:
        return []
    release = version("stable-diffusion-cpp-python")
    return [
        {"what": "step", "model": model, "library": f"stable-diffusion.cpp {precision}", "concepts": 0, "latents": SIDE,
         "rows": 2, "threads": threads, "package": f"stable-diffusion-cpp-python {release}",
         **processes.run_alone(
             processes.STABLE_DIFFUSION_CPP, (precision, threads, FOLDER / "diffusers", CPP_STEPS), FOLDER
         )}
        for precision in ("f16", "f32")
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


def record() -> int:
    """Write what the parts measured as one record; 1 where a target is missed on a processor that it is for."""
    rows = [processor_row(), *install_rows()]
    for part in ("pocket", "starts", "step", "cpp"):
        rows += json.loads((FOLDER / f"{part}.json").read_text())
    print(write_record("providers", rows))
    late = [
        row["library"] for row in rows
        if row["what"] == "step" and row.get("onnxruntime_over_it", 9) < TARGETS.get(row["library"], 0)
    ]  # fmt: skip
    slow = [row["library"] for row in rows if row.get("swap_ms", 0) > MOST_SWAP_MS]
    problems = (late if "avx512_bf16" in rows[0]["flags"] else []) + slow
    if problems:
        print(f"below the target: {', '.join(problems)}", file=sys.stderr)
    return int(bool(problems))


def main() -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="prepare, pocket, starts, step, cpp, record (default: all)")
    parser.add_argument("--short", action="store_true", help="a narrow UNet, two turns, and no record")
    args = parser.parse_args()
    if importlib.util.find_spec("openvino") is None:
        print('OpenVINO is not installed: pip install "perfusion-edge[openvino]"')
        return 0
    threads, turns, model = (
        torch.get_num_threads(),
        2 if args.short else 7,
        "narrow" if args.short else "sd15",
    )
    measured: dict[str, Callable[[], Rows]] = {
        "pocket": partial(pocket_rows, threads, turns), "starts": partial(start_rows, threads, model),
        "step": partial(step_rows, threads, turns, model),
    }  # fmt: skip
    if not args.short:
        measured["cpp"] = partial(cpp_rows, threads, model)
    unknown = set(args.parts) - {"prepare", *measured, "record"}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not args.parts or "prepare" in args.parts:
        prepare(short=args.short)
    for part in [name for name in measured if not args.parts or name in args.parts]:
        rows = measured[part]()
        print(*rows, sep="\n", flush=True)
        (FOLDER / f"{part}.json").write_text(json.dumps(rows))
    if not args.parts and args.short:
        shutil.rmtree(FOLDER)
    if args.short or not ("record" in args.parts or not args.parts):
        return 0
    status = record()
    shutil.rmtree(FOLDER)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
