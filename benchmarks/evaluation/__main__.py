"""The command line of the evaluation."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from anywhere

STAGES = ("tune", "train", "draw", "measure", "report")
MORE_STAGES = ("regions",)
"""Done when they are named: `regions` needs the concepts of `train --methods unselected`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the stages that are asked for, or all; what is done is skipped."""
    parsed = _parser().parse_args(arguments)
    # One core a process, for threads that wait for each other lose more; set before torch and onnxruntime are imported,
    # here and in the processes that inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    from benchmarks.evaluation.stages import run
    from perfusion.errors import PerfusionError

    try:
        run(
            parsed.stages or STAGES, work=parsed.work, small=parsed.small, processes=parsed.processes,
            subjects=_names(parsed.subjects), methods=_names(parsed.methods), variants=_names(parsed.variants),
            estimate=parsed.estimate,
        )  # fmt: skip
    except PerfusionError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    from benchmarks.evaluation import __doc__ as about

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation", description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    known = f"{', '.join(STAGES)}; all of these when none is named; {', '.join(MORE_STAGES)}"
    parser.add_argument("stages", nargs="*", type=_stage, help=known, metavar="STAGE")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where everything is kept (build/evaluation)"
    )
    parser.add_argument("--subjects", metavar="A,B", help="some of the subjects")
    parser.add_argument("--methods", metavar="A,B", help="some of the methods")
    parser.add_argument(
        "--variants",
        metavar="A,B",
        help="of the stage regions; rivals, such as lora-4-regions, only if named",
    )
    parser.add_argument(
        "--small", action="store_true", help="a rehearsal of minutes; its numbers mean nothing"
    )
    parser.add_argument(
        "--processes", type=int, default=_cores(), metavar="N", help="of one core each (all cores)"
    )
    parser.add_argument("--estimate", action="store_true", help="say how long it would take and do nothing")
    return parser


def _stage(text: str) -> str:
    if text not in STAGES + MORE_STAGES:  # argparse's own choices refuse the empty list
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(STAGES + MORE_STAGES)}")
    return text


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in text.split(",")) if text else None


if __name__ == "__main__":
    for stop in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a shell lets what it starts in the background ignore the first
        signal.signal(stop, signal.default_int_handler)
    raise SystemExit(main())
