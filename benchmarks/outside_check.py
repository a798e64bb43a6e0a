"""python benchmarks/outside_check.py: our graphs, opened by a tool that knows nothing of us, give diffusers' picture.

The embedded model is exported without its concept inputs and drawn with by optimum-onnx's ORTStableDiffusionPipeline,
and by diffusers from the model's own weights, from the same latents. optimum-onnx wants older packages than ours, so it
has an environment of its own in build/outside: those packages are installed there, and torch and the others that may
be as they are here are shared.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import ROOT, write_record

FOLDER = ROOT / "build" / "outside"
OWN = {
    "optimum-onnx": "0.1.0",
    "optimum": "2.1.0",
    "diffusers": "0.39.0",
    "transformers": "4.57.6",
    "huggingface-hub": "0.36.2",
    "tokenizers": "0.22.2",
}
SMALL = ("httpx", "requests", "importlib_metadata", "hf-xet", "regex", "pyyaml", "fsspec", "filelock")
"""What these import besides, with what it needs in turn."""

PROMPT, STEPS, GUIDANCE_SCALE = "a photo of a cat on a beach", 20, 3.0
LARGEST_DIFFERENCE = 1
"""Levels of 255, between pixels of the two pictures."""

DRAW = """
import sys
import numpy as np
import torch
from diffusers import DDIMScheduler
from optimum.onnxruntime import ORTStableDiffusionPipeline
folder, prompt, steps, scale = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
pipeline = ORTStableDiffusionPipeline.from_pretrained(folder, export=False, local_files_only=True)
pipeline.set_progress_bar_config(disable=True)
latents = torch.from_numpy(np.load(folder + "/latents.npy"))
made = pipeline(prompt, num_inference_steps=steps, guidance_scale=scale, latents=latents, output_type="np")
np.save(folder + "/picture.npy", made.images)
"""


def main() -> int:
    """Export, draw twice, compare, record; fails where the pictures differ."""
    python = _environment()
    plain = FOLDER / "plain"
    reference = _export(plain)
    arguments = [str(plain), PROMPT, str(STEPS), str(GUIDANCE_SCALE)]
    subprocess.run([str(python), "-W", "ignore", "-c", DRAW, *arguments], check=True)
    picture = np.load(plain / "picture.npy")
    levels = np.abs(np.rint(picture * 255) - np.rint(reference * 255))
    row: dict[str, Any] = {
        "what": "ORTStableDiffusionPipeline with our plain export of the embedded model, against diffusers",
        "packages": OWN,
        "prompt": PROMPT,
        "steps": STEPS,
        "relative_l2": float(f"{np.linalg.norm(picture - reference) / np.linalg.norm(reference):.1e}"),
        "largest_difference_of_255": int(levels.max()),
        "target_largest_difference_of_255": LARGEST_DIFFERENCE,
    }
    print(row)
    if not levels.max() <= LARGEST_DIFFERENCE:
        raise SystemExit("the pictures differ")
    print(write_record("outside-check", [row]))
    return 0


def _environment() -> Path:
    """The Python of the environment with optimum-onnx, made when it is not there."""
    folder = FOLDER / "environment"
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    marker = folder / "complete"
    if not marker.exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        pinned = [f"{name}=={version}" for name, version in OWN.items()]
        for packages in (["--no-deps", *pinned], list(SMALL)):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        paths = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        # after the environment's own packages on the path, so that those win
        (Path(paths.stdout.strip()) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        marker.touch()
    return python


def _export(plain: Path) -> Any:
    """Write the embedded model as optimum lays out its exports; returns diffusers' picture, (1, height, width, 3)."""
    import torch

    from perfusion.embedded import model_path
    from perfusion.export.convert import to_onnx
    from perfusion.export.graph_modules import plain_graphs_of
    from perfusion.export.source import open_model
    from perfusion.export.weights import save, store_as_float16

    shutil.rmtree(plain, ignore_errors=True)
    for graph in plain_graphs_of(open_model(None)):
        folder = plain / graph.name
        folder.mkdir(parents=True)
        model = to_onnx(graph)
        store_as_float16(model)
        save(model, folder / "model.onnx")
        part = "vae" if graph.name.startswith("vae") else graph.name
        shutil.copy(model_path() / part / "config.json", folder)
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(model_path() / part, plain / part)
    index = json.loads((model_path() / "model_index.json").read_text())
    # the older package's other one reads no tokenizer.json
    index["tokenizer"] = ["transformers", "CLIPTokenizerFast"]
    (plain / "model_index.json").write_text(json.dumps(index))
    channels = json.loads((model_path() / "unet" / "config.json").read_text())["in_channels"]
    latents = torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    np.save(plain / "latents.npy", latents.numpy())
    return _draw_with_diffusers(model_path(), latents)


def _draw_with_diffusers(model: Path, latents: Any) -> Any:
    """The picture of a diffusers folder from these latents, (1, height, width, 3)."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, local_files_only=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE_SCALE, latents=latents, output_type="np"
    )
    return made.images


if __name__ == "__main__":
    raise SystemExit(main())
