"""Attacks by strange requests: numbers that are none, texts that take for ever, races, disks that are full."""

import contextlib
import json
import socket
import threading
import time

import pytest

from perfusion.concept.notices import foreign_syntax
from perfusion.errors import PerfusionError
from perfusion.serving import library as library_module
from perfusion.serving.bodies import parse_json
from perfusion.serving.history import History
from perfusion.serving.infotext import fields_like, settings_like
from perfusion.serving.rates import Limits
from tests.perfusion.serving import http
from tests.perfusion.serving.conftest import wait_for

DRAWING = ("/api/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/api/sweeps")
HALF = "\\ud800"


def sentence(answer):
    """What an error of any dialect says."""
    body = answer.json()
    text = body["detail"] if "detail" in body else body["error"]["message"]
    assert "Traceback" not in answer.text and text.endswith(".")
    return text


def post(address, text):
    return http.post(address, content=text, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("text", [
    '{"prompt": "a", "foo": NaN}', '{"prompt": "a", "foo": -Infinity}', '{"prompt": "a", "foo": [1e999]}',
    '{"prompt": "a", "seed": ' + "9" * 400 + "}", '{"prompt": "a' + HALF + '"}', '{"prompt": "a", "' + HALF + '": 1}',
    b'{"prompt": "a\xed\xa0\x80"}', '{"prompt": "a"}'.encode("utf-16"), '{"a":' * 100_000,
    '{"prompt": "a", "seed": 1e400}',
    '{"concept_settings": {"<' + HALF + '>": {"bias": 1}}, "prompt": "a"}',
])  # fmt: skip
@pytest.mark.parametrize("path", DRAWING)
def test_json_that_is_none_is_refused_before_anything_is_drawn(server, path, text):
    answer = post(server.address + path, text)
    assert answer.status_code == 400
    assert "no JSON object" in sentence(answer)


def test_json_that_is_some_is_read():
    text = '{"a": [1, -2.5e3, "\\ud83d\\ude00 \\\\ud800", true, null]}'
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("path", DRAWING)
@pytest.mark.parametrize("fields", [
    {"width": -64, "height": 64, "size": "-64x64"}, {"width": 0, "height": 0, "size": "0x0"},
    {"num_inference_steps": -1, "steps": -1}, {"seed": 2**32, "seeds": [2**32]},
    {"num_inference_steps": 10**9, "steps": 10**9},
    {"n": -1, "count": -1, "batch_size": -1, "n_iter": -1, "seeds": []},
    {"width": 10**9, "height": 10**9, "size": "99999x99999"},
])  # fmt: skip
def test_numbers_that_cannot_be_are_400(server, path, fields):
    usual = {
        "prompt": "a <cat>", "concept": "cat", "steps": 1, "width": 32, "height": 32, "size": "32x32", "seed": 1,
        "across": {"setting": "bias", "values": [0.5]},
    }  # fmt: skip
    answer = http.post(server.address + path, json=usual | fields)
    assert answer.status_code == 400 and sentence(answer)


@pytest.mark.parametrize("path", DRAWING)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_text_of_a_megabyte_is_refused(server, path, field):
    fields = {"prompt": "a <cat>", "concept": "cat", field: "a <cat> " + "(" * 1_000_000}
    answer = http.post(server.address + path, json=fields)
    assert answer.status_code == 400 and "expected at most 32000" in sentence(answer)


@pytest.mark.parametrize("text", [
    "[" + ":" * 32_000, "[:" * 16_000, "{" + "|" * 32_000, "__a" * 10_000, "__" + "a" * 32_000, "embedding:" * 3_000,
    "<lyco:" * 5_000, "(" * 32_000, "(a:" * 10_000, "<lora:a:" * 4_000, ":" + " " * 32_000, ":1,1" * 8_000,
])  # fmt: skip
def test_no_prompt_takes_a_time_that_grows_with_its_square(server, text):
    began = time.process_time()
    foreign_syntax(text)
    fields_like(f"a\n{text}")
    assert time.process_time() - began < 1
    began = time.monotonic()
    assert (
        http.post(f"{server.address}/api/jobs", json={"prompt": text, "num_inference_steps": 1}).status_code
        < 500
    )
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "line", [" " * 60_000 + "!", 'a: "' * 20_000, "a:" * 30_000, 'a:"' + "\\" * 60_000, "a " * 30_000]
)
def test_no_infotext_takes_long_either(line):
    began = time.process_time()
    settings_like(f"a cat\n{line}")
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "settings", [{"token": "x"}, {"self": 1}, {"bias": "x"}, {"bias": True}, {"bias": [1]}, {"lock": 1}]
)
def test_settings_that_a_concept_has_not_are_refused(server, settings):
    answer = http.patch(f"{server.address}/api/concepts/cat", json={"settings": settings})
    assert answer.status_code == 400 and sentence(answer)


