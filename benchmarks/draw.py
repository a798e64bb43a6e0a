"""python benchmarks/draw.py: one picture of the embedded model by our runtime and by diffusers, in turns.

The same weights, prompt, steps, guidance and scheduler on the same cores; a pair at a time, so that whatever else the
machine does touches both.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from perfusion.embedded import model_path
from perfusion.runtime import Runtime

PAIRS, STEPS, GUIDANCE = 7, 20, 3.0
REST = 0.5
"""Seconds before each picture: the threads of one engine wait awake for a while, and would slow the other down."""
PROMPT = "a photo of a bus on a beach"


def main() -> int:
    """Draw with both, print, record."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(model_path(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    runtime = Runtime()
    concept = runtime.load_concept("school-bus")
    with_word = PROMPT.replace("a bus", f"a {concept.token}")

    def ours(prompt: str) -> float:
        time.sleep(REST)
        start = time.perf_counter()
        runtime.generate(prompt, seed=0, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
        return time.perf_counter() - start

    def theirs() -> float:
        time.sleep(REST)
        start = time.perf_counter()
        pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
        return time.perf_counter() - start

    ours(PROMPT), theirs()  # the first of each pays for what is set up once
    pairs = [(ours(PROMPT), ours(with_word), theirs()) for _ in range(PAIRS)]
    plain, with_concept, diffusers = ([round(pair[index], 4) for pair in pairs] for index in range(3))
    row = {
        "model": "pocket", "resolution": 128, "steps": STEPS, "threads": torch.get_num_threads(), "pairs": PAIRS,
        "runtime_seconds": statistics.median(plain),
        "runtime_with_concept_seconds": statistics.median(with_concept),
        "diffusers_seconds": statistics.median(diffusers),
        "diffusers_over_runtime": round(statistics.median(d / p for d, p in zip(diffusers, plain, strict=True)), 3),
        "concept_over_plain": round(statistics.median(c / p for c, p in zip(with_concept, plain, strict=True)), 3),
    }  # fmt: skip
    print(row)
    print(write_record("draw", [row]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
