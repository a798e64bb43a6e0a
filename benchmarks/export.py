"""python benchmarks/export.py [--base sd15] [--precision fp32,fp16,int8] [--cost] [--work DIR]: what an export takes.

Time, peak memory and parity of exporting a model of a published architecture, at its true size and with random
weights, each in a fresh process. With --cost instead what the concept inputs cost a UNet's step against a plain graph
of the same UNet, in pairs of calls that follow one another. Nothing is downloaded.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import ROOT, write_record

EXPORT = """
import json, sys, time
from pathlib import Path
start = [time.perf_counter(), time.process_time()]
stages, last = [], []
def peak():
    status = Path("/proc/self/status").read_text()
    kilobytes = int(status.split("VmHWM:")[1].split()[0])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    return round(kilobytes * 1024 / 1e9, 2)
def tell(stage, done, total):
    now = [time.perf_counter(), time.process_time()]
    if last:
        spent = [round(b - a, 1) for a, b in zip(start, now)]
        stages.append({"stage": last.pop(), "seconds": spent[0], "cpu_seconds": spent[1], "peak_gb": peak()})
        print(stages[-1], file=sys.stderr, flush=True)
    start[:] = now
    last.append(stage)
from perfusion.export import export_bundle
made = export_bundle(sys.argv[1], sys.argv[2], precision=sys.argv[3], opset=int(sys.argv[4]), progress=tell)
print(json.dumps({"stages": stages, "parity": made.parity, "bytes": made.size}))
"""
PAIRS, LATENT, TOKENS = 40, 16, 77
COST_TARGETS = {1: 1.02, 4: 1.03}
PEAK_TARGET_GB = {"sd15": 6.0}


def main() -> int:
    """Make the model, export it, print, record."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        make = "from benchmarks.models.random_model import save_random_model as f; import sys, pathlib; "
        make += "f(sys.argv[1], pathlib.Path(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", make, options.base, str(work / "model")], cwd=ROOT, check=True)
        rows = []
        if options.cost:
            rows = _cost(options.base, work)
            print(*rows, sep="\n")
        for precision in () if options.cost else options.precision.split(","):
            rows.append(_export(options.base, work, precision, options.opset))
            print(rows[-1], flush=True)
            shutil.rmtree(work / "bundle")
    name = "concept-cost" if options.cost else "export"
    name = name if options.base == "sd15" else f"{name}-{options.base}"
    print(write_record(name, rows))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--base", default="sd15", help="a name in tests/data/base_models (default: %(default)s)"
    )
    parser.add_argument("--precision", default="fp32,fp16,int8", help="default: %(default)s")
    parser.add_argument("--opset", type=int, default=20)
    parser.add_argument("--cost", action="store_true", help="measure the cost of the concept inputs")
    parser.add_argument("--work", type=Path, help="where there is room for the model and its bundle")
    return parser.parse_args()


def _export(base: str, work: Path, precision: str, opset: int) -> dict[str, Any]:
    """The record of one export."""
    model, load = work / "model", os.getloadavg()[0]
    start = time.perf_counter()
    told, anonymous = _watched_export(model, work / "bundle", precision, opset)
    seconds = time.perf_counter() - start
    stored = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    row: dict[str, Any] = {
        "base": base,
        "weights": "random, stored in float16",
        "precision": precision,
        "opset": opset,
        "seconds": round(seconds),
        "cpu_seconds": round(sum(stage["cpu_seconds"] for stage in told["stages"])),
        "load_average_before": round(load, 1),
        "stages": told["stages"],
        "peak_gb": max(stage["peak_gb"] for stage in told["stages"]),
        "peak_anonymous_gb": _gb(anonymous),
        "model_gb": _gb(stored),
        "bundle_gb": _gb(told["bytes"]),
        "parity": told["parity"],
    }
    if base in PEAK_TARGET_GB:
        row["target_peak_gb"] = PEAK_TARGET_GB[base]
    return row