def test_a_job_fails_where_its_picture_cannot_be_kept_and_holds_nothing(server, monkeypatch):
    def full(*args):
        raise PerfusionError("There is no room on the disk.")

    with monkeypatch.context() as patch:
        patch.setattr(History, "add", full)
        job = http.post(
            f"{server.address}/api/jobs", json={"prompt": "a <cat>", "num_inference_steps": 1, "count": 3}
        )
        address = f"{server.address}/api/jobs/{job.json()['id']}"
        state = wait_for(lambda: (now := http.get(address).json())["state"] in ("failed", "done") and now)
    assert state["state"] == "failed" and "could not be kept" in state["error"]
    listed = {each["id"]: each["state"] for each in http.get(f"{server.address}/api/jobs").json()}
    assert listed[job.json()["id"]] == "failed"
    answer = http.post(f"{server.address}/api/jobs", json={"prompt": "a <cat>", "num_inference_steps": 1})
    assert answer.status_code == 202


def test_a_search_of_thousands_of_words_is_answered(server):
    answer = http.get(f"{server.address}/api/pictures", params={"search": "a " * 5_000})
    assert answer.status_code == 200


def test_a_picture_whose_file_has_gone_is_404(server):
    fields = {"prompt": "a <cat>", "num_inference_steps": 1}
    job = http.post(f"{server.address}/api/jobs", json=fields).json()
    address = f"{server.address}/api/jobs/{job['id']}"
    (picture,) = wait_for(lambda: http.get(address).json()["pictures"])
    (server.folder / "pictures" / f"{picture.rpartition('/')[2]}.png").unlink()
    answer = http.get(server.address + picture)
    assert answer.status_code == 404 and sentence(answer)


def upload(server, concept, name, tmp_path):
    concept.save(tmp_path / "x.safetensors")
    files = {"file": ("x.safetensors", (tmp_path / "x.safetensors").read_bytes())}
    return http.post(f"{server.address}/api/concepts", files=files, data={"name": name})


def test_what_is_uploaded_and_deleted_again_does_not_fill_the_disk(
    server, toy_concept, tmp_path, monkeypatch
):
    monkeypatch.setattr(library_module, "_MOST_DELETED", 3)
    for _ in range(5):
        assert upload(server, toy_concept(), "short-lived", tmp_path).status_code == 201
        undo = http.delete(f"{server.address}/api/concepts/short-lived").json()["undo"]
    assert len(list((server.folder / "concepts" / ".bin").iterdir())) == 3
    assert http.post(f"{server.address}/api/concepts/undo/{undo}").status_code == 200
    http.delete(f"{server.address}/api/concepts/short-lived")
    monkeypatch.setattr(library_module, "_MOST_BYTES", 1000)
    answer = upload(server, toy_concept(), "one-too-many", tmp_path)
    assert answer.status_code == 507 and sentence(answer)


def test_no_upload_replaces_a_file_or_a_link_that_came_meanwhile(server, toy_concept, tmp_path):
    folder = server.folder / "concepts"
    (tmp_path / "secret").write_text("secret")
    (folder / "file.safetensors").write_text("not yet seen")
    (folder / "link.safetensors").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        assert upload(server, toy_concept(), name, tmp_path).status_code == 409
    assert (folder / "file.safetensors").read_text() == "not yet seen" and not (tmp_path / "nowhere").exists()
    (folder / "link.safetensors").unlink()
    (folder / "link.safetensors").symlink_to(tmp_path / "secret")
    http.post(f"{server.address}/sdapi/v1/refresh-loras")
    for path in ("file", "card"):
        answer = http.get(f"{server.address}/api/concepts/link/{path}")
        assert answer.status_code == 409 and "secret" not in answer.text
    for name in ("file", "link"):
        (folder / f"{name}.safetensors").unlink()
    http.post(f"{server.address}/sdapi/v1/refresh-loras")


