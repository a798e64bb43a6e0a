# make demo   (or: .venv/bin/python examples/demo.py [FOLDER])
"""The whole way: five pictures of a pink cake become a concept, the model a bundle, the two become new pictures."""

import sys
import time
from pathlib import Path

from PIL import Image

from perfusion.commands import Progress, run
from perfusion.contact_sheet import contact_sheet
from perfusion.export import export_bundle
from perfusion.runtime import Runtime
from perfusion.training import TrainingConfig, train

HERE = Path(__file__).parent
SUBJECT, SUPERCLASS, TOKEN = HERE / "subjects" / "pink-cake", "cake", "<pink-cake>"
SCENES = ("on a beach", "in the snow", "on grass", "in a forest", "on a red background", "at night")


def main() -> int:
    """Train, export and draw; everything goes to the folder given, or build/demo."""
    output = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent / "build" / "demo")
    started = time.monotonic()
    config = TrainingConfig(superclass=SUPERCLASS, token=TOKEN, masks=SUBJECT / "masks", steps=100)
    with Progress(config.steps, f"training {TOKEN}") as progress:
        result = train(
            SUBJECT, config, trial=True, say=print,
            report=lambda step, loss: progress.update(step, loss=f"{loss:.4f}"),
        )  # fmt: skip
    concept = result.concept  # with the strength that suits it
    concept.save(output / "pink-cake.safetensors")
    export_bundle(None, output / "bundle", progress=lambda stage, done, total: print(f"exporting: {stage}"))
    with Runtime(output / "bundle") as runtime:
        runtime.load_concept(output / "pink-cake.safetensors")
        seeds = list(range(len(SCENES)))
        with_concept = runtime.generate([f"a photo of a {TOKEN} {scene}" for scene in SCENES], seed=seeds)
        plain = [f"a photo of a {SUPERCLASS} {scene}" for scene in SCENES]
        without = runtime.generate(plain, seed=seeds)
    training = [Image.open(path).convert("RGB") for path in sorted(SUBJECT.glob("*.png"))]
    blank = Image.new("RGB", training[0].size, "white")
    pictures = [*training, *[blank] * (len(SCENES) - len(training)), *with_concept, *without]
    captions = ["a training picture"] * len(training) + [""] * (len(SCENES) - len(training))
    captions += [f"a {TOKEN} {scene}" for scene in SCENES] + plain
    sheet = output / "sheet.png"
    contact_sheet(pictures, captions, columns=len(SCENES)).save(sheet)
    size = (output / "pink-cake.safetensors").stat().st_size
    print(f"{sheet}: the training pictures, the concept ({size} bytes), the same seeds without it")
    print(f"{time.monotonic() - started:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(run("demo", main))
