"""python benchmarks/fleet.py [train|serve]: jobs an hour, and pictures a second, with one worker and with two.

Real Ray on this machine, one core a worker, the embedded model. `serve` also measures what a replica's work costs, from
which benchmarks/fleet_simulation.py predicts. --short takes little and writes no record. Without Ray it does nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.fleets.measuring import (
    asked_by_clients,
    costs_alone,
    costs_together,
    seconds_around,
    shop_of,
)
from benchmarks.record import write_record
from perfusion.commands.fleet import fleet_parser
from perfusion.fleet.cluster import cluster
from perfusion.fleet.fleet_job import FleetJob, read_jobs
from perfusion.fleet.fleet_training import FleetOptions, train_fleet
from perfusion.fleet.replica import ReplicaSpec, bundle_hash
from perfusion.fleet.serve_deployment import FleetScale, deploy, start_listening
from perfusion.training.job_list import list_defaults

PORT, BATCH, CLIENTS, CONCEPTS, STEPS = 8297, 8, 16, 64, 20
SUBJECTS = Path(__file__).resolve().parents[1] / "examples" / "subjects"
TRAINING_STEPS, FIRST_STEPS = 60, 4


def main() -> int:
    """Measure, print and record."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("part", nargs="?", choices=["train", "serve"], help="(default: both)")
    command.add_argument("--short", action="store_true", help="a few steps, and no record")
    args = command.parse_args()
    if find_spec("ray") is None:
        print('Ray is not installed, so no fleet is measured. pip install "perfusion-edge[fleet]".')
        return 0
    for name, measured in (("train", _trained), ("serve", _served)):
        if args.part in (None, name):
            rows = list(measured(args.short))
            print(json.dumps(rows, indent=1))
            if not args.short:
                print(write_record(f"fleet-{name}", rows))
    return 0


def _trained(short: bool) -> Iterator[dict[str, Any]]:
    """Jobs an hour, with whatever a fleet adds to them, but for the start of Ray and each worker's first job."""
    arguments = ["--steps", str(FIRST_STEPS if short else TRAINING_STEPS)]
    names = sorted(folder.name for folder in SUBJECTS.iterdir() if folder.is_dir())
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder, cluster(None, cpus=2) as ray:
            jobs = _jobs(Path(folder), names[: 2 * workers], workers, arguments)
            options = FleetOptions(workers=workers)
            began = counted = 0.0
            for number, outcome in enumerate(train_fleet(ray, jobs, f"{folder}/out", options)):
                assert outcome.manifest is not None, outcome.error
                if number == workers - 1:  # each worker has opened the model and done its first
                    began = time.perf_counter()
                counted = time.perf_counter()
        yield {
            "workers": workers, "jobs": workers, "steps": jobs[-1].training.config.steps,
            "seconds": round(counted - began, 2), "jobs_an_hour": round(3600 * workers / (counted - began), 1),
        }  # fmt: skip


def _jobs(folder: Path, names: list[str], first: int, arguments: list[str]) -> tuple[FleetJob, ...]:
    """A job for each of some subjects; the `first` of them are short, as their time does not count."""
    rows = [
        f"{SUBJECTS / name},{name.split('-')[-1]},<{name}>,{FIRST_STEPS if number < first else ''}"
        for number, name in enumerate(names)
    ]
    path = folder / "jobs.csv"
    path.write_text("\n".join(["images,superclass,token,steps", *rows]), "utf-8")
    return read_jobs(path, list_defaults(fleet_parser().parse_args(["train", str(path), *arguments])))


def _served(short: bool) -> Iterator[dict[str, Any]]:
    """Costs of a replica, and what clients see, with one replica and with two."""
    rounds, pictures, steps = (1, 16, 2) if short else (5, 96, STEPS)
    with tempfile.TemporaryDirectory() as folder, cluster(None, cpus=2):
        from ray import serve

        words = [f"<{name}>" for name in shop_of(Path(folder) / "shop", CONCEPTS)]
        spec = ReplicaSpec(
            bundle_hash=bundle_hash(None),
            library=f"{folder}/shop",
            provider="cpu",
            threads=1,
            batch_size=BATCH,
        )
        start_listening(serve, "127.0.0.1", PORT)
        for replicas in (1, 2):
            deploy(serve, spec, FleetScale(least=replicas, most=replicas))
            # beside the fleet at rest, since Ray's own processes need these cores too
            costs = costs_alone(BATCH, rounds) if replicas == 1 else costs_together(replicas, BATCH, rounds)
            alone = costs["begin"] + steps * costs["calls"][0] + costs["end"]
            around = seconds_around(PORT, words[0], alone, steps, 2 * rounds)
            asked_by_clients(PORT, words, CLIENTS, CLIENTS, 2)  # every replica opens every concept
            yield {
                "replicas": replicas, "clients": CLIENTS, "concepts": CONCEPTS, "batch": BATCH, "steps": steps,
                **asked_by_clients(PORT, words, CLIENTS, pictures * replicas, steps),
                "costs": {name: _rounded(value) for name, value in (costs | {"around": around}).items()},
            }  # fmt: skip
        serve.shutdown()


def _rounded(value: Any) -> Any:
    return [round(each, 6) for each in value] if isinstance(value, list) else round(value, 6)


if __name__ == "__main__":
    raise SystemExit(main())
