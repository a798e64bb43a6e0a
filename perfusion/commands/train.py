"""perfusion-train: a few pictures in, a concept file out."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from perfusion.commands import Progress, parser, run

NAME = "perfusion-train"


def _parser() -> argparse.ArgumentParser:
    made = parser(NAME, "Teach a frozen text-to-image model one concept from a few pictures.")
    made.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder with pictures of one object"
    )
    made.add_argument("--superclass", required=True, help='what kind of thing they show: "cat", "teddy bear"')
    made.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="concept file to write (.safetensors)"
    )
    made.add_argument(
        "--model", type=Path, metavar="DIR", help="diffusers folder (default: the embedded pocket model)"
    )
    made.add_argument(
        "--token", default="", help='the new word (default: the superclass in brackets, "<cat>")'
    )
    made.add_argument(
        "--rows", type=int, default=1, metavar="N", help="placeholder tokens of the concept (default 1)"
    )
    made.add_argument(
        "--masks",
        default="auto",
        metavar="auto|alpha|none|DIR",
        help="where the object is (default auto: alpha, if any)",
    )
    made.add_argument("--no-flip", action="store_true", help="never mirror the pictures")
    made.add_argument(
        "--captions", type=Path, metavar="FILE", help="captions for the second moment, one a line"
    )
    made.add_argument("--steps", type=int, default=400, metavar="N", help="training steps (default 400)")
    made.add_argument("--batch-size", type=int, default=16, metavar="N", help="samples a step (default 16)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    made.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    made.add_argument("--storage", default="float16", choices=("float16", "float32"))
    made.add_argument("--json", action="store_true", help="print what was done as JSON")
    return made


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(NAME, lambda: _train(_parser().parse_args(argv)))


def _train(args: argparse.Namespace) -> int:
    _check_output(args.output)
    from perfusion.training.config import TrainingConfig

    config = TrainingConfig(
        superclass=args.superclass, token=args.token, rows=args.rows, steps=args.steps, batch_size=args.batch_size,
        seed=args.seed, masks=args.masks, flip=not args.no_flip, captions=args.captions, device=args.device,
        precision=args.precision,
    )  # fmt: skip
    from perfusion.training.train import train_concept

    def say(line: str) -> None:
        if not args.quiet:
            print(f"{NAME}: {line}", file=sys.stderr, flush=True)

    started = time.monotonic()
    average = 0.0
    progress = Progress(config.steps, f"training {config.token}", args.quiet, start=1)
    with ExitStack() as stack:

        def report(step: int, loss: float) -> None:
            nonlocal average
            if step == 1:  # the clock starts here: the model is loaded and the pictures are encoded
                stack.enter_context(progress)
            average = loss if step == 1 else 0.95 * average + 0.05 * loss
            progress.update(step, loss=f"{average:.4f}")

        concept = train_concept(args.images, config, model=args.model, report=report, say=say)
    concept.save(args.output, storage=args.storage)
    seconds, size = time.monotonic() - started, args.output.stat().st_size
    if args.json:
        import json

        facts = {
            "output": str(args.output), "bytes": size, "token": concept.token, "superclass": concept.superclass,
            "base": concept.base, "steps": config.steps, "seconds": round(seconds, 2), "loss": round(average, 5),
        }  # fmt: skip
        print(json.dumps(facts))
    else:
        print(
            f"{args.output}: {concept.token} is a {concept.superclass}; {size / 1000:.1f} kB, {seconds:.0f} s"
        )
    return 0


def _check_output(path: Path) -> None:
    """Refuse now what would fail after minutes of training."""
    import os

    from perfusion.errors import TrainingError

    if path.is_dir():
        raise TrainingError(f"{path} is a folder; --output expects a file name, such as cat.safetensors")
    if path.exists() and not path.is_file():
        raise TrainingError(
            f"{path} is not an ordinary file; --output expects a file name, such as cat.safetensors"
        )
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise TrainingError(f"{path} cannot be written: {folder} is not a folder that you may write to")


if __name__ == "__main__":
    sys.exit(main())
