"""python benchmarks/swap.py: how long it takes to swap one concept for another, from its file to arrays for the UNet,
and what the host does for a picture after a bias, a strength or the concept in the prompt has changed.

The file is in the system's cache, as it is when a user goes through a handful of concepts. No model is needed: a
swap touches no graph, so a description of the base model is enough. Texts count as encoded before: an encoding is
kept, and the time of a new one is the text encoder's.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from perfusion import Concept
from perfusion.bundle.description import Bundle, Decoder, Defaults, Layer, TextEncoder, UNet
from perfusion.bundle.noise_model import NoiseModel
from perfusion.bundle.reader import read_bundle
from perfusion.embedded import bundle_path
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.concepts import Bank
from perfusion.runtime.request import Request, make_request
from perfusion.runtime.text.feeds import Feeds
from perfusion.runtime.text.prompt_encoder import PromptEncoder

TARGET_MS = 1.0
TARGET_US = 50.0  # of host work for a picture whose settings changed
FINGERPRINT = "0" * 64
_EMBEDDED = read_bundle(bundle_path(), verify=False)
SIZES = {  # text_dim, and the widths of all cross-attention layers together
    _EMBEDDED.base: (_EMBEDDED.text_dim, sum(layer.value_dim for layer in _EMBEDDED.unet.layers)),
    "sd15": (768, 12480),
}


def describe(base: str, folder: Path) -> Bundle:
    """A base model's dimensions, without the model."""
    text_dim, width = SIZES[base]
    nowhere = folder / "none"
    return Bundle(
        folder=folder, base=base, base_fingerprint=FINGERPRINT, precision="fp32", text_dim=text_dim,
        tokenizer=bundle_path() / "tokenizer.json",
        text_encoders=(
            TextEncoder(
                file=nowhere, hidden_size=text_dim, vocab_size=49408, context_length=77,
                bos_token_id=0, eos_token_id=1, pad_token_id=1,
            ),
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
        start = time.perf_counter()
        bank.unload("<cat>")
        bank.load(Concept.load(path))
        bank.rows(["<cat>"])
        times.append(1000 * (time.perf_counter() - start))
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


class Encoded:
    """In the place of the graphs: random encodings, the same for the same text."""

    def __init__(self, text_dim: int) -> None:
        self._text_dim = text_dim

    def stage(self, stage: str) -> None:
        """Nothing is open."""

    def run(self, name: str, **feeds: Any) -> dict[str, Any]:
        """(1, 77, text_dim), as a text encoder gives them."""
        rng = np.random.default_rng(int(feeds["input_ids"].sum()))
        return {"last_hidden_state": rng.standard_normal((1, 77, self._text_dim)).astype(np.float32)}


def host_times(base: str, folder: Path, seconds: float = 1.0) -> dict[str, float]:
    """Median microseconds from a change to the UNet's inputs for the next picture, by what changed."""
    bundle = describe(base, folder)
    bank, feeds = Bank(bundle), Feeds(bundle)
    prompts = PromptEncoder(bundle, bank, cast(Graphs, Encoded(bundle.text_dim)))
    for index, token in enumerate(("<cat>", "<dog>")):
        bank.load(replace(make_concept(base, index, with_keys=True), token=token))
    requests = [make_request(bundle, f"a photo of {token} on a beach", 0) for token in ("<cat>", "<dog>")]
    changes: dict[str, Callable[[int], Request]] = {
        "bias": lambda turn: _after(bank, requests[0], bias=0.5 + turn % 97 / 200),
        "concept": lambda turn: requests[turn % 2],
        "strength, used before": lambda turn: _after(bank, requests[0], strength=0.5 + turn % 2 / 4),
        "strength, new": lambda turn: _after(bank, requests[0], strength=1 / (2 + turn)),
    }
    medians = {}
    for name, change in changes.items():
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 40:
            start = time.perf_counter()
            request = change(len(times))
            for rows in prompts.rows(request):
                feeds.of(rows, request)
            times.append(1e6 * (time.perf_counter() - start))
        medians[name] = round(statistics.median(times[20:]), 1)
        bank.change("<cat>", strength=1)
    return medians


def _after(bank: Bank, request: Request, **settings: float) -> Request:
    bank.change("<cat>", **settings)
    return request


def main() -> int:
    """Measure every size, print, record."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(base, with_keys, Path(folder)) for base in SIZES for with_keys in (True, False)]
    for row in rows:
        print(
            "{base:8} keys {keys:12} {file_bytes:6} B  median {median_ms:.3f} ms, 95% {p95_ms:.3f} ms".format(
                **row
            )
        )
    with tempfile.TemporaryDirectory() as name:
        host: list[dict[str, Any]] = [
            {"base": base, "host_us": host_times(base, Path(name))} for base in SIZES
        ]
    for row in host:
        print(
            f"{row['base']:8} host work "
            + ", ".join(f"{key} {value} us" for key, value in row["host_us"].items())
        )
    print(write_record("swap", [*rows, *host]))
    slow = [row["base"] for row in rows if row["keys"] == "in the file" and row["median_ms"] > TARGET_MS]
    if slow:
        print(f"slower than {TARGET_MS} ms: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
