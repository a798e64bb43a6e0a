"""perfusion-serve: draw for programs that speak OpenAI's images or A1111's API."""

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.commands import parser, run, say
from perfusion.commands.drawing_arguments import at_least_one, memory_argument
from perfusion.commands.provider_arguments import add_provider
from perfusion.errors import DeviceError, RequestError

if TYPE_CHECKING:
    from perfusion.serving.lessons import Lessons
    from perfusion.serving.library import Library

__all__ = ["add_access", "add_drawing", "keys_in", "logging_as", "main", "serve", "serve_parser"]

_NAME = "perfusion-serve"
_KEY = "PERFUSION_KEY"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-serve --help`."""
    command = serve_parser(
        _NAME, "Draw over HTTP: OpenAI's images, A1111's /sdapi/v1, and a page. Needs perfusion-edge[serve]."
    )
    return run(_NAME, lambda: serve(command.parse_args(argv), _NAME))


def serve_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The command line of a command that serves."""
    command = parser(name, description)
    for part in (_add_kept, add_access, _add_tls, add_drawing, _add_process):
        part(command.add_argument)
    return command


def _add_kept(add: Callable[..., object]) -> None:
    """What is drawn with, and what is kept of it."""
    add(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="a folder of perfusion-export, or a name on the hub (default: the embedded model)",
    )
    add(
        "--library", type=Path, metavar="DIR",
        help="a folder of concept files, where uploads go too; cat.safetensors is the word <cat> "
        "(default: concepts in --data, and the bundle's samples)",
    )  # fmt: skip
    add(
        "--embeddings", type=Path, metavar="DIR",
        help="a folder of textual inversions (.safetensors); EasyNegative.safetensors is the word EasyNegative of "
        "prompts and negative prompts (default: none)",
    )  # fmt: skip
    add(
        "--data", type=Path, metavar="DIR",
        help="where the pictures of the page and their history are kept (default: the user's data folder)",
    )  # fmt: skip
    add("--history-gb", type=float, default=2.0, metavar="GB", help="of pictures kept (default: %(default)s)")
    add(
        "--history-days",
        type=float,
        default=30.0,
        metavar="N",
        help="that they are kept (default: %(default)s)",
    )


def add_access(add: Callable[..., object]) -> None:
    """Where the server listens, and who may ask."""
    add(
        "--host",
        default="127.0.0.1",
        help="the address to listen at (default: %(default)s, this machine alone)",
    )
    add("--port", type=int, default=8188, help="(default: %(default)s)")
    add(
        "--key-file", type=Path, metavar="FILE",
        help=f"a file with the key that clients must send, or a line for each client; without it the variable {_KEY}",
    )  # fmt: skip
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name this server may be called by",
    )
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="another site whose pages may ask, such as http://localhost:3000 (default: none)",
    )


def _add_tls(add: Callable[..., object]) -> None:
    """How it answers by https."""
    add("--tls-cert", type=Path, metavar="FILE", help="a certificate in PEM: answer by https")
    add("--tls-key", type=Path, metavar="FILE", help="the certificate's private key")


def add_drawing(add: Callable[..., object]) -> None:
    """How it draws."""
    add_provider(add)
    add(
        "--memory", type=memory_argument, default="auto", metavar="auto|low|GB",
        help="how much may be used (default: %(default)s)",
    )  # fmt: skip
    add("--batch-size", type=int, default=8, metavar="N", help="pictures in one call (default: %(default)s)")
    add("--queue", type=int, default=256, metavar="N", help="pictures that may wait (default: %(default)s)")
    add(
        "--client-queue", type=int, default=64, metavar="N",
        help="pictures of one client that may wait or be drawn (default: %(default)s)",
    )  # fmt: skip
    add("--no-settings", action="store_true", help="write no prompt and no settings into the pictures' files")


def _add_process(add: Callable[..., object]) -> None:
    """What else concerns the one process that draws and teaches."""
    add("--threads", type=at_least_one, metavar="N", help="CPU threads (default: all there are)")
    add(
        "--grace", type=float, default=30.0, metavar="SECONDS",
        help="for what is being drawn to be finished when the server is stopped (default: %(default)s)",
    )  # fmt: skip
    add("--log-json", action="store_true", help="the log, a line a request, as JSON")
    add(
        "--training-model", type=Path, metavar="DIR",
        help="the base model of --bundle, to teach concepts with (default: the embedded model's)",
    )  # fmt: skip
    add(
        "--training-queue", type=at_least_one, default=8, metavar="N",
        help="trainings that may wait or run (default: %(default)s)",
    )  # fmt: skip
    add(
        "--training-quota", type=float, default=2.0, metavar="GB",
        help="of disk for the pictures and results of trainings; the oldest that are over go first (default: "
        "%(default)s)",
    )  # fmt: skip
    add("--no-training", action="store_true", help="teach nothing over HTTP")
    add(
        "--scorer", type=Path, metavar="DIR",
        help="ONNX graphs that measure pictures, for the front of settings and the verdict on a training (default: the "
        "embedded model's own, for that model alone)",
    )  # fmt: skip


def serve(args: argparse.Namespace, name: str) -> int:
    """Serve until Ctrl-C or SIGTERM; `args` are those of `serve_parser`, `name` is the command's."""
    try:
        from perfusion.serving.access import Access
        from perfusion.serving.application import ServerParts, Service
        from perfusion.serving.history import Bounds, History
        from perfusion.serving.library import Library
        from perfusion.serving.lifecycle import Listening, run_service
    except ModuleNotFoundError as error:
        raise DeviceError(f'Needs the package {error.name}. pip install "perfusion-edge[serve]".') from error
    from perfusion.files import data_folder
    from perfusion.runtime import Runtime

    if (args.tls_cert is None) != (args.tls_key is None):
        raise RequestError("TLS needs a certificate and its key. Give both --tls-cert and --tls-key.")
    if args.embeddings is not None and not args.embeddings.is_dir():
        raise RequestError(f"{args.embeddings} is no folder, expected one with embeddings.")
    access = Access.of(args.host, keys_in(args.key_file), args.allowed_host, args.cors_origin)
    data = args.data or data_folder()

    def make() -> Service:
        """In the thread that opens the bundle, while the server listens already."""
        history = History(data, Bounds(size=int(args.history_gb * 1e9), days=args.history_days))
        runtime = Runtime(
            args.bundle, provider=args.provider, threads=args.threads, memory=args.memory,
            batch_size=args.batch_size, queue_size=args.queue, precision=args.precision,
        )  # fmt: skip
        library = Library(
            runtime,
            args.library or data / "concepts",
            samples=args.library is None,
            embeddings=args.embeddings,
        )
        parts = ServerParts(
            runtime=runtime, library=library, history=history, access=access, settings=not args.no_settings,
            client_queue=args.client_queue, lessons=_lessons(args, data / "trainings", library),
            scorer=args.scorer,
        )  # fmt: skip
        if not args.quiet:
            scheme = "http" if args.tls_cert is None else "https"
            say(
                f"{name}: {scheme}://{args.host}:{args.port} with {', '.join(runtime.concepts) or 'no concepts'}"
            )
        return Service(parts)

    listening = Listening(
        host=args.host,
        port=args.port,
        certificate=args.tls_cert,
        certificate_key=args.tls_key,
        grace=args.grace,
    )
    with logging_as(quiet=args.quiet, as_json=args.log_json):
        run_service(make, listening)
    return 0


def _lessons(args: argparse.Namespace, folder: Path, library: "Library") -> "Lessons | str":
    """What teaches, or why this server does not."""
    from importlib.util import find_spec

    from perfusion.hub import local_model
    from perfusion.serving.lessons import LessonBounds, Lessons

    if args.no_training:
        return "Teaching is switched off on this server."
    if find_spec("torch") is None or find_spec("diffusers") is None:
        return 'Teaching needs torch on this server. Install it there: pip install "perfusion-edge[train]".'
    if args.bundle is not None and args.training_model is None:
        return "Teaching needs the model that this server's bundle was made of. Start it with --training-model DIR."
    bounds = LessonBounds(open=args.training_queue, size=int(args.training_quota * 1e9))
    # fetched when the server starts, and not when somebody teaches
    model = args.training_model and local_model(args.training_model)
    return Lessons(folder, library, model=model, scorer=args.scorer, bounds=bounds)


@contextmanager
def logging_as(*, quiet: bool, as_json: bool) -> Iterator[None]:
    """A line on stderr for each request, unless quiet, and for each error with its trace."""
    from perfusion.serving.request_log import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    lines = logging.getLogger("perfusion").handlers
    former = list(lines)
    if as_json:
        lines.clear()  # warnings are lines of JSON too
    ours = ["perfusion"] if as_json else ["perfusion.serving", "perfusion.waits"]
    names = [*ours, "uvicorn"]
    loggers = {logger: (logger.level, logger.propagate) for logger in map(logging.getLogger, names)}
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.WARNING if quiet or logger.name == "uvicorn" else logging.INFO)
    try:
        yield
    finally:
        for logger, (level, logger.propagate) in loggers.items():
            logger.removeHandler(handler)
            logger.setLevel(level)
        lines[:] = former


def keys_in(path: Path | None) -> list[str]:
    """The keys that clients must send: a line each."""
    text = os.environ.get(_KEY, "") if path is None else path.read_text(encoding="utf-8")
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if path is not None and not keys:
        raise RequestError(f"The key file {path} is empty. Write a long random word into it.")
    return keys


if __name__ == "__main__":
    raise SystemExit(main())
