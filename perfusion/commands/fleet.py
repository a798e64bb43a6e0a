"""perfusion-fleet: thousands of trainings, and pictures of what they taught, on the machines of a Ray cluster."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.commands import Progress, parser, run, say
from perfusion.commands.drawing_arguments import at_least_one
from perfusion.commands.fleet_serve import add_serve_options, serve_fleet
from perfusion.training.training_options import add_training_options

if TYPE_CHECKING:
    from perfusion.fleet.fleet_job import FleetJob
    from perfusion.fleet.fleet_training import FleetOptions, FleetOutcome
    from perfusion.fleet.result_store import Manifest, ResultStore

NAME = "perfusion-fleet"
REPORT = "report.json"


def fleet_parser() -> argparse.ArgumentParser:
    """The command line of perfusion-fleet."""
    command = parser(NAME, "Trains and draws on the processes, cards and machines of a Ray cluster.")
    actions = command.add_subparsers(dest="action", required=True)
    serve = actions.add_parser(
        "serve", help="draw over HTTP, with as many replicas as there is room for", allow_abbrev=False,
        description="Draw over HTTP as perfusion-serve does, with several replicas of a bundle. Requests name concepts "
        "of a library, or bring them along. Needs perfusion-edge[fleet].",
    )  # fmt: skip
    add_serve_options(serve)
    train = actions.add_parser(
        "train", help="train a list of concepts", allow_abbrev=False,
        description="Train a list of concepts, wherever there is room. What is done is skipped, and the same command "
        "goes on after whatever interrupted it.",
    )  # fmt: skip
    train.add_argument(
        "jobs", type=Path, metavar="JOBS",
        help="a .csv or .jsonl list as perfusion-train --jobs takes it, or a folder with a folder of pictures for each",
    )  # fmt: skip
    add_training_options(train)
    spread = train.add_argument_group("how the jobs are spread").add_argument
    spread("--workers", type=at_least_one, metavar="N", help="trainings at once (default: as many as fit)")
    spread(
        "--cpus-per-worker", type=at_least_one, default=1, metavar="N", help="cores of a worker (default 1)"
    )
    spread(
        "--gpus-per-worker",
        type=float,
        metavar="N",
        help="cards of a worker (default: 1 where there are any)",
    )
    spread(
        "--tries",
        type=at_least_one,
        default=3,
        metavar="N",
        help="how often a job whose worker dies is begun (default 3)",
    )
    spread(
        "--max-failures",
        type=int,
        metavar="N",
        help="leave the rest undone when more jobs fail (default: never)",
    )
    spread(
        "--address",
        metavar="HOST:PORT",
        help="of a Ray cluster, auto for this machine's (default: one of this machine alone)",
    )
    train.add_argument(
        "--quiet", action="store_true", default=argparse.SUPPRESS, help="no progress on stderr"
    )
    train.add_argument("--json", action="store_true", help="print what was done as JSON")
    return command


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(NAME, lambda: _act(fleet_parser().parse_args(argv)))


def _act(args: argparse.Namespace) -> int:
    return serve_fleet(args, NAME) if args.action == "serve" else _train(args)


def _train(args: argparse.Namespace) -> int:
    from perfusion.errors import TrainingError
    from perfusion.fleet.cluster import cluster
    from perfusion.fleet.fleet_job import read_jobs
    from perfusion.fleet.fleet_training import split_done
    from perfusion.fleet.result_store import ResultStore
    from perfusion.training.job_list import list_defaults

    if args.output is None:
        raise TrainingError("There is no --output, which is the folder or the URL for the concepts.")
    store = ResultStore(_url(args.output))
    store.refuse_private()
    done, left = split_done(read_jobs(args.jobs, list_defaults(args)), store)
    began, outcomes = time.monotonic(), list[Any]()
    try:
        if left:
            with cluster(args.address) as ray:
                _work(args, ray, left, store, outcomes)
    finally:
        store.write_report(REPORT, _report(done, outcomes, left))
    _print(args, len(done), outcomes, time.monotonic() - began)
    return int(any(outcome.manifest is None for outcome in outcomes))


def _work(
    args: argparse.Namespace,
    ray: Any,
    jobs: Sequence[FleetJob],
    store: ResultStore,
    outcomes: list[FleetOutcome],
) -> None:
    from perfusion.fleet.fleet_training import train_fleet

    options = _options(args, ray.cluster_resources())
    if not args.quiet:
        say(f"{NAME}: {len(jobs)} jobs, {options.workers} at once")
    with Progress(len(jobs), "training", args.quiet) as progress:
        for outcome in train_fleet(ray, jobs, store.url, options):
            outcomes.append(outcome)
            failed = sum(other.manifest is None for other in outcomes)
            progress.update(len(outcomes), failed=str(failed))
            if outcome.manifest is None:
                say(f"{NAME}: {outcome.job.name}: {outcome.error}")


def _options(args: argparse.Namespace, resources: dict[str, float]) -> FleetOptions:
    """As many workers as the cluster has room for, unless it is said."""
    from perfusion.errors import TrainingError
    from perfusion.fleet.fleet_training import FleetOptions

    cards = resources.get("GPU", 0.0)
    gpus = args.gpus_per_worker if args.gpus_per_worker is not None else float(cards >= 1)
    room = int(resources.get("CPU", 0) // args.cpus_per_worker)
    if gpus:
        room = min(room, int(cards // gpus))
    if room < 1 or (args.workers or 1) > room:
        raise TrainingError(
            f"The cluster has {resources.get('CPU', 0):g} cores and {cards:g} graphics cards, room for {room} workers "
            f"of {args.cpus_per_worker} cores and {gpus:g} cards; {args.workers or 1} are to work. Ask for fewer."
        )
    return FleetOptions(
        workers=args.workers or room, cpus=args.cpus_per_worker, gpus=gpus, tries=args.tries,
        max_failures=args.max_failures,
    )  # fmt: skip


def _url(output: Path) -> str:
    """The store as it was written: a Path makes one slash of two."""
    text = str(output)
    scheme, colon, rest = text.partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if colon and len(scheme) > 1 else text


def _report(
    done: Sequence[tuple[FleetJob, Manifest]], outcomes: Sequence[FleetOutcome], left: Sequence[FleetJob]
) -> dict[str, Any]:
    """What became of every job, by its file's name."""
    jobs: dict[str, Any] = {job.name: {"state": "waiting"} for job in left}
    jobs |= {
        job.name: {"state": "done", "worker": manifest.worker, **manifest.facts} for job, manifest in done
    }
    for outcome in outcomes:
        if outcome.manifest is None:
            jobs[outcome.job.name] = {"state": "failed", "error": outcome.error, "tries": outcome.tries}
        else:
            manifest = outcome.manifest
            jobs[outcome.job.name] = {
                "state": "done",
                "tries": outcome.tries,
                "worker": manifest.worker,
                **manifest.facts,
            }
    return {"jobs": jobs}


def _print(args: argparse.Namespace, skipped: int, outcomes: Sequence[FleetOutcome], seconds: float) -> None:
    trained = [outcome.manifest for outcome in outcomes if outcome.manifest is not None]
    failed = [outcome for outcome in outcomes if outcome.manifest is None]
    if args.json:
        facts = {
            "trained": [manifest.name for manifest in trained], "done": skipped, "seconds": round(seconds, 2),
            "failed": [{"output": outcome.job.name, "error": outcome.error} for outcome in failed],
        }  # fmt: skip
        print(json.dumps(facts))
        return
    rate = f", {3600 * len(trained) / seconds:.0f} an hour" if trained else ""
    print(
        f"{args.output}: {len(trained)} trained, {len(failed)} failed, {skipped} done before; {seconds:.0f} s{rate}"
    )


if __name__ == "__main__":
    sys.exit(main())
