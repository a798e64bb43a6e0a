"""python benchmarks/soak.py [--minutes 60] [--clients 20]: many clients of one server, for long.

perfusion-serve with the embedded model, and clients who draw by all routes, cancel, go away in the middle, send
rubbish and swap concepts. Every picture is compared with its exact one. In the middle the server is killed (kill -9)
and started again on the same data. The memory of the server is looked at all the while. Exits with 1 where a picture
is wrong or lost, an answer is none of the right ones, or the memory grows. --minutes below 10 writes no record.
"""

import argparse
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

import httpx

from benchmarks.record import ROOT, write_record
from benchmarks.servers.soak_client import LEAST_DECIBELS, MOST_LEVELS, Findings, References, SoakClient

MOST_GROWTH = 0.1  # of the memory, from the second quarter of a server's life to its last
MOST_GROWTH_MB = 30  # that are nothing, as what is kept between pictures fills
RECORDED_MINUTES = 10.0
START_SECONDS = 600  # on a machine that others load too


class Server:
    """The process, and its memory over time."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        self._folder, self._key = folder, keys[0]
        (folder / "keys").write_text("\n".join(keys))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.memory: list[list[float]] = []  # MB, of each life
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        command = [
            sys.executable, "-m", "perfusion.commands.serve", f"--port={self._port}", f"--data={self._folder}",
            f"--key-file={self._folder / 'keys'}", "--batch-size=8", "--no-training", "--history-gb=0.01", "--quiet",
        ]  # fmt: skip
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        self.memory.append([])
        ends = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > ends:
                self._process.kill()
                raise SystemExit(f"The server did not start: {self.log()[-2000:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the status it ends with."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def look(self) -> None:
        """Note its memory."""
        answer = httpx.get(
            f"{self.address}/metrics", headers={"Authorization": f"Bearer {self._key}"}, timeout=60
        )
        for line in answer.text.splitlines():
            if line.startswith("process_resident_memory_bytes"):
                self.memory[-1].append(float(line.split()[1]) / 1e6)

    def log(self) -> str:
        """What it said."""
        return (self._folder / "server.log").read_text()

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


def main() -> int:
    """Run it, print, record."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--minutes", type=float, default=60.0, help="(default: %(default)s)")
    command.add_argument("--clients", type=int, default=20, help="(default: %(default)s)")
    args = command.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = _soak(Path(folder), args.minutes, args.clients)
    print(json.dumps(row, indent=1))
    if args.minutes >= RECORDED_MINUTES:
        print(write_record("soak", [row]))
    return int(bool(row["faults"]))


def _soak(folder: Path, minutes: float, count: int) -> dict[str, Any]:
    keys = [secrets.token_hex(16) for _ in range(count)]
    server, findings, is_down = Server(folder, keys), Findings(), threading.Event()
    references = References()
    clients = [
        SoakClient(number, server.address, key, references, findings, is_down)
        for number, key in enumerate(keys)
    ]
    for client in clients:
        client.start()
    _watch(server, minutes * 30)
    is_down.set()
    killed = time.time()
    server.kill()
    time.sleep(2)
    server.start()
    before = _states(server, keys, killed)
    for state in before.keys() - {"done", "failed", "cancelled"}:
        findings.fault(f"after the kill a job from before it is {state}")
    time.sleep(2)  # for what failed meanwhile to be told
    is_down.clear()
    _watch(server, minutes * 30)
    for client in clients:
        client.stop()
    for client in clients:
        client.join()
    status = server.stop()
    return _row(server, findings, minutes, count, status) | {"jobs_after_the_kill": before}


def _watch(server: Server, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        server.look()
        time.sleep(min(5.0, max(0.5, seconds / 60)))


def _states(server: Server, keys: list[str], killed: float) -> dict[str, int]:
    """The states after the second start of all jobs from before the kill; what was drawn at the kill has failed."""
    states: dict[str, int] = {}
    for key in keys:
        jobs = httpx.get(
            f"{server.address}/api/jobs", headers={"Authorization": f"Bearer {key}"}, timeout=60
        ).json()
        for job in (job for job in jobs if job["created"] < killed):
            states[job["state"]] = states.get(job["state"], 0) + 1
    return states


def _row(server: Server, findings: Findings, minutes: float, count: int, status: int) -> dict[str, Any]:
    lives = [_quarters(life) for life in server.memory]
    for early, late in lives:
        if late - early > max(MOST_GROWTH_MB, MOST_GROWTH * early):
            findings.fault(f"the memory grew from {early:.0f} to {late:.0f} MB")
    if status != 0:
        findings.fault(f"the server ended with {status}")
    if "Traceback" in server.log():
        findings.fault(f"the server's log has a trace: {server.log()[-1500:]}")
    return {
        "model": "pocket", "minutes": minutes, "clients": count, "pictures": findings.pictures,
        "least_decibels": None if findings.least_decibels == float("inf") else round(findings.least_decibels, 1),
        "most_levels": findings.most_levels, "least_decibels_target": LEAST_DECIBELS, "most_levels_target": MOST_LEVELS,
        "actions": dict(sorted(findings.actions.items())),
        "statuses": {str(status): number for status, number in sorted(findings.statuses.items())},
        "kills": len(lives) - 1, "memory_mb": [[round(early), round(late)] for early, late in lives],
        "load": round(os.getloadavg()[0], 1), "faults": findings.faults[:20],
    }  # fmt: skip


def _quarters(life: list[float]) -> tuple[float, float]:
    """The median of the second quarter and of the last."""
    quarter = max(1, len(life) // 4)
    return statistics.median(life[quarter : 2 * quarter] or life), statistics.median(life[-quarter:])


if __name__ == "__main__":
    raise SystemExit(main())
