"""perfusion-fleet serve: the routes of perfusion-serve, on the replicas of a Ray cluster."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import threading
from typing import TYPE_CHECKING, Any

from perfusion.commands import say
from perfusion.commands.drawing_arguments import at_least_one
from perfusion.commands.serve import add_access, add_drawing, keys_in
from perfusion.errors import DeviceError, RequestError

if TYPE_CHECKING:
    from perfusion.fleet.replica import ReplicaSpec
    from perfusion.fleet.serve_deployment import FleetScale

__all__ = ["add_serve_options", "serve_fleet"]


def add_serve_options(command: argparse.ArgumentParser) -> None:
    """The options of `perfusion-fleet serve`."""
    add = command.add_argument
    add(
        "--bundle",
        metavar="DIR",
        help="an exported bundle, or its name on the hub (default: the embedded model)",
    )
    add(
        "--library", metavar="STORE",
        help="a folder or URL of concepts, such as perfusion-fleet train writes; shop/cat.safetensors is the word "
        "<shop/cat> (default: concepts come with the requests)",
    )  # fmt: skip
    add_access(add)
    add_drawing(add)
    add(
        "--concepts", type=at_least_one, default=256, metavar="N",
        help="that a replica keeps loaded, of the library and of requests each (default: %(default)s)",
    )  # fmt: skip
    spread = command.add_argument_group("how the pictures are spread").add_argument
    spread(
        "--replicas", type=_replicas, default=(1, 1), metavar="N|N:M",
        help="processes that draw; with 2:8 as many as the queues need (default: 1)",
    )  # fmt: skip
    spread(
        "--cpus-per-replica",
        type=at_least_one,
        default=1,
        metavar="N",
        help="cores of each, its threads (default 1)",
    )
    spread(
        "--gpus-per-replica", type=float, metavar="N", help="cards of each (default: 1 where there are any)"
    )  # fmt: skip
    spread(
        "--doors", type=at_least_one, default=1, metavar="N",
        help="processes that hand requests to replicas; one does for hundreds a second (default: 1)",
    )  # fmt: skip
    spread(
        "--grace", type=float, default=30.0, metavar="SECONDS",
        help="for a replica that is to end to finish what it draws (default: %(default)s)",
    )  # fmt: skip
    spread(
        "--address", metavar="HOST:PORT",
        help="of a Ray cluster, auto for this machine's: put the fleet there, or change it, and return "
        "(default: a cluster of this machine alone, until Ctrl-C)",
    )  # fmt: skip
    spread("--stop", action="store_true", help="end the fleet at --address")
    command.add_argument(
        "--quiet", action="store_true", default=argparse.SUPPRESS, help="no progress on stderr"
    )


def serve_fleet(args: argparse.Namespace, name: str) -> int:
    """Serve until Ctrl-C or SIGTERM; with --address put the fleet there and return."""
    from perfusion.fleet.cluster import cluster, last_line

    spec = None if args.stop else _spec(args)
    with cluster(args.address) as ray:
        serve = _serve_module()
        from perfusion.fleet.serve_deployment import deploy, start_listening, take_down

        if spec is None:
            take_down(serve)
            return 0
        scale = _scale(args, ray.cluster_resources())
        start_listening(serve, args.host, args.port)
        try:
            deploy(serve, spec, scale)
        except RuntimeError as error:
            raise DeviceError(f"The replicas do not come up: {last_line(error)}") from error
        if not args.quiet:
            say(f"{name}: http://{args.host}:{args.port} with {args.library or 'the concepts of requests'}")
        if _is_ours(args.address):
            _wait_for_end()
            serve.shutdown()
    return 0


def _spec(args: argparse.Namespace) -> ReplicaSpec:
    """What replicas draw with.

    Raises:
        PerfusionError: a bundle, a key or an option that cannot be.
    """
    try:
        from perfusion.fleet.replica import ReplicaSpec, bundle_hash
        from perfusion.fleet.result_store import ResultStore
        from perfusion.serving.access import Access
    except ModuleNotFoundError as error:
        raise DeviceError(f'Needs the package {error.name}. pip install "perfusion-edge[fleet]".') from error
    if args.library is not None:
        ResultStore(args.library)  # what cannot be opened is refused before anything starts
    is_folder = args.library is not None and "://" not in args.library
    return ReplicaSpec(
        bundle=_absolute(args.bundle), bundle_hash=bundle_hash(args.bundle),
        library=os.path.abspath(args.library) if is_folder else args.library,
        access=Access.of(args.host, keys_in(args.key_file), args.allowed_host, args.cors_origin),
        provider=args.provider, precision=args.precision, memory=args.memory, threads=args.cpus_per_replica,
        batch_size=args.batch_size, queue=args.queue, client_queue=args.client_queue, concepts=args.concepts,
        settings=not args.no_settings,
    )  # fmt: skip


def _scale(args: argparse.Namespace, resources: dict[str, float]) -> FleetScale:
    """How many replicas, where the cluster has room for the least of them.

    Raises:
        RequestError: it has none.
    """
    from perfusion.fleet.serve_deployment import FleetScale

    cores, cards = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpus = args.gpus_per_replica if args.gpus_per_replica is not None else float(cards >= 1)
    least, most = args.replicas
    if least * args.cpus_per_replica > cores or least * gpus > cards:
        raise RequestError(
            f"The cluster has {cores:g} cores and {cards:g} graphics cards, too few for {least} replicas of "
            f"{args.cpus_per_replica} cores and {gpus:g} cards. Ask for fewer."
        )
    room = min(cores // args.cpus_per_replica, cards // gpus if gpus else cores)
    return FleetScale(
        least=least, most=most, cpus=args.cpus_per_replica, gpus=gpus, doors=args.doors, grace=args.grace,
        spare=max(0, int(room) - most),
    )  # fmt: skip


def _serve_module() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise DeviceError('Ray Serve is not installed. pip install "perfusion-edge[fleet]".') from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return serve


def _absolute(bundle: str | None) -> str | None:
    """A bundle's folder for processes that stand elsewhere; a name on the hub stays one."""
    return os.path.abspath(bundle) if bundle is not None and os.path.isdir(bundle) else bundle


def _is_ours(address: str | None) -> bool:
    """Whether the cluster is one that began with this command and ends with it."""
    return not address and not os.environ.get("RAY_ADDRESS")


def _wait_for_end() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: ended.set())
    while not ended.wait(1):
        pass


def _replicas(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of replicas, expected such as 2 or 1:8")
    return int(match[1]), int(match[2] or match[1])
