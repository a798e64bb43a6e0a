"""perfusion-serve: draw for programs that speak OpenAI's images or A1111's API."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.commands import parser, run, say
from perfusion.commands.drawing_arguments import at_least_one, memory_argument
from perfusion.errors import DeviceError, RequestError

if TYPE_CHECKING:
    from perfusion.runtime import Runtime

__all__ = ["main"]

_NAME = "perfusion-serve"
_KEY = "PERFUSION_KEY"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-serve --help`."""
    return run(_NAME, lambda: _serve(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    command = parser(
        _NAME, "Draw over HTTP: OpenAI's images, A1111's /sdapi/v1. Needs perfusion-edge[serve]."
    )
    add = command.add_argument
    add("--bundle", type=Path, metavar="DIR", help="an exported bundle (default: the embedded model)")
    add(
        "--library", type=Path, metavar="DIR",
        help="a folder of concept files; cat.safetensors is the word <cat> (default: the bundle's samples)",
    )  # fmt: skip
    add(
        "--host",
        default="127.0.0.1",
        help="the address to listen at (default: %(default)s, this machine alone)",
    )
    add("--port", type=int, default=8188, help="(default: %(default)s)")
    add(
        "--key-file", type=Path, metavar="FILE",
        help=f"a file with the key that clients must send; without it the variable {_KEY}",
    )  # fmt: skip
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name this server may be called by",
    )
    add("--provider", default="auto", help="auto, cpu, cuda, trt, trt-rtx or openvino (default: %(default)s)")
    add("--threads", type=at_least_one, metavar="N", help="CPU threads (default: all there are)")
    add(
        "--memory", type=memory_argument, default="auto", metavar="auto|low|GB",
        help="how much may be used (default: %(default)s)",
    )  # fmt: skip
    add("--batch-size", type=int, default=8, metavar="N", help="pictures in one call (default: %(default)s)")
    add("--queue", type=int, default=256, metavar="N", help="pictures that may wait (default: %(default)s)")
    return command


def _serve(args: argparse.Namespace) -> int:
    try:
        import uvicorn

        from perfusion.serving.access import Access
        from perfusion.serving.application import make_application
    except ModuleNotFoundError as error:
        raise DeviceError(f'Needs the package {error.name}. pip install "perfusion-edge[serve]".') from error
    from perfusion.runtime import Runtime

    access = Access.of(args.host, _key(args.key_file), args.allowed_host)
    with Runtime(
        args.bundle, provider=args.provider, threads=args.threads, memory=args.memory, batch_size=args.batch_size,
        queue_size=args.queue,
    ) as runtime:  # fmt: skip
        _load(runtime, args.library)
        if not args.quiet:
            say(
                f"{_NAME}: http://{args.host}:{args.port} with {', '.join(runtime.concepts) or 'no concepts'}"
            )
        uvicorn.run(
            make_application(runtime, access), host=args.host, port=args.port, server_header=False,
            log_level="warning" if args.quiet else "info", timeout_graceful_shutdown=30,
        )  # fmt: skip
    return 0


def _key(path: Path | None) -> str | None:
    key = os.environ.get(_KEY, "") if path is None else path.read_text(encoding="utf-8")
    if path is not None and not key.strip():
        raise RequestError(f"The key file {path} is empty. Write a long random word into it.")
    return key.strip() or None


def _load(runtime: "Runtime", library: Path | None) -> None:
    """Load concepts under their files' names."""
    if library is None:
        files = runtime.bundle.samples
    else:
        files = {path.stem: path for path in sorted(library.glob("*.safetensors"))}
    for name, path in files.items():
        runtime.load_concept(path, token=f"<{name}>")


if __name__ == "__main__":
    raise SystemExit(main())
