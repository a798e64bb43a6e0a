"""What a training's process says: its progress on stderr, and at its end a report on stdout."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from perfusion.judging.verdict import Remedy, tell

__all__ = ["Progress", "follow", "read_verdict"]

_PROGRESS = re.compile(r"^training .* (\d+)/(\d+), \S+ elapsed(?:, ([\d:]+) left)?(?:, loss ([\d.]+))?$")
_SWITCHES = {
    "--model": "the server's options --bundle and --training-model",
    "--scorer": "the server's option --scorer",
}


class Progress(Protocol):
    """How far a training is."""

    step: int
    total: int | None
    loss: float | None
    seconds_left: int | None


def follow(progress: Progress, process: subprocess.Popen[str], look: Callable[[], None]) -> str:
    """Read a training's progress until it ends, and `look` after each line; its last line that is none."""
    reason = ""
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            match = _PROGRESS.match(line.strip())
            if match is None:
                reason = line.strip().removeprefix("perfusion-train: ") or reason
            else:
                step, total, left, loss = match.groups()
                progress.step, progress.total = int(step), int(total)
                progress.loss = float(loss) if loss else None
                progress.seconds_left = _seconds(left) if left else None
            look()
    process.wait()
    if process.stdin is not None:  # whose closing would have ended it
        process.stdin.close()
    return reason


def read_verdict(path: Path) -> tuple[str | None, str | None]:
    """The grade and the sentence from what a training printed at its end; None each where it printed none.

    The options that its remedies name are those of perfusion-train. Who asked over HTTP cannot give them, so they
    become those of the server, or are left out.
    """
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))["verdict"]
        remedies = [Remedy(**facts) for facts in verdict["remedies"]]
        return verdict["grade"], tell(verdict["grade"], verdict["reason"], remedies, _SWITCHES)
    except (OSError, ValueError, TypeError, KeyError):
        return None, None


def _seconds(clock: str) -> int:
    """1:02 or 1:02:03 in seconds."""
    total = 0
    for part in clock.split(":"):
        total = total * 60 + int(part)
    return total
