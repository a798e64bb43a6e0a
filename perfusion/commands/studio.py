"""perfusion-studio: perfusion-serve, with its page opened in the browser."""

import argparse
import ssl
import threading
import time
import urllib.request
import webbrowser

from perfusion.commands import run, say
from perfusion.commands.serve import serve, serve_parser

__all__ = ["main"]

_NAME = "perfusion-studio"
_PATIENCE = 300  # seconds until a large bundle is open and warm
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
    scheme = "http" if args.tls_cert is None else "https"
    if not args.no_browser:
        address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{args.port}/"
        threading.Thread(target=_open_page, args=(address,), daemon=True).start()
    return serve(args, _NAME)


def _open_page(address: str) -> None:
    """Open the page as soon as its server is ready."""
    ends = time.monotonic() + _PATIENCE
    while time.monotonic() < ends:
        if _is_ready(address):
            if not webbrowser.open(address):
                say(f"{_NAME}: there is no browser on this machine; open {address} yourself")
            return
        time.sleep(0.2)


def _is_ready(address: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only asked whether it is ready
    try:
        urllib.request.urlopen(f"{address}readyz", timeout=5, context=context).close()
    except OSError:  # nobody listens, or it says that it is not ready
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
