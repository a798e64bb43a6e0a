"""perfusion-train: a few pictures in, a concept file out; or a list of trainings, on one device or several."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.commands import Progress, check_outputs, parser, run, say
from perfusion.errors import TrainingError
from perfusion.training.training_options import add_training_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perfusion.training.training_job import TrainingJob, TrainingReport

NAME = "perfusion-train"


def _parser() -> argparse.ArgumentParser:
    command = parser(NAME, "Teach a frozen text-to-image model one concept from a few pictures.")
    add_training_options(command)
    again = command.add_argument_group("what was interrupted").add_argument
    again("--resume", action="store_true", help="go on with the training that was interrupted")
    again("--start-over", action="store_true", help="drop what is kept of it (default: ask)")
    many = command.add_argument_group("many trainings").add_argument
    many(
        "--jobs",
        type=Path,
        metavar="LIST",
        help="a .csv or .jsonl file, one training a row: its columns are these options without dashes, images and "
        "superclass needed, paths relative to the list; --output is the folder to write to",
    )
    many(
        "--devices",
        metavar="D,D",
        help="with --jobs: train on all of these at once, such as cuda:0,cuda:1 (default: on --device)",
    )
    many("--skip-existing", action="store_true", help="with --jobs: leave out rows whose output is there")
    command.add_argument(
        "--write-masks", type=Path, metavar="DIR",
        help="train nothing: write the masks that would be found, to look at, to paint over and to give to --masks",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print what was done as JSON")
    return command


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(NAME, lambda: _train(argv))


def _train(argv: list[str] | None) -> int:
    command = _parser()
    args = command.parse_args(argv)
    needed: tuple[str, ...] = ("images", "superclass")
    if args.write_masks is None:
        needed = ("output",) if args.jobs else (*needed, "output")
    missing = [f"--{name}" for name in needed if getattr(args, name) is None]
    if missing:
        command.error(f"the following arguments are required: {', '.join(missing)}")
    if args.resume and args.start_over:
        command.error("--resume and --start-over exclude each other")
    if not args.jobs and (args.devices or args.skip_existing):
        command.error("--devices and --skip-existing go with --jobs")
    if args.write_masks is not None:
        if args.jobs or args.resume or args.start_over:
            command.error("--write-masks trains nothing; leave --jobs, --resume and --start-over out")
        return _write_masks(args)
    if args.jobs:
        from perfusion.commands.train_list import train_list

        if args.images or args.superclass:
            command.error(
                "--jobs has the rows' own images and superclass; leave --images and --superclass out"
            )
        return train_list(args)
    return _train_alone(args)


def _write_masks(args: argparse.Namespace) -> int:
    import json

    from perfusion.base.model_arguments import model_options
    from perfusion.training.mask_files import write_masks
    from perfusion.training.training_options import config_of

    covers = write_masks(
        args.images, args.write_masks, config_of(args), model=args.model, model_config=args.config,
        model_options=model_options(args),
    )  # fmt: skip
    if args.json:
        print(
            json.dumps(
                {"masks": str(args.write_masks), "covers": {name: round(c, 4) for name, c in covers.items()}}
            )
        )
        return 0
    for name, cover in covers.items():
        print(f"{args.write_masks / Path(name).stem}.png: {cover:.0%} of {name}")
    return 0


def _train_alone(args: argparse.Namespace) -> int:
    from perfusion.training.training_job import TrainingJob

    job = TrainingJob.of(args)
    pictures = args.images.iterdir() if args.images.is_dir() else ()
    sources = [("--images", path) for path in pictures]
    check_outputs([("--output", job.output)], sources)
    check_outputs([("--sheet", job.sheet_path)], sources)
    if job.log_losses == "csv":
        check_outputs([("--log-losses", job.losses_path)], sources)
    if args.resume and job.is_done():
        _print_done(args, job)
        return 0
    if not args.resume:
        args.resume = ask_to_resume([job], args)
    report = _learn(args, job)
    if report is not None:
        _print_report(args, report)
    return 0


def ask_to_resume(jobs: Sequence[TrainingJob], args: argparse.Namespace) -> bool:
    """Whether interrupted trainings of these outputs are to go on. Somebody at a terminal is asked; what was kept is
    dropped for nobody else but who said --start-over.

    Raises:
        TrainingError: something is kept, and nobody says what is to become of it.
    """
    steps = {job.output: step for job in jobs if (step := job.kept_step()) is not None}
    if not steps or args.start_over:
        return False
    first, count = next(iter(steps.items()))
    kept = f"{first}: an unfinished training is kept, of step {count}"
    kept += f", and {len(steps) - 1} more" if len(steps) > 1 else ""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise TrainingError(f"{kept}. Give --resume to go on with it, or --start-over to drop it.")
    say(f"{NAME}: {kept}")
    while True:
        sys.stderr.write("Go on with it (g), start over (s) or quit (q)? ")
        sys.stderr.flush()
        answer = sys.stdin.readline().strip().lower()
        if answer[:1] in ("g", "s"):
            return answer.startswith("g")
        if answer[:1] in ("q", ""):
            raise KeyboardInterrupt


def _learn(args: argparse.Namespace, job: TrainingJob) -> TrainingReport | None:
    """Train, with progress; an interruption tells how to go on. None in the processes that only help."""
    from perfusion.training import train
    from perfusion.training.loss_log import open_loss_log
    from perfusion.training.parallel import opened
    from perfusion.training.training_job import finish
    from perfusion.training.work_folder import WorkFolder

    def tell(line: str) -> None:
        if not args.quiet:
            say(f"{NAME}: {line}")

    began, work, config = time.monotonic(), WorkFolder(job.output), job.config
    with opened() as here, work.locked() if here.main else nullcontext():
        try:
            with (
                open_loss_log(job.losses_path if here.main else None, job.log_losses) as losses,
                Progress(config.steps, f"training {config.token}", args.quiet) as progress,
            ):
                result = train(
                    job.images, config, model=job.model, model_config=job.model_config, model_options=job.model_options,
                    say=tell,
                    report=lambda step, loss: progress.update(step, loss=f"{loss:.4f}"),
                    work=work, resume=args.resume, picture=job.output.suffix.lower() == ".png", trial=job.sheet,
                    losses=losses,
                )  # fmt: skip
        except (KeyboardInterrupt, SystemExit):
            _tell_how_to_go_on(job)
            raise
        return finish(job, result, work, time.monotonic() - began) if here.main else None


def _tell_how_to_go_on(job: TrainingJob) -> None:
    if (step := job.kept_step()) is not None:
        say(
            f"{NAME}: step {step} of {job.config.steps} is kept in {job.output}.work; the same command with --resume "
            "goes on from there"
        )


def _print_done(args: argparse.Namespace, job: TrainingJob) -> None:
    import json

    facts = {"output": str(job.output), "token": job.config.token, "done": True}
    print(json.dumps(facts) if args.json else f"{job.output}: done, {job.config.token} is finished")


def _print_report(args: argparse.Namespace, report: TrainingReport) -> None:
    """What was done, on stdout; the table of the snapshots goes to stderr, where the progress was."""
    import json

    if args.json:
        print(json.dumps(report.facts))
        return
    if report.table and not args.quiet:
        print(report.table, file=sys.stderr)
    print("\n".join(report.lines))


if __name__ == "__main__":
    sys.exit(main())
