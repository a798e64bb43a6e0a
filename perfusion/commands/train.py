"""perfusion-train: a few pictures in, a concept file out."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.commands import Progress, check_outputs, parser, run, say
from perfusion.commands.model_arguments import add_model_arguments, model_options
from perfusion.errors import TrainingError
from perfusion.files import writing

if TYPE_CHECKING:
    from perfusion.training.config import TrainingConfig
    from perfusion.training.trainer import TrainingResult
    from perfusion.training.work_folder import WorkFolder

NAME = "perfusion-train"


def _parser() -> argparse.ArgumentParser:
    command = parser(NAME, "Teach a frozen text-to-image model one concept from a few pictures.")
    _add_what(command)
    _add_how(command.add_argument_group("how it learns"))
    _add_where(command.add_argument_group("memory and speed"))
    _add_kept(command.add_argument_group("what is kept"))
    return command


def _add_what(group: Any) -> None:
    add = group.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="folder with pictures of one object")
    add("--superclass", required=True, help='what kind of thing they show: "cat", "teddy bear"')
    add(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="concept file to write, .safetensors, or .png for a picture with the concept inside",
    )
    add_model_arguments(group)
    add("--token", default="", help='the new word (default: the superclass in brackets, "<cat>")')
    add("--rows", type=int, default=1, metavar="N", help="placeholder tokens of the concept (default 1)")
    add(
        "--masks",
        default="auto",
        metavar="auto|alpha|clipseg|none|DIR",
        help="where the object is (default auto: alpha, or else the model's own attention to the superclass)",
    )
    add("--segmenter", type=Path, metavar="DIR", help="folder of a CLIPSeg model, for --masks clipseg")
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mirror half of the prepared pictures; off for lettering and other asymmetric objects",
    )
    add("--json", action="store_true", help="print what was done as JSON")


def _add_how(group: Any) -> None:
    add = group.add_argument
    add("--steps", type=int, default=400, metavar="N", help="training steps (default 400)")
    add("--batch-size", type=int, default=16, metavar="N", help="samples a step (default 16)")
    add("--seed", type=int, default=0)
    add(
        "--gradient",
        default="ema",
        choices=("ema", "detach", "straight_through"),
        help="what the loss sees of the concept's direction (default ema: its 1 %% share)",
    )
    add(
        "--captions",
        type=Path,
        metavar="FILE",
        help="captions for the second moment, one a line (default: those of the model, or our own)",
    )
    add("--count-padding", action="store_true", help="count the captions' padding into the second moment too")
    add(
        "--select",
        default="auto",
        choices=("auto", "last"),
        help="which snapshot becomes the concept (default auto: the best one, where a scorer is at hand)",
    )
    add("--scorer", type=Path, metavar="DIR", help="folder of the scorer: a CLIP model, or ONNX graphs")


def _add_where(group: Any) -> None:
    add = group.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    add(
        "--weights",
        default="auto",
        choices=("auto", "fp32", "half"),
        help="what the frozen UNet is held in (default auto: half on a GPU that computes in 16 bits)",
    )
    add("--accumulate", type=int, default=1, metavar="N", help="work a batch off in N parts (default 1)")
    add("--checkpointing", action="store_true", help="less memory, slower: for cards of 8 to 12 GB")


def _add_kept(group: Any) -> None:
    add = group.add_argument
    add("--storage", default="float16", choices=("float16", "float32", "int8"))
    add("--no-keys", action="store_true", help="leave out the keys, which a runtime can derive")
    add(
        "--save-every",
        type=int,
        default=50,
        metavar="N",
        help="steps between snapshots, and between saved states (default 50)",
    )
    add("--resume", action="store_true", help="go on with the training that was interrupted")
    add("--keep-snapshots", action="store_true", help="keep the snapshots, in FILE.work/")
    add(
        "--sheet",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="try the concept out: a verdict, and FILE.sheet.png with what was learned from and what is drawn",
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(NAME, lambda: _train(_parser().parse_args(argv)))


def _train(args: argparse.Namespace) -> int:
    if args.output.suffix.lower() not in ("", ".safetensors", ".png"):
        raise TrainingError(
            f"{args.output} is neither a .safetensors file nor a .png picture with the concept inside; name one."
        )
    pictures = args.images.iterdir() if args.images.is_dir() else ()
    check_outputs([("--output", args.output)], sources := [("--images", path) for path in pictures])
    sheet = _sheet_path(args.output) if args.sheet else None
    check_outputs([("--sheet", sheet)], sources)
    config = _options(args)
    from perfusion.training.parallel import opened
    from perfusion.training.work_folder import WorkFolder

    started, work = time.monotonic(), WorkFolder(args.output)
    with opened() as here, work.locked() if here.main else nullcontext():
        result = _learn(args, config, work)
        if not here.main:
            return 0
        result.concept.save(args.output, args.storage, keys=not args.no_keys, picture=result.picture)
        if sheet is not None and result.trial is not None:
            with writing(sheet) as file:
                result.trial.sheet.save(file, "PNG", optimize=True)
        work.finish(keep=args.keep_snapshots)
    _report(args, config, result, time.monotonic() - started)
    return 0


def _sheet_path(output: Path) -> Path:
    """cat.sheet.png for cat.safetensors and for cat.png."""
    return output.with_name(f"{output.stem if output.suffix else output.name}.sheet.png")


def _options(args: argparse.Namespace) -> TrainingConfig:
    from perfusion.training.config import TrainingConfig

    return TrainingConfig(
        superclass=args.superclass, token=args.token, rows=args.rows, steps=args.steps, batch_size=args.batch_size,
        seed=args.seed, masks=args.masks, segmenter=args.segmenter, flip=args.flip, captions=args.captions,
        device=args.device, precision=args.precision, weights=args.weights, count_padding=args.count_padding,
        accumulate=args.accumulate, checkpointing=args.checkpointing, direction_gradient=args.gradient,
        save_every=args.save_every, select=args.select, scorer=args.scorer,
    )  # fmt: skip


def _learn(args: argparse.Namespace, config: TrainingConfig, work: WorkFolder) -> TrainingResult:
    """Train, with progress; an interruption tells how to go on."""
    from perfusion.training import train

    def tell(line: str) -> None:
        if not args.quiet:
            say(f"{NAME}: {line}")

    try:
        with Progress(config.steps, f"training {config.token}", args.quiet) as progress:
            return train(
                args.images, config, model=args.model, model_config=args.config, model_options=model_options(args),
                say=tell,
                report=lambda step, loss: progress.update(step, loss=f"{loss:.4f}"),
                work=work, resume=args.resume, picture=args.output.suffix.lower() == ".png", trial=args.sheet,
            )  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        if (reached := work.last_step()) is not None:
            say(
                f"{NAME}: step {reached} of {config.steps} is kept in {work.path}; the same command with --resume goes "
                "on from there"
            )
        raise


def _report(args: argparse.Namespace, config: TrainingConfig, result: TrainingResult, seconds: float) -> None:
    """What was done, on stdout; the table of the snapshots goes to stderr, where the progress was."""
    concept, size = result.concept, args.output.stat().st_size
    if args.json:
        import json

        facts: dict[str, Any] = {
            "output": str(args.output), "bytes": size, "token": concept.token, "superclass": concept.superclass,
            "base": concept.base, "steps": config.steps, "seconds": round(seconds, 2), "loss": round(result.loss, 5),
        }  # fmt: skip
        if result.selection:
            facts["chosen_step"] = result.selection.best.step
            facts["choice"] = result.selection.why
            facts["snapshots"] = json.loads(result.selection.to_json())
        if result.trial:
            facts["verdict"] = result.trial.as_dict()
            facts["sheet"] = str(_sheet_path(args.output))
        print(json.dumps(facts))
        return
    chosen = ""
    if result.selection:
        chosen = f"step {result.selection.best.step} of {config.steps}, "
        if not args.quiet:
            print(result.selection.table(), file=sys.stderr)
    kilobytes = size / 1000
    print(
        f"{args.output}: {concept.token} is a {concept.superclass}; {chosen}{kilobytes:.1f} kB, {seconds:.0f} s"
    )
    if result.trial:
        print(f"{_sheet_path(args.output)}: {result.trial.sentence}")


if __name__ == "__main__":
    sys.exit(main())
