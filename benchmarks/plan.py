"""python benchmarks/plan.py: how near the memory plan and the time estimate are to what is measured.

Graphs are opened and run by onnxruntime on one thread in a fresh process each, with the runtime's own settings: the
peak is the process's (VmHWM) less what it was before the first session, and the time the least CPU time of some runs.
The middle-sized UNet has random weights and is exported first, which takes two minutes. What fits on which device is
computed by benchmarks/fitting.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import ROOT, write_record
from perfusion.bundle.call_size import CallSize
from perfusion.devices.planning.latency import graph_seconds
from perfusion.devices.planning.memory_plan import LIBRARY, Workload, graph_costs, graph_sizes, open_size
from perfusion.devices.profiles import processor_profile
from perfusion.embedded import bundle_path

RUNS = 6
MIB, GIB = 1 << 20, 1 << 30
MEASURE = """
import json, sys, time
import numpy as np
from pathlib import Path
from perfusion.onnx_runtime import import_onnxruntime
from perfusion.runtime.compute.onnx_graph import OnnxGraph

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

import_onnxruntime("")
path, sizes, runs = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
random = np.random.default_rng(0)
before = peak()
graph = OnnxGraph(path, json.loads(sys.argv[4]), sys.argv[5], "cpu", 1)
feeds = {}
for name, dims in json.loads(sys.argv[4]).items():
    shape = [sizes.get(dim, dim) for dim in dims]
    feeds[name] = np.zeros(shape, np.int64) if name == "input_ids" else random.normal(size=shape).astype("f4") * 0.1
opened, seconds = peak() - before, []
for _ in range(runs):
    start = time.process_time()
    graph.run(**feeds)
    seconds.append(time.process_time() - start)
print(json.dumps({"opened": opened, "peak": peak() - before, "seconds": min(seconds)}))
"""


def cases(middle: Path) -> Iterator[tuple[str, str, Path, int, int]]:
    """A name, the graph's name, its file, the side in latents and the rows."""
    pocket = bundle_path()
    for side, rows in ((16, 1), (16, 2), (32, 2), (32, 8), (64, 2), (96, 1)):
        yield "pocket", "unet", pocket / "unet.onnx", side, rows
    for side in (16, 32, 64, 96):
        yield "pocket", "vae_decoder", pocket / "vae_decoder.onnx", side, 1
    for side in (16, 64):
        yield "pocket", "vae_encoder", pocket / "vae_encoder.onnx", side, 1
    yield "pocket", "text_encoder", pocket / "text_encoder.onnx", 1, 1
    for side, rows in ((16, 2), (32, 2), (48, 2), (64, 2)):
        yield "random, 105 M", "unet", middle, side, rows


def measure(name: str, path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Opened, peak (bytes) and seconds, in a process of its own."""
    from perfusion.devices.graph_reader.onnx_file import read_graph

    graph = read_graph(path)
    inputs = {value.name: list(value.dims) for value in graph.inputs}
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), json.dumps(sizes), str(RUNS), json.dumps(inputs),
         graph.outputs[0].name],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def compared(label: str, name: str, path: Path, side: int, rows: int) -> dict[str, Any]:
    """One measurement beside what the plan says."""
    workload = Workload(
        size=CallSize(width=8 * side, height=8 * side, batch=rows, guided=False),
        precision="fp32", own_precision="fp32", downscale=8, step=8,
    )  # fmt: skip
    sizes = graph_sizes(name, workload)
    measures = measure(name, path, sizes)
    costs = graph_costs(path, name, workload)
    planned = LIBRARY + open_size(costs) + costs.arena.touched
    core = processor_profile(cores=1, memory=8 * GIB)
    seconds = graph_seconds(path, name, workload, core)
    return {
        "what": f"{label} {name}, {side}×{side} latents, {rows} rows",
        "peak_mib": round(measures["peak"] / MIB, 1),
        "planned_mib": round(planned / MIB, 1),
        "error": round(planned / measures["peak"] - 1, 3),
        "live_mib": round(costs.activations / MIB, 1),
        "seconds": round(measures["seconds"], 5),
        "estimated_seconds": round(seconds, 5),
        "seconds_error": round(seconds / measures["seconds"] - 1, 3),
    }


def export_middle(folder: Path) -> Path:
    """A UNet of SD1.5's structure with 105 M random parameters."""
    import onnx_ir as ir
    import torch
    from diffusers import UNet2DConditionModel

    from benchmarks.models.hollow import unet_graph
    from perfusion.base.attention import installed
    from perfusion.export.convert import to_onnx

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(160, 320, 512, 512),
        layers_per_block=1,
        cross_attention_dim=768,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    with installed(unet):
        model = to_onnx(unet_graph(unet.eval().requires_grad_(False), [{}]))
    ir.save(model, folder / "unet.onnx", external_data="unet.onnx.data")
    return folder / "unet.onnx"


def main() -> int:
    """Measure, plan, and write the record."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(export_middle(Path(folder))):
            rows.append(compared(*case))
            print(rows[-1], flush=True)
    print(write_record("plan", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
