"""python benchmarks/region_step.py: what a reading more costs, and what the fused form of attention would change.

Steps of the embedded UNet and of one of Stable Diffusion 1.5's size, in turns, so that both of a pair meet the same
machine: one reading against the graph of format 1, which knew no regions; two readings against one; and two readings
with one softmax over all tokens, to which log m is added, against the softmax of each reading. Then pictures of two
things by both forms. The graphs are exported anew into build/region_step (10 GB), which takes minutes and some 8 GB of
memory. Ratios count on a quiet machine alone, so the parts may run one by one: `prepare`, `pocket`, `sd15`, `pictures`,
`record`. --short takes tiny UNets, and neither draws nor records.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.models.hollow import unet_graph
from benchmarks.models.region_graphs import first_graph, fused
from benchmarks.record import ROOT, write_record
from benchmarks.step import CONFIG, build_unet
from perfusion.base.attention import installed, layer_table
from perfusion.base.base_model import load_base
from perfusion.bundle.reader import read_bundle
from perfusion.embedded import bundle_path
from perfusion.export.convert import to_onnx
from perfusion.export.graph_modules import Graph
from perfusion.export.weights import save
from perfusion.runtime import GraphCall, MockBackend, Runtime, make_backend
from perfusion.runtime.compute.onnx_graph import OnnxGraph
from recipes.pocket.architecture import build_pipeline

FOLDER = ROOT / "build" / "region_step"
ROWS, TOKENS, PAIRS = 2, 77, {"pocket": 200, "sd15": 7}
SIDES = {"pocket": 16, "sd15": 64}
MOST = {"one reading over format 1": 1.02, "two readings over one": {"sd15": 1.05}}
PROMPTS = (
    "a <pink-cake> and a <gold-hat> on a wooden table",
    "a <school-bus> next to a {tree} on grass",
    "a {cat} and a {teapot} on a table",
    "a <gold-hat> to the right of a <pink-cake> on a beach",
)


def unets(short: bool) -> dict[str, Any]:
    """The UNets by name: the embedded model's own, and one of the true structure with random weights."""
    settings = json.loads(CONFIG.read_text())["unet"]
    if short:
        narrow = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "cross_attention_dim": 32}
        return {
            "pocket": build_pipeline("tiny").unet,
            "sd15": UNet2DConditionModel.from_config(settings | narrow),
        }
    return {"pocket": load_base(None).unet, "sd15": build_unet(settings)}


def feeds(unet: Any, side: int, readings: int) -> dict[str, np.ndarray]:
    """Noise for every input, one concept, and upright bands for the regions."""
    random = np.random.default_rng(0)
    width, tokens = layer_table(unet)[-1].key_slice.stop, readings * TOKENS

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    band = np.arange(side) * readings // side
    maps = np.broadcast_to(band == np.arange(readings)[:, None], (side, readings, side)).swapaxes(0, 1)
    states = normal(ROWS, tokens, unet.config.cross_attention_dim)
    return {
        "sample": normal(ROWS, unet.config.in_channels, side, side),
        "timestep": np.full(ROWS, 500, np.float32),
        "encoder_hidden_states": states,
        "key_hidden_states": states,
        "key_gate": np.full((ROWS, tokens, 1), 0.1, np.float32),
        "value_gate": np.full((ROWS, tokens, 1), 0.1, np.float32),
        "concept_keys": normal(1, width),
        "concept_values": normal(1, width),
        "regions": np.ascontiguousarray(np.broadcast_to(maps, (ROWS, readings, side, side)), np.float32),
    }


def prepare(name: str, unet: Any) -> None:
    """Write the graph of format 1, ours and the fused one, and what each is fed with one reading and with two."""
    side = SIDES[name]
    folder = FOLDER / name
    folder.mkdir(parents=True)
    for readings in (1, 2):
        arrays: Any = feeds(unet, side, readings)
        np.savez(folder / f"{readings}.npz", **arrays)
    graph = unet_graph(unet, [])
    latents = ("batch", unet.config.in_channels, "height", "width")
    sample, *others = graph.inputs
    graph = replace(
        graph,
        inputs=(replace(sample, dims=latents), *others),
        outputs=(replace(graph.outputs[0], dims=latents),),
    )
    for form in ("first", "ours", "fused"):
        with installed(unet), fused(unet, form == "fused"):
            model: Graph = first_graph(graph) if form == "first" else graph
            save(to_onnx(model), folder / f"{form}.onnx")


def opened(name: str, form: str) -> Callable[[int], np.ndarray]:
    """One of the graphs, called with a number of readings."""
    calls = {readings: dict(np.load(FOLDER / name / f"{readings}.npz")) for readings in (1, 2)}
    ends = tuple(calls[1])
    if form == "first":  # which knows no regions, and one timestep for all rows
        ends = tuple(end for end in ends if end != "regions")
        for call in calls.values():
            call["timestep"] = call["timestep"][:1]
    graph = OnnxGraph(FOLDER / name / f"{form}.onnx", ends, "out_sample", "cpu", torch.get_num_threads())

    def step(readings: int) -> np.ndarray:
        return np.asarray(graph(**{end: calls[readings][end] for end in ends}))

    return step