def _watched_export(model: Path, bundle: Path, precision: str, opset: int) -> tuple[dict[str, Any], int]:
    """One export in a process of its own: what it tells, and the most memory that was its own, in bytes."""
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(model), str(bundle), precision, str(opset)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    anonymous = 0
    while process.poll() is None:
        anonymous = max(anonymous, _anonymous_memory(process.pid))
        time.sleep(0.1)
    assert process.stdout is not None
    output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the export ended with {process.returncode}")
    told: dict[str, Any] = json.loads(output)
    return told, anonymous


def _anonymous_memory(pid: int) -> int:
    """The resident memory that is a process's own, in bytes: what is mapped from files is not."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = dict(line.split(":", 1) for line in lines)
    return int(found["RssAnon"].split()[0]) * 1024 if "RssAnon" in found else 0


def _gb(count: int) -> float:
    return round(count / 1e9, 2)


def _cost(base: str, work: Path) -> list[dict[str, Any]]:
    """What a step with concepts costs over one of the plain graph, a row for each number of concepts."""
    import numpy as np

    from perfusion.export.source import open_model

    opened = open_model(work / "model")
    sessions = _sessions(opened, work)
    width, text_dim = opened.layers[-1].value_slice.stop, opened.text_dim
    random = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    plain = {
        "sample": normal(2, 4, LATENT, LATENT),
        "timestep": np.full(2, 500, np.float32),
        "encoder_hidden_states": normal(2, TOKENS, text_dim),
    }
    rows = []
    for concepts, target in COST_TARGETS.items():
        gate = np.full((2, TOKENS, concepts), 0.5, np.float32)
        edited = plain | {
            "key_hidden_states": plain["encoder_hidden_states"],
            "key_gate": gate,
            "value_gate": gate,
            "concept_keys": normal(concepts, width),
            "concept_values": normal(concepts, width),
            "regions": np.ones((2, 1, LATENT, LATENT), np.float32),
        }
        ratios = _ratios(sessions, {"plain": plain, "bundle": edited})
        row = {
            "base": base,
            "what": f"a step with {concepts} concept{'s' if concepts > 1 else ''} over one of the plain graph",
            "latent": LATENT,
            "batch": 2,
            "pairs": PAIRS,
            "cpu_time_ratio_median": round(statistics.median(ratios), 3),
            "cpu_time_ratio_quartiles": [round(x, 3) for x in statistics.quantiles(ratios, n=4)[::2]],
            "target": target,
        }
        rows.append(row)
    return rows


def _sessions(opened: Any, work: Path) -> dict[str, Any]:
    """The model's UNet as a plain graph and as a bundle's, opened."""
    import onnxruntime

    from perfusion.base.attention import install
    from perfusion.export.convert import to_onnx
    from perfusion.export.graph_modules import graphs_of, plain_graphs_of
    from perfusion.export.weights import save, store_as_float16

    sessions = {}
    for name, graphs_in in (("plain", plain_graphs_of), ("bundle", graphs_of)):
        if name == "bundle":
            install(opened.unet)
        (graph,) = (graph for graph in graphs_in(opened) if graph.name == "unet")
        path = work / name / "unet.onnx"
        path.parent.mkdir()
        model = to_onnx(graph)
        store_as_float16(model)
        save(model, path)
        sessions[name] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return sessions


def _ratios(sessions: dict[str, Any], feeds: dict[str, dict[str, Any]]) -> list[float]:
    """CPU time of a call of the bundle's graph over that of the plain one, in pairs that follow one another."""

    def seconds(name: str) -> float:
        start = time.process_time()
        sessions[name].run(None, feeds[name])
        return time.process_time() - start

    ratios = []
    for pair in range(PAIRS + 2):
        order = ("plain", "bundle") if pair % 2 else ("bundle", "plain")
        times = {name: seconds(name) for name in order}
        if pair > 1:  # the first calls of a session make its memory
            ratios.append(times["bundle"] / times["plain"])
    return ratios


if __name__ == "__main__":
    raise SystemExit(main())
