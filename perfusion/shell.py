"""Commands that a user can paste into the shell of the machine it was printed on."""

from __future__ import annotations

import shlex
import subprocess
import sys

__all__ = ["quoted"]


def quoted(*words: object) -> str:
    """The words as one line: quoted for cmd.exe and PowerShell on Windows, for a POSIX shell elsewhere."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if sys.platform == "win32" else shlex.join(texts)
