"""perfusion-studio: perfusion-serve, with its page opened in the browser."""

import argparse
import socket
import threading
import time
import webbrowser

from perfusion.commands import run, say
from perfusion.commands.serve import serve, serve_parser

__all__ = ["main"]

_NAME = "perfusion-studio"
_PATIENCE = 120  # seconds until a large bundle is open
_EVERY_ADDRESS = ("0.0.0.0", "::")


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-studio --help`."""
    command = serve_parser(
        _NAME, "Teach, draw and combine concepts on a page in the browser. Needs perfusion-edge[serve]."
    )
    command.add_argument(
        "--no-browser", action="store_true", help="open no browser; print the page's address"
    )
    return run(_NAME, lambda: _studio(command.parse_args(argv)))


def _studio(args: argparse.Namespace) -> int:
    host = "127.0.0.1" if args.host in _EVERY_ADDRESS else args.host
    if not args.no_browser:
        threading.Thread(target=_open_page, args=(host, args.port), daemon=True).start()
    return serve(args, _NAME)


def _open_page(host: str, port: int) -> None:
    """Open the page as soon as somebody listens there."""
    address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    ends = time.monotonic() + _PATIENCE
    while time.monotonic() < ends:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
            continue
        if not webbrowser.open(address):
            say(f"{_NAME}: there is no browser on this machine; open {address} yourself")
        return


if __name__ == "__main__":
    raise SystemExit(main())
