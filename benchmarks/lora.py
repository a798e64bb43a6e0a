"""python benchmarks/lora.py: swapping a concept in our runtime beside swapping a LoRA of equal effect in diffusers.

Both begin with a file in the system's cache and end where the next step could be computed. The LoRA changes what a
concept changes, the keys and values of cross-attention in every layer, and has the least rank, 1. Its UNet is built
from the public configuration with empty weights, for loading a LoRA does not compute with them. diffusers does this
with peft (pip install peft). --short swaps twice, for the embedded model only.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.concept_files import CONFIGS, attentions
from benchmarks.record import peak_memory_mb, write_record
from benchmarks.swap import describe, make_concept
from perfusion import Concept
from perfusion.embedded import model_path
from perfusion.runtime.concepts import Bank

SWAPS = 15


def pocket_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(model_path() / "unet")


def sd15_unet() -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**CONFIGS["sd15"])
    return unet.half().to_empty(device="cpu")


UNETS: dict[str, Callable[[], Any]] = {"pocket": pocket_unet, "sd15": sd15_unet}


def write_lora(unet: Any, path: Path, seed: int) -> None:
    """A LoRA of rank 1 on `to_k` and `to_v` of every cross-attention layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in attentions(unet, "attn2").items():
        for projection in ("to_k", "to_v"):
            linear = getattr(layer, projection)
            for part, shape in (("lora_A", (1, linear.in_features)), ("lora_B", (linear.out_features, 1))):
                tensors[f"unet.{name}.{projection}.{part}.weight"] = (
                    torch.randn(shape, generator=generator) * 1e-3
                ).half()
    save_file(tensors, path)


def lora_swaps(unet: Any, paths: list[Path], count: int) -> list[float]:
    """Milliseconds of taking one LoRA out of the UNet and the next one in."""
    times = []
    unet.load_lora_adapter(str(paths[0]), prefix="unet", adapter_name="cat")
    for index in range(count + 1):
        start = time.perf_counter()
        unet.delete_adapters("cat")
        unet.load_lora_adapter(str(paths[(index + 1) % 2]), prefix="unet", adapter_name="cat")
        times.append(1000 * (time.perf_counter() - start))
    return times[1:]


def concept_swaps(bank: Bank, paths: list[Path], count: int) -> list[float]:
    """Milliseconds of taking one concept out of the runtime and the next one in."""
    times = []
    bank.load(Concept.load(paths[0]))
    for index in range(count + 1):
        start = time.perf_counter()
        bank.unload("<cat>")
        bank.load(Concept.load(paths[(index + 1) % 2]))
        bank.rows(["<cat>"])
        times.append(1000 * (time.perf_counter() - start))
    return times[1:]


def measure(base: str, count: int) -> dict[str, Any]:
    """One row of the record."""
    unet = UNETS[base]().requires_grad_(False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loras = [folder / f"lora-{index}.safetensors" for index in range(2)]
        concepts = [folder / f"concept-{index}.safetensors" for index in range(2)]
        for index in range(2):
            write_lora(unet, loras[index], index)
            make_concept(base, index, with_keys=True).save(concepts[index])
        theirs = lora_swaps(unet, loras, count)
        ours = concept_swaps(Bank(describe(base, folder)), concepts, count)
        sizes = {"lora_bytes": loras[0].stat().st_size, "concept_bytes": concepts[0].stat().st_size}
    return {
        "base": base, "layers": len(attentions(unet, "attn2")), "swaps": count, **sizes,
        "lora_ms": round(statistics.median(theirs), 2), "concept_ms": round(statistics.median(ours), 4),
        "lora_over_concept": round(statistics.median(theirs) / statistics.median(ours)),
        "peak_memory_mb": peak_memory_mb(),
    }  # fmt: skip


def main() -> int:
    """Measure, print and record."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--short", action="store_true", help="two swaps for the embedded model, and no record")
    args = given.parse_args()
    if importlib.util.find_spec("peft") is None:
        print("diffusers loads a LoRA with peft, which is not installed: pip install peft", file=sys.stderr)
        return 0
    rows = [measure(base, 2 if args.short else SWAPS) for base in (["pocket"] if args.short else UNETS)]
    for row in rows:
        print(row)
    if not args.short:
        print(write_record("lora", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
