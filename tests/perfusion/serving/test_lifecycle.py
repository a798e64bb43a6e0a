"""perfusion-serve as a process: opening, ready, stopped, killed."""

import base64
import io
import json
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image

from perfusion.serving.history import History
from tests.perfusion.serving.conftest import wait_for

LONG = {"prompt": "a cat", "num_inference_steps": 1000, "size": "64x64"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(tmp_path, toy_bundle):
    """Starts perfusion-serve on the toy bundle; gives the process, its address and its log."""
    processes = []

    def start(*options, environment=None):
        port, log = free_port(), tmp_path / "log"
        command = [
            "-m",
            "perfusion.commands.serve",
            "--bundle",
            toy_bundle,
            "--port",
            port,
            "--data",
            tmp_path / "data",
        ]
        command += ["--provider", "cpu", "--threads", 1, *options]
        with open(log, "w") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)], stderr=file, stdout=file,
                env=os.environ | (environment or {}) | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        processes.append(process)
        scheme = "https" if "--tls-cert" in options else "http"
        return process, f"{scheme}://127.0.0.1:{port}", log

    yield start
    for process in processes:
        process.kill()
        process.wait()


def answers(address, path="/readyz", **options):
    try:
        return httpx.get(address + path, **options).status_code
    except httpx.TransportError:
        return None


def test_systemd_is_told_and_what_is_drawn_is_finished(start, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        process, address, log = start("--log-json", environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert wait_for(lambda: answers(address, "/healthz"), 60) == 200
        assert systemd.recv(100) == b"READY=1"
        assert answers(address) == 200
        sizes = []

        def draw():
            answer = httpx.post(
                f"{address}/v1/images/generations", json=LONG | {"num_inference_steps": 200}, timeout=60
            )
            picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
            sizes.append(picture.size)

        thread = threading.Thread(target=draw)
        thread.start()
        wait_for(lambda: "perfusion_queue_drawing 1.0" in httpx.get(f"{address}/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert systemd.recv(100) == b"STOPPING=1"
        thread.join()
    assert sizes == [(64, 64)]
    assert process.wait(60) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("path") == "/v1/images/generations"]
    assert line["status"] == 200 and line["method"] == "POST" and line["seconds"] > 0
    assert "a cat" not in log.read_text()


def test_after_kill_9_no_job_is_half_done_and_files_and_rows_agree(start, tmp_path):
    process, address, _ = start()
    wait_for(lambda: answers(address) == 200, 60)
    short = httpx.post(f"{address}/api/jobs", json={"prompt": "a cat", "num_inference_steps": 1}).json()
    wait_for(lambda: httpx.get(f"{address}/api/jobs/{short['id']}").json()["state"] == "done")
    long = httpx.post(f"{address}/api/jobs", json={"prompt": "a cat", "num_inference_steps": 1000}).json()
    process.send_signal(signal.SIGKILL)
    process.wait()
    pictures = tmp_path / "data" / "pictures"
    (pictures / "0123.png").write_bytes(b"a file without a row")
    (pictures / ".0123.partial").write_bytes(b"half a file")
    with sqlite3.connect(tmp_path / "data" / "history.sqlite3") as rows:
        row = rows.execute("SELECT * FROM pictures").fetchone()
        rows.execute("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", ("lost", *row[1:]))
    rows.close()
    history = History(tmp_path / "data")
    jobs = {job["id"]: job for job in history.jobs("127.0.0.1")}
    assert jobs[short["id"]]["state"] == "done" and len(jobs[short["id"]]["pictures"]) == 1
    assert jobs[long["id"]]["state"] == "failed" and "stopped" in jobs[long["id"]]["error"]
    listed = {f"{picture.id}.png" for picture in history.pictures("127.0.0.1")}
    history.close()
    assert listed == {path.name for path in pictures.iterdir()} == {f"{row[0]}.png"}


def test_a_bundle_that_cannot_be_opened_ends_the_process_with_one_line(start, tmp_path):
    process, _, log = start("--bundle", tmp_path / "nothing")
    assert process.wait(60) == 1
    assert log.read_text().splitlines()[-1].startswith("perfusion-serve: ")
    assert "Traceback" not in log.read_text()


def test_it_answers_by_https_and_hands_back_what_is_not_done_within_the_grace(start, tmp_path):
    files = [tmp_path / "cert.pem", tmp_path / "key.pem"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]]
    try:
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("this machine has no openssl")
    (tmp_path / "key").write_text("open sesame\n")
    options = ["--tls-cert", str(files[0]), "--tls-key", str(files[1]), "--key-file", str(tmp_path / "key")]
    options += ["--grace", "0.2"]
    process, address, _ = start(*options)
    trust = ssl.create_default_context(cafile=str(files[0]))
    wait_for(lambda: answers(address, verify=trust) == 200, 60)
    answer = httpx.post(f"{address}/api/login", json={"key": "open sesame"}, verify=trust)
    assert "Secure" in answer.headers["set-cookie"]
    line = Path(f"/proc/{process.pid}/cmdline").read_text() if Path("/proc").exists() else ""
    assert "sesame" not in line
    statuses = []

    def draw():
        with httpx.Client(base_url=address, verify=trust, timeout=60, cookies=answer.cookies) as client:
            statuses.append(client.post("/v1/images/generations", json=LONG))

    thread = threading.Thread(target=draw)
    thread.start()
    drawing = {"headers": {"Authorization": "Bearer open sesame"}, "verify": trust}
    wait_for(lambda: "perfusion_queue_drawing 1.0" in httpx.get(f"{address}/metrics", **drawing).text)
    process.send_signal(signal.SIGTERM)
    thread.join()
    assert statuses[0].status_code == 503 and "Retry-After" in statuses[0].headers
    assert process.wait(60) == 0


def test_a_start_complains_of_no_concept_that_nobody_has_named_yet(start, tmp_path, toy_concept):
    (tmp_path / "library").mkdir()
    toy_concept().save(tmp_path / "library" / "cat.safetensors")
    process, address, log = start("--library", tmp_path / "library")
    assert wait_for(lambda: answers(address) == 200, 60)
    assert httpx.get(f"{address}/api/concepts").json()[0]["word"] == "<cat>"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "warning" not in log.read_text().lower()
