"""perfusion-train as a lesson's process: it ends with its server, however that ends.

The server holds the other end of stdin and writes nothing to it. When the server is killed the system closes it, and a
training that went on alone would keep its lock from the one that the next server starts.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

__all__ = ["main"]

_COMMAND = "perfusion.commands.train"


def main() -> None:
    """Run perfusion-train with this process's arguments."""
    threading.Thread(target=_end_with_server, name="perfusion-end", daemon=True).start()
    runpy.run_module(_COMMAND, run_name="__main__", alter_sys=True)


def _end_with_server() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
