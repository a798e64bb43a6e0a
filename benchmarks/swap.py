"""python benchmarks/swap.py: how long it takes to swap one concept for another, from its file to arrays for the UNet.

The file is in the system's cache, as it is when a user goes through a handful of concepts. No model is needed: a
swap touches no graph, so a description of the base model is enough.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from perfusion import Concept
from perfusion.runtime.bank import Bank
from perfusion.runtime.bundle import Bundle, Decoder, Defaults, Layer, TextEncoder, UNet
from perfusion.runtime.schedulers import NoiseModel

TARGET_MS = 1.0
FINGERPRINT = "0" * 64
SIZES = {  # text_dim, and the widths of all cross-attention layers together
    "pocket": (128, 1344),
    "sd15": (768, 12480),
}


def describe(base: str, folder: Path) -> Bundle:
    """A base model's dimensions, without the model."""
    text_dim, width = SIZES[base]
    nowhere = folder / "none"
    return Bundle(
        folder=folder, base=base, base_fingerprint=FINGERPRINT, precision="fp32", text_dim=text_dim, tokenizer=nowhere,
        text_encoder=TextEncoder(
            file=nowhere, hidden_size=text_dim, vocab_size=10, context_length=77,
            bos_token_id=8, eos_token_id=9, pad_token_id=9,
        ),
        unet=UNet(
            file=nowhere, in_channels=4, size_multiple=8,
            layers=(Layer(name="all", key_dim=width, value_dim=width),),
        ),
        decoder=Decoder(file=nowhere, downscale=8, scaling_factor=0.18215),
        key_projections=folder / "key_projections.safetensors",
        noise_model=NoiseModel(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012),
        defaults=Defaults(width=512, height=512, guidance_scale=7.5, num_inference_steps=20),
    )  # fmt: skip


def make_concept(base: str, seed: int, with_keys: bool) -> Concept:
    """A concept of random numbers and of the right size."""
    rng = np.random.default_rng(seed)
    text_dim, width = SIZES[base]
    direction = rng.standard_normal((1, text_dim)).astype(np.float32)
    return Concept(
        token="<cat>", superclass="cat", base=base, base_fingerprint=FINGERPRINT, direction=direction,
        dual=direction / (direction**2).sum(), energy=np.ones(1, np.float32), superclass_encoding=direction,
        embeddings=(direction,), target_values=rng.standard_normal((1, width)).astype(np.float32),
        target_keys=rng.standard_normal((1, width)).astype(np.float32) if with_keys else None,
    )  # fmt: skip


def swap_times(bank: Bank, paths: list[Path], seconds: float = 1.0) -> list[float]:
    """Milliseconds of one swap after another, for about `seconds`."""
    bank.load(Concept.load(paths[0]))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 20:
        path = paths[len(times) % len(paths)]
        began = time.perf_counter()
        bank.unload("<cat>")
        bank.load(Concept.load(path))
        bank.rows(["<cat>"])
        times.append(1000 * (time.perf_counter() - began))
    return times[10:]


def measure(base: str, with_keys: bool, folder: Path) -> dict[str, Any]:
    """One row of the record."""
    text_dim, width = SIZES[base]
    save_file(
        {"key_projections": np.zeros((width, text_dim), np.float16)}, folder / "key_projections.safetensors"
    )
    paths = [folder / f"{index}.safetensors" for index in range(2)]
    for index, path in enumerate(paths):
        make_concept(base, index, with_keys).save(path)
    times = swap_times(Bank(describe(base, folder)), paths)
    return {
        "base": base,
        "keys": "in the file" if with_keys else "derived",
        "file_bytes": paths[0].stat().st_size,
        "swaps": len(times),
        "median_ms": round(statistics.median(times), 4),
        "p95_ms": round(float(np.percentile(times, 95)), 4),
    }


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(base, with_keys, Path(folder)) for base in SIZES for with_keys in (True, False)]
    for row in rows:
        print(
            "{base:8} keys {keys:12} {file_bytes:6} B  median {median_ms:.3f} ms, 95% {p95_ms:.3f} ms".format(
                **row
            )
        )
    print(write_record("swap", rows))
    slow = [row["base"] for row in rows if row["keys"] == "in the file" and row["median_ms"] > TARGET_MS]
    if slow:
        print(f"slower than {TARGET_MS} ms: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