def raw(server, data, seconds=10):
    """What comes back on a connection until it is closed."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        answer = b""
        # A server may answer and hang up before it has read everything.
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(65536):
                answer += part
    return answer


@pytest.mark.parametrize("lengths", [
    "Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4",
    "Content-Length: 4\r\nContent-Length: 40", "Content-Length: +4", "Content-Length: -1",
    "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity",
])  # fmt: skip
def test_a_second_request_is_not_smuggled_in(server, lengths):
    hidden = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    head = (
        f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{lengths}\r\n\r\n"
    )
    answer = raw(server, f"{head}0\r\n\r\n{hidden}".encode())
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")), answer
    assert answer.count(b"HTTP/1.1 ") == 1 and not answer.endswith(b"ok")


@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 2_000_000,
    b"GET /" + b"a" * 2_000_000,
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 100,
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA\x00: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b\r\n c\r\nB : d\r\n\r\n",
])  # fmt: skip
def test_heads_that_are_none_are_refused_and_the_server_lives(server, data):
    answer = raw(server, data)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")) or not answer
    assert http.get(f"{server.address}/healthz").text == "ok"


def test_keys_are_not_guessed_at_the_sign_in(serve):
    locked = serve(keys=["open sesame"], limits=Limits(rate=1.0))
    statuses = [
        http.post(f"{locked.address}/api/login", json={"key": str(guess)}).status_code for guess in range(40)
    ]
    assert statuses[0] == 401 and statuses[-1] == 429 and statuses.count(401) < 30
    assert (
        http.get(f"{locked.address}/v1/models", headers={"Authorization": "Bearer open sesame"}).status_code
        == 200
    )


def test_a_page_of_another_port_may_not_ask_though_it_is_sent_the_cookie(locked):
    key = locked.parts.access.keys[0]
    cookie = (
        http.post(f"{locked.address}/api/login", json={"key": key}).headers["Set-Cookie"].partition(";")[0]
    )
    assert http.get(f"{locked.address}/api/jobs", headers={"Cookie": cookie}).status_code == 200
    for more in ({"Origin": "http://127.0.0.1:1"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}):
        for method in ("GET", "POST", "DELETE"):
            answer = http.request(method, f"{locked.address}/api/jobs", headers={"Cookie": cookie, **more})
            assert answer.status_code == 403


def test_event_streams_left_open_are_bounded_and_given_back(serve):
    server = serve(limits=Limits(requests=4))
    job = http.post(
        f"{server.address}/api/jobs", json={"prompt": "a <cat>", "num_inference_steps": 1000}
    ).json()
    events = f"{server.address}/api/jobs/{job['id']}/events?previews=no"
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            assert stack.enter_context(http.stream("GET", events)).status_code == 200
        answer = http.get(f"{server.address}/api/jobs")
        assert answer.status_code == 429 and sentence(answer)
    wait_for(lambda: http.delete(f"{server.address}/api/jobs/{job['id']}").status_code == 200)


def test_concepts_come_and_go_while_they_are_drawn(serve, toy_concept, tmp_path):
    server = serve(limits=Limits(rate=1e6, burst=1e6))  # a quick machine would meet the limit of requests
    faults, ends = [], threading.Event()

    def come_and_go(place):
        place.mkdir()
        while not ends.is_set():
            for answer in (
                upload(server, toy_concept(), "moth", place),
                http.delete(f"{server.address}/api/concepts/moth"),
            ):
                faults.extend([answer.text] if answer.status_code not in (200, 201, 404, 409) else [])

    def draw():
        while not ends.is_set():
            answer = http.post(f"{server.address}/v1/images/generations", json={
                "prompt": "a <moth>", "num_inference_steps": 1, "size": "32x32",
                "concepts": {"<moth>": {"strength": 0.5}},
            })  # fmt: skip
            faults.extend([answer.text] if answer.status_code not in (200, 400, 429) else [])

    threads = [threading.Thread(target=come_and_go, args=(tmp_path / name,)) for name in "ab"]
    threads += [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    ends.set()
    for thread in threads:
        thread.join()
    assert not faults
    http.delete(f"{server.address}/api/concepts/moth")


def test_no_key_is_ever_logged(serve, caplog):
    caplog.set_level(0)
    server = serve(keys=["a-very-secret-key"])
    for secret in (
        "Bearer a-very-secret-key",
        "Basic YTphLXZlcnktc2VjcmV0LWtleQ==",
        "Bearer a-very-secret-key-",
    ):
        address = f"{server.address}/api/jobs?key=a-very-secret-key"
        for method in ("GET", "POST"):
            http.request(method, address, headers={"Authorization": secret})
    http.post(f"{server.address}/api/login", json={"key": "a-very-secret-key"})
    records = [record for record in caplog.records if record.name.startswith(("perfusion", "uvicorn"))]
    assert records and not any("a-very-secret-key" in record.getMessage() for record in records)
