"""python benchmarks/step.py: one step of a UNet of Stable Diffusion 1.5's size, by our graph and by torch, in turns.

The true structure with random weights, which cost the same time as trained ones. Both run the two rows of guidance on
the same cores; ours with one concept, torch as diffusers has it. What they compute is compared first. The graph is
exported anew into build/step (3.4 GB) and needs some 8 GB of memory. --short takes a narrow UNet of the same structure.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.models.hollow import unet_graph
from benchmarks.record import ROOT, peak_memory_mb, write_record
from perfusion.base.attention import installed, layer_table
from perfusion.export.convert import to_onnx
from perfusion.export.weights import save
from perfusion.runtime.compute.onnx_graph import OnnxGraph

CONFIG = ROOT / "tests" / "data" / "base_models" / "sd15.json"
FOLDER = ROOT / "build" / "step"
ROWS, TOKENS, PAIRS = 2, 77, 5
TARGET = 1.3
TOLERANCE = 1e-4  # relative L2
SHORT = {"block_out_channels": (64, 128, 256, 256)}


def build_unet(settings: dict[str, Any]) -> Any:
    """The UNet with weights that keep its activations near 1."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(settings)
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    for name, weight in unet.named_parameters():
        if weight.ndim < 2:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            scale = weight[0].numel() ** -0.5
            flat = noise.repeat(weight.numel() // len(noise) + 1)[: weight.numel()]
            weight.copy_((flat * scale).view_as(weight))
    return unet


def export(unet: Any, path: Path) -> tuple[str, ...]:
    """Write our graph of the UNet; the names of its inputs."""
    graph = unet_graph(unet, [])
    with installed(unet):
        save(to_onnx(graph), path)
    return tuple(end.name for end in graph.inputs)


def feeds(unet: Any, side: int) -> dict[str, np.ndarray]:
    """Noise for every input, with one concept whose gate is closed: what is computed is then torch's own."""
    rng = np.random.default_rng(0)
    widths = layer_table(unet)[-1].key_slice.stop

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    states = normal(ROWS, TOKENS, unet.config.cross_attention_dim)
    return {
        "sample": normal(ROWS, 4, side, side),
        "timestep": np.full(ROWS, 500, np.float32),
        "encoder_hidden_states": states,
        "key_hidden_states": states,
        "key_gate": np.zeros((ROWS, TOKENS, 1), np.float32),
        "value_gate": np.zeros((ROWS, TOKENS, 1), np.float32),
        "concept_keys": normal(1, widths),
        "concept_values": normal(1, widths),
        "regions": np.ones((ROWS, 1, side, side), np.float32),
    }


def main() -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a narrow UNet, two pairs, and no record")
    parser.add_argument(
        "--side", type=int, default=32, help="of the latents: 32 for pictures of 256 pixels (default)"
    )
    args = parser.parse_args()
    settings = json.loads(CONFIG.read_text())["unet"] | (SHORT if args.short else {})
    unet = build_unet(settings)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    names = export(unet, FOLDER / "unet.onnx")
    graph = OnnxGraph(FOLDER / "unet.onnx", names, "out_sample", "cpu", torch.get_num_threads())
    fed = feeds(unet, args.side)
    sample, timestep, states = (
        torch.from_numpy(fed[name]) for name in ("sample", "timestep", "encoder_hidden_states")
    )

    def ours() -> Any:
        return graph(**fed)

    @torch.inference_mode()
    def theirs() -> Any:
        return unet(sample, timestep, states, return_dict=False)[0].numpy()

    def seconds(step: Any) -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    expected = theirs()
    distance = float(np.linalg.norm(ours() - expected) / np.linalg.norm(expected))
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(2 if args.short else PAIRS)]
    row: dict[str, Any] = {
        "model": "narrow" if args.short else "sd15", "parameters": sum(one.numel() for one in unet.parameters()),
        "latents": args.side, "rows": ROWS, "threads": torch.get_num_threads(), "pairs": len(pairs),
        "graph_seconds": round(statistics.median(one for one, _ in pairs), 3),
        "torch_seconds": round(statistics.median(other for _, other in pairs), 3),
        "torch_over_graph": round(statistics.median(other / one for one, other in pairs), 3),
        "target": TARGET, "relative_l2": distance, "peak_memory_mb": peak_memory_mb(),
    }  # fmt: skip
    print(row)
    shutil.rmtree(FOLDER)
    if not distance < TOLERANCE:
        print(f"the graph differs by {distance:.1e}", file=sys.stderr)
        return 1
    if args.short:
        return 0
    print(write_record("step", [row]))
    return 1 if row["torch_over_graph"] < TARGET else 0


if __name__ == "__main__":
    raise SystemExit(main())
