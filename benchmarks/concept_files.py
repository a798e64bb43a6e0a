"""python benchmarks/concept_files.py: how large a concept file is beside its alternatives, and how fast it is read.

Every file is really written, with random numbers in the shapes of the true Stable Diffusion 1.5 and XL; a fine-tuned
UNet of several gigabytes is counted instead, header and all, where it would take too much of the disk. The models are
built without weights from their public configurations, so nothing is needed but diffusers. --record keeps the result.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from perfusion import Concept
from perfusion.concept.storage import STORAGES

RANK = 4  # of the LoRA: diffusers' own default
LOAD_TARGET_MS = {"sd15": 1.0, "sdxl": 5.0}
SIZE_TARGETS = {  # bytes: float16 with keys, float16, int8
    "sd15": {("float16", True): 60_000, ("float16", False): 35_000},
    "sdxl": {("int8", False): 100_000},
}
COMMON = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {
        **COMMON, "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "sdxl": {
        **COMMON, "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}  # fmt: skip
HIDDEN = {"sd15": (768,), "sdxl": (768, 1280)}
FACTS = {"batch_size": "16", "pictures": "5", "seed": "0", "steps": "400"}


def build_unet(base: str) -> Any:
    """The true UNet without its weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIGS[base])


def attentions(unet: Any, kind: str) -> dict[str, Any]:
    """The attention layers of the transformer blocks by name: "attn1" reads the picture, "attn2" the prompt."""
    return {name: module for name, module in unet.named_modules() if name.endswith(f".{kind}")}


def random_half(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).half()


def textual_inversion(base: str, unet: Any) -> dict[str, torch.Tensor]:
    """One vector for each text encoder, float32 as diffusers' training script saves it."""
    if base == "sd15":
        return {"<cat>": torch.randn(1, 768)}
    return {"clip_l": torch.randn(1, 768), "clip_g": torch.randn(1, 1280)}


def lora(base: str, unet: Any) -> dict[str, torch.Tensor]:
    """Rank 4 on the four projections of every attention layer, in the names that diffusers saves."""
    tensors = {}
    for kind in ("attn1", "attn2"):
        for name, attention in attentions(unet, kind).items():
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                outs, ins = attention.get_submodule(part).weight.shape
                tensors[f"unet.{name}.{part}.lora_A.weight"] = random_half(RANK, ins)
                tensors[f"unet.{name}.{part}.lora_B.weight"] = random_half(outs, RANK)
    return tensors


def custom_diffusion(base: str, unet: Any) -> dict[str, torch.Tensor]:
    """The key and value matrices of every cross-attention layer, in the names that diffusers saves, and the word."""
    tensors = textual_inversion(base, unet)
    for name, attention in attentions(unet, "attn2").items():
        for part in ("to_k", "to_v"):
            weight = attention.get_submodule(part).weight
            tensors[f"{name}.processor.{part}_custom_diffusion.weight"] = random_half(*weight.shape)
    return tensors


ALTERNATIVES: dict[str, Callable[[str, Any], dict[str, torch.Tensor]]] = {
    "textual inversion": textual_inversion,
    f"LoRA, rank {RANK}": lora,
    "Custom Diffusion": custom_diffusion,
}


def counted_unet(unet: Any) -> int:
    """Bytes of the whole UNet as a float16 safetensors file: 8, its header, its numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in sorted(unet.state_dict().items()):
        begin, end = end, end + 2 * weight.numel()
        header[name] = {"dtype": "F16", "shape": list(weight.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + end


def dreambooth(unet: Any, folder: Path) -> tuple[int, str]:
    """The size of a fine-tuned UNet in float16, written where there is ten times the room, otherwise counted."""
    size = counted_unet(unet)
    if shutil.disk_usage(folder).free < 10 * size:
        return size, "counted"
    path = folder / "unet.safetensors"
    weights = {
        name: torch.zeros(weight.shape, dtype=torch.float16) for name, weight in unet.state_dict().items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    size = path.stat().st_size
    path.unlink()
    return size, "written"


def make_concept(base: str, unet: Any) -> Concept:
    """A concept of random numbers in the base's shapes, with the metadata of a usual training."""
    rng = np.random.default_rng(0)

    def row(width: int) -> np.ndarray:
        return rng.standard_normal((1, width)).astype(np.float32)

    layers = attentions(unet, "attn2").values()
    direction = row(CONFIGS[base]["cross_attention_dim"])
    return Concept(
        token="<teddy-bear>", superclass="teddy bear", base=base, base_fingerprint="0" * 64, direction=direction,
        dual=direction / (direction**2).sum(), energy=np.ones(1, np.float32), superclass_encoding=direction,
        embeddings=tuple(row(hidden) for hidden in HIDDEN[base]),
        target_values=row(sum(layer.to_v.out_features for layer in layers)),
        target_keys=row(sum(layer.to_k.out_features for layer in layers)),
        created_with="perfusion-edge 0.1.0", training=FACTS,
    )  # fmt: skip


def load_ms(path: Path, seconds: float = 0.5) -> float:
    """The median time of reading a concept file that is in the system's cache."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 20:
        start = time.perf_counter()
        Concept.load(path)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def measure(base: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of one base model: our storages, then the alternatives."""
    unet, rows = build_unet(base), []
    concept = make_concept(base, unet)
    for storage in STORAGES:
        for keys in (True, False):
            path = folder / "concept.safetensors"
            concept.save(path, storage, keys=keys)
            row = {"base": base, "what": f"concept, {storage}", "keys": "in the file" if keys else "derived"}
            target = SIZE_TARGETS[base].get((storage, keys))
            rows.append({**row, "bytes": path.stat().st_size, "how": "written", "load_ms": round(load_ms(path), 3),
                         **({"target_bytes": target} if target else {})})  # fmt: skip
    for what, make in ALTERNATIVES.items():
        path = folder / "other.safetensors"
        save_file(make(base, unet), path)
        rows.append({"base": base, "what": what, "bytes": path.stat().st_size, "how": "written"})
        path.unlink()
    size, how = dreambooth(unet, folder)
    rows.append({"base": base, "what": "DreamBooth, the UNet in float16", "bytes": size, "how": how})
    return rows


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What is larger or slower than it should be."""
    names = {id(row): f"{row['base']} {row['what']}, keys {row.get('keys')}" for row in rows}
    large = [names[id(row)] for row in rows if row["bytes"] > row.get("target_bytes", row["bytes"])]
    slow = [names[id(row)] for row in rows if row.get("load_ms", 0) > LOAD_TARGET_MS[row["base"]]]
    return [f"too large: {name}" for name in large] + [f"too slow: {name}" for name in slow]


def main() -> int:
    """Write and load every size; a record with --record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/records")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for base in CONFIGS for row in measure(base, Path(folder))]
    for row in rows:
        keys, load = row.get("keys", ""), f"{row['load_ms']:.3f} ms" if "load_ms" in row else ""
        print(f"{row['base']:5} {row['what']:32} {keys:12} {row['bytes']:14,} B {row['how']:8} {load}")
    if arguments.record:
        print(write_record("concept_files", rows))
    for line in failures(rows):
        print(line, file=sys.stderr)
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
