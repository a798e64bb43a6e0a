"""A systemd unit for a program that draws on a board: it comes back after a crash and after a power cut."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from perfusion.devices.planning.device_plan import DevicePlan
from perfusion.errors import DeviceError, RequestError

__all__ = ["service_unit"]

MIB = 1 << 20
_PROGRAM = 512 * MIB
"""What the plan does not count: Python, onnxruntime or TensorRT themselves, and the program around them."""


def service_unit(plan: DevicePlan, command: Sequence[str], folder: Path, user: str) -> str:
    """The unit's text: for /etc/systemd/system/NAME.service.

    Args:
        plan: of the bundle that the program draws with, on the machine that it runs on. Its fullest moment, and half a
            gigabyte for the program, become `MemoryMax`: a program that leaks is started anew before the board stands.
        command: the program and its arguments; the program by its whole path.
        folder: where it is started.
        user: who it runs as.

    Raises:
        DeviceError: the bundle does not fit on the machine, so the service would be ended again and again.
        RequestError: the command is empty, its program has no whole path, or there is a line break in a word.
    """
    if not plan.memory.fits:
        raise DeviceError(plan.memory.explain())
    if not command or not command[0].startswith("/"):
        found = repr(command[0]) if command else "nothing"
        raise RequestError(
            f"The program of the service is {found}, expected its whole path: systemd looks nowhere else. Write for "
            "example: perfusion-devices service -- /home/me/kiosk/.venv/bin/python app.py."
        )
    for word in (*command, str(folder), user):
        if re.search(r"[\x00-\x1f\x7f]", word):
            raise RequestError(f"{word!r} has a line break or another control character. Take it out.")
    after = ["network.target", *(["nvpmodel.service"] if plan.profile.kind == "jetson" else [])]
    limit = math.ceil((plan.memory.peak + _PROGRAM) / MIB)
    lines = [
        "[Unit]",
        f"Description=Pictures on {plan.profile.title}",
        f"After={' '.join(after)}",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        f"User={_escaped(user)}",
        f"WorkingDirectory={_escaped(str(folder))}",
        "Environment=PYTHONUNBUFFERED=1",
        f"ExecStart={' '.join(_quoted(word) for word in command)}",
        "Restart=on-failure",
        "RestartSec=5",
        f"MemoryMax={limit}M",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _escaped(word: str) -> str:
    """A value in which systemd replaces nothing: a percent sign begins a specifier."""
    return word.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word of ExecStart; a dollar sign would begin a variable there."""
    text = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return text if re.fullmatch(r"[\w@%+=:,./$-]+", text, re.ASCII) else f'"{text}"'