def paired(first: Callable[[], Any], second: Callable[[], Any], pairs: int) -> dict[str, float]:
    """Seconds of both, and the median of the second's over the first's within a pair; which is first changes."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs + 1):
        for which, call in sorted(enumerate((first, second)), reverse=bool(pair % 2)):
            start = time.perf_counter()
            call()
            times[which].append(time.perf_counter() - start)
    ratios = [after / before for before, after in zip(times[0][1:], times[1][1:], strict=True)]
    return {
        "seconds": round(statistics.median(times[1][1:]), 5),
        "over": round(statistics.median(times[0][1:]), 5),
        "ratio": round(statistics.median(ratios), 4),
    }


def step_rows(name: str, pairs: int) -> list[dict[str, Any]]:
    """What steps of a UNet take against one another, and how far their predictions are apart."""
    rows: list[dict[str, Any]] = []
    for what, (first, second) in {
        "one reading over format 1": (("first", 1), ("ours", 1)),
        "two readings over one": (("ours", 1), ("ours", 2)),
        "two readings, fused over exact": (("ours", 2), ("fused", 2)),
    }.items():
        steps = {form: opened(name, form) for form in {first[0], second[0]}}
        before, after = (partial(steps[form], count) for form, count in (first, second))
        row: dict[str, Any] = {
            "model": name,
            "latents": SIDES[name],
            "rows": ROWS,
            "what": what,
            "pairs": pairs,
        }
        rows.append(row | paired(before, after, pairs))
        if first[1] == second[1]:
            expected, other = before(), after()
            rows[-1]["relative_l2"] = float(np.linalg.norm(other - expected) / np.linalg.norm(expected))
        print(rows[-1], flush=True)
    return rows


def picture_distances() -> list[dict[str, Any]]:
    """Of the embedded model's pictures of two things, drawn with the fused graph and with the bundle's own."""
    bundle = bundle_path()
    path = FOLDER / "pocket" / "fused.onnx"
    inputs = read_bundle(bundle).unet_inputs
    graph = OnnxGraph(path, inputs, "out_sample", "cpu", torch.get_num_threads())
    pictures: dict[str, list[np.ndarray]] = {}

    def answer(call: GraphCall) -> Any:
        return {"out_sample": graph(**call.feeds)} if call.graph == "unet" else call.compute()

    backends: dict[str, Any] = {
        "ours": "cpu",
        "fused": MockBackend(
            answer, behind=make_backend(read_bundle(bundle), "cpu", torch.get_num_threads())
        ),
    }
    for form, backend in backends.items():
        with Runtime(bundle, provider=backend) as runtime:
            for concept in ("pink-cake", "gold-hat", "school-bus"):
                runtime.load_concept(concept)
            pictures[form] = [np.asarray(runtime.generate(text, seed=0), np.float64) for text in PROMPTS]
    return [
        {
            "what": "the picture, fused against exact",
            "prompt": text,
            "rmse_of_255": round(float(np.sqrt(np.square(one - other).mean())), 2),
        }
        for text, one, other in zip(PROMPTS, *pictures.values(), strict=True)
    ]


def missed(row: dict[str, Any]) -> bool:
    """Whether a row is above what the project allows itself."""
    most = MOST.get(row["what"], {})
    limit = most.get(row.get("model")) if isinstance(most, dict) else most
    return limit is not None and row["ratio"] > limit


def record() -> int:
    """Write what the parts measured as one record; 1 where something takes longer than it may."""
    rows = [row for part in (*PAIRS, "pictures") for row in json.loads((FOLDER / f"{part}.json").read_text())]
    print(write_record("region_step", rows))
    return int(any(missed(row) for row in rows))


def main() -> int:
    """Export, measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="prepare, pocket, sd15, pictures, record (default: all)")
    parser.add_argument(
        "--short", action="store_true", help="tiny UNets, two pairs, no pictures and no record"
    )
    args = parser.parse_args()
    parts = args.parts or ["prepare", *PAIRS, "pictures", "record"]
    if args.short:
        parts = ["prepare", *PAIRS]
    if "prepare" in parts:
        shutil.rmtree(FOLDER, ignore_errors=True)
        for name, unet in unets(args.short).items():
            prepare(name, unet.eval().requires_grad_(False))
    for name in [name for name in PAIRS if name in parts]:
        rows = step_rows(name, 2 if args.short else PAIRS[name])
        (FOLDER / f"{name}.json").write_text(json.dumps(rows))
    if "pictures" in parts:
        rows = picture_distances()
        print(*rows, sep="\n")
        (FOLDER / "pictures.json").write_text(json.dumps(rows))
    status = record() if "record" in parts else 0
    if args.short or "record" in parts:
        shutil.rmtree(FOLDER)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
