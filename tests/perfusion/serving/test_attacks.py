"""One attack for each point of the server's defence."""

import base64
import functools
import io
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from perfusion.concept import card
from perfusion.serving.access import Access
from perfusion.serving.bodies import MOST_PIXELS
from perfusion.serving.patient_protocol import PatientProtocol
from perfusion.serving.rates import Limits, Rates
from tests.perfusion.serving import http
from tests.perfusion.serving.conftest import wait_for

STEPS = {"num_inference_steps": 1}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, rows=b""):
    """A PNG of a few bytes that says it is as large as one likes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text(data):
    return base64.b64encode(data).decode()


PLACES = {
    "jobs": lambda data: ("/api/jobs", {"json": {"prompt": "a", "image": text(data)}}),
    "inspect": lambda data: ("/api/inspect", {"files": {"file": data}}),
    "concepts": lambda data: ("/api/concepts", {"files": {"file": ("x.png", data)}}),
    "edits": lambda data: ("/v1/images/edits", {"files": {"image": data}, "data": {"prompt": "a"}}),
    "img2img": lambda data: ("/sdapi/v1/img2img", {"json": {"init_images": [text(data)]}}),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_bomb_of_pixels_is_refused_before_it_is_decoded(server, place, toy_concept):
    bomb = png(60_000, 60_000)
    if place == "concepts":
        data = toy_concept().to_bytes()
        bomb = png(60_000, 60_000, chunk(b"pfCo", data))
        assert card.extract(bomb) == data
    path, body = PLACES[place](bomb)
    answer = http.post(server.address + path, **body)
    if place == "inspect":  # reads no pixels
        assert answer.status_code in (200, 400)
        return
    assert answer.status_code == 413 and "million pixels" in answer.text


def test_a_picture_just_above_the_limit_is_refused(server):
    side = int(MOST_PIXELS**0.5) + 1
    answer = http.post(f"{server.address}/api/jobs", json={"prompt": "a", "image": text(png(side, side))})
    assert answer.status_code == 413


@pytest.mark.parametrize("place", PLACES)
def test_a_text_that_inflates_to_gigabytes_is_not_inflated(server, place):
    packed = packed_zeros()
    for kind in (b"zTXt", b"iTXt"):
        inner = b"parameters\0\0" if kind == b"zTXt" else b"parameters\0\1\0\0\0"
        data = png(1, 1, chunk(kind, inner + packed), rows=b"\0\0")
        path, body = PLACES[place](data)
        before = peak_memory()
        answer = http.post(server.address + path, **body)
        assert answer.status_code in (200, 202, 400)
        assert peak_memory() - before < 100 << 20


@functools.cache
def packed_zeros():
    """200 MB of zeros in 200 kB."""
    bomb = zlib.compressobj(1)
    return b"".join(bomb.compress(bytes(1 << 20)) for _ in range(200)) + bomb.flush()


def peak_memory():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("head", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
def test_a_large_body_is_refused_whether_it_says_so_or_not(serve, head):
    address = serve(limits=Limits(body_bytes=10_000)).address
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))) as connection:
        connection.settimeout(20)
        connection.sendall(b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head + b"\r\n\r\n")
        if head.startswith(b"Transfer"):
            connection.sendall((b"3e8\r\n" + b"x" * 1000 + b"\r\n") * 11)
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


NAMES = [
    "../../evil",
    "..%2f..%2fevil",
    "/etc/passwd",
    "a/b",
    ".hidden",
    "a\0b",
    "C:evil",
    "",
    "a" * 80,
    "..",
    "x\u0301y",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_never_becomes_a_path(server, toy_concept, name):
    files = {"file": ("file.safetensors", toy_concept().to_bytes())}
    answer = http.post(f"{server.address}/api/concepts", files=files, data={"name": name})
    if name == "":  # none: the file's own name is taken
        http.delete(f"{server.address}/api/concepts/file")
        return
    assert answer.status_code == 400, answer.text
    answer = http.patch(f"{server.address}/api/concepts/cat", json={"name": name})
    assert answer.status_code == 400
    names = {path.name for path in server.folder.rglob("*") if path.is_file()}
    assert not [each for each in names if "evil" in each]


@pytest.mark.parametrize("path", ["/studio/../access.py", "/studio/%2e%2e/access.py", "/api/pictures/..%2f..%2fkey",
                                  "/api/concepts/undo/..", "/v1/models/../../x"])  # fmt: skip
def test_no_path_leads_out(server, path):
    port = int(server.address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 404 " in answer.split(b"\r\n")[0] or b" 405 " in answer.split(b"\r\n")[0]
    assert b"import" not in answer


def test_nothing_is_fetched_for_a_client(server):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        bodies = {
            "/api/jobs": {"prompt": "a", "image": url}, "/sdapi/v1/img2img": {"init_images": [url]},
            "/v1/images/edits": {"prompt": "a", "images": [{"image_url": url}]},
            "/v1/images/generations": {"prompt": "a", "model": url} | STEPS,
            "/sdapi/v1/options": {"sd_model_checkpoint": url}, "/sdapi/v1/png-info": {"image": url},
        }  # fmt: skip
        for path, body in bodies.items():
            status = http.post(server.address + path, json=body).status_code
            assert status == (200 if "generations" in path else 400), path
        with pytest.raises(TimeoutError):
            trap.accept()


OPEN = [
    "/",
    "/healthz",
    "/metrics",
    "/api/concepts",
    "/v1/models",
    "/sdapi/v1/options",
    "/no",
    "/api/concepts/cat/card",
]
HEADERS = ("x-content-type-options", "content-security-policy", "x-frame-options", "referrer-policy")


@pytest.mark.parametrize("path", OPEN)
def test_every_answer_has_the_headers(server, locked, path):
    for address in (server.address, locked.address):
        headers = http.get(address + path).headers
        assert all(name in headers for name in HEADERS)
        policy = headers["content-security-policy"]
        assert (
            "frame-ancestors 'none'" in policy and "unsafe" not in policy and "default-src 'none'" in policy
        )


def test_an_upload_comes_back_as_a_file_to_keep_or_as_a_picture_made_anew(server, toy_concept):
    note = chunk(b"tEXt", b"Comment\0<script>alert(1)</script>")
    drawing = io.BytesIO()
    Image.new("RGB", (40, 30), "blue").save(drawing, "PNG")
    data = card.embed(Image.open(drawing), toy_concept().to_bytes())
    data = data[:33] + note + data[33:]
    answer = http.post(f"{server.address}/api/concepts", files={"file": ("page.png", data)})
    assert answer.status_code == 201
    for path, kind in (("file", "application/octet-stream"), ("card", "image/png"), ("picture", "image/png")):
        answer = http.get(f"{server.address}/api/concepts/page/{path}")
        assert (
            answer.headers["content-type"] == kind and answer.headers["x-content-type-options"] == "nosniff"
        )
        assert b"<script>" not in answer.content
    http.delete(f"{server.address}/api/concepts/page")


ORIGINS = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},  # another port of this machine is another site
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    {"Host": "evil.example"},
    {"Host": ""},
]


@pytest.mark.parametrize("headers", ORIGINS, ids=str)
def test_pages_of_other_sites_and_foreign_names_are_refused(server, headers):
    for method, path in (("POST", "/api/jobs"), ("GET", "/api/pictures"), ("POST", "/sdapi/v1/interrupt")):
        answer = http.request(method, server.address + path, headers=headers)
        assert answer.status_code in (400, 403), path


def test_pages_that_were_let_in_are_answered_and_no_others(serve):
    access = Access.of("127.0.0.1", [], [], ["http://localhost:3000"])
    address = serve(access=access).address
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    allowed = http.options(f"{address}/api/jobs", headers={"Origin": "http://localhost:3000"} | ask)
    assert (
        allowed.status_code == 200
        and allowed.headers["access-control-allow-origin"] == "http://localhost:3000"
    )
    refused = http.options(f"{address}/api/jobs", headers={"Origin": "http://evil.example"} | ask)
    assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
    assert http.get(f"{address}/api/jobs", headers={"Origin": "http://localhost:3000"}).status_code == 200
    assert http.get(f"{address}/api/jobs", headers={"Origin": "http://evil.example"}).status_code == 403


def test_a_cookie_of_another_key_or_time_opens_nothing(locked, monkeypatch):
    key = locked.parts.access.keys[0]
    cookie = locked.parts.access.cookie(key)
    owner, ends, mark = cookie.split(".")
    forged = [
        f"{owner}.{int(ends) + 1}.{mark}", f"{owner}.{ends}.", "", "..", f"x.{ends}.{mark}",
        Access.of("127.0.0.1", ["another server's"]).cookie("another server's"),
    ]  # fmt: skip
    monkeypatch.setattr(time, "time", lambda: float(ends) + 1 - 40 * 24 * 3600)
    forged.append(cookie.replace(ends, str(int(ends) - 1)))
    monkeypatch.undo()
    for wrong in forged:
        answer = http.get(f"{locked.address}/api/jobs", headers={"Cookie": f"perfusion={wrong}"})
        assert answer.status_code == 401, wrong
    answer = http.get(f"{locked.address}/api/jobs", headers={"Cookie": f"perfusion={cookie}"})
    assert answer.status_code == 200
    monkeypatch.setattr(time, "time", lambda: float(ends) + 1)
    answer = http.get(f"{locked.address}/api/jobs", headers={"Cookie": f"perfusion={cookie}"})
    assert answer.status_code == 401


def test_one_client_sees_and_stops_nothing_of_another(locked):
    mine, other = (http.client(base_url=locked.address, auth=("", key)) for key in locked.parts.access.keys)
    with mine, other:
        job = mine.post("/api/jobs", json={"prompt": "a", "num_inference_steps": 1000}).json()
        short = mine.post("/api/jobs", json={"prompt": "a"} | STEPS).json()
        picture = wait_for(lambda: mine.get(f"/api/jobs/{short['id']}").json()["pictures"])[0]
        for method, path in (("GET", f"/api/jobs/{job['id']}"), ("DELETE", f"/api/jobs/{job['id']}"), ("GET", picture),
                             ("GET", f"/api/jobs/{job['id']}/events"), ("DELETE", picture)):  # fmt: skip
            assert other.request(method, path).status_code == 404
        assert other.get("/api/pictures").json() == [] and other.get("/api/jobs").json() == []
        other.post("/sdapi/v1/interrupt")
        mine.post("/sdapi/v1/interrupt")  # of the other dialect: a chat's interrupt stops no job of the page
        assert mine.get(f"/api/jobs/{job['id']}").json()["state"] in ("waiting", "drawing")
        mine.delete(f"/api/jobs/{job['id']}")


def test_what_a_proxy_is_said_to_have_seen_is_not_believed(serve):
    limited = serve(client_queue=1).address
    headers = [
        {"X-Forwarded-For": f"10.0.0.{number}", "Forwarded": f"for=10.0.0.{number}"} for number in range(2)
    ]
    bodies = {"prompt": "a", "num_inference_steps": 1000}
    first = http.post(f"{limited}/api/jobs", json=bodies, headers=headers[0])
    assert first.status_code == 202
    assert http.post(f"{limited}/api/jobs", json=bodies, headers=headers[1]).status_code == 429
    http.delete(f"{limited}/api/jobs/{first.json()['id']}")


def test_too_many_requests_are_429_and_wrong_keys_cost_more(serve):
    limits = Limits(rate=0.01, burst=20)
    address = serve(limits=limits, keys=["key"]).address
    right = {"Authorization": "Bearer key"}
    statuses = [http.get(f"{address}/v1/models", headers=right).status_code for _ in range(25)]
    assert statuses[0] == 200 and statuses[-1] == 429
    answer = http.get(f"{address}/v1/models", headers=right)
    assert int(answer.headers["Retry-After"]) > 0 and answer.json()["error"]["type"] == "rate_limit_error"
    statuses = [
        http.get(f"{address}/v1/models", headers={"Authorization": "Bearer no"}).status_code for _ in range(3)
    ]
    assert statuses == [401, 429, 429]


def test_buckets_fill_with_time_and_are_not_for_ever():
    rates = Rates(Limits(rate=1000.0, burst=2, requests=2))
    assert rates.enter("a") and rates.enter("a") and not rates.enter("a")
    rates.leave("a")
    time.sleep(0.01)
    assert rates.enter("a")
    for number in range(20_000):
        rates.charge(str(number), 1)
    assert len(rates._tokens) <= 10_000


def test_a_client_that_drips_its_head_is_let_go(server, monkeypatch):
    monkeypatch.setattr(PatientProtocol, "head_seconds", 0.3)
    port = int(server.address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0")
        assert connection.recv(100) == b""


def test_a_client_that_drips_its_body_is_let_go(serve):
    address = serve(limits=Limits(body_seconds=0.3)).address
    port = int(address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]


def test_clients_that_read_nothing_hold_nothing(server):
    port = int(server.address.rsplit(":", 1)[1])
    job = http.post(f"{server.address}/api/jobs", json={"prompt": "a", "num_inference_steps": 1000}).json()
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
    for connection in connections:
        connection.sendall(f"GET /api/jobs/{job['id']}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert http.get(f"{server.address}/healthz").status_code == 200
    for connection in connections:
        connection.close()
    http.delete(f"{server.address}/api/jobs/{job['id']}")
    wait_for(lambda: not server.runtime.queue.drawing)


def test_eighty_requests_at_once_are_all_answered(server):
    def ask(number):
        body = {"prompt": "a <cat>", "n": 1, "seed": number} | STEPS
        return http.post(f"{server.address}/v1/images/generations", json=body).status_code

    with ThreadPoolExecutor(80) as threads:
        statuses = list(threads.map(ask, range(80)))
    assert set(statuses) <= {200, 429} and statuses.count(200) >= 30


RUBBISH = np.random.default_rng(0).bytes(300)


@pytest.mark.parametrize(
    "path",
    [
        "/api/jobs",
        "/api/concepts",
        "/api/inspect",
        "/api/login",
        "/v1/images/generations",
        "/v1/images/edits",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
        "/sdapi/v1/png-info",
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_rubbish_is_an_object_of_its_dialect_and_no_traceback(server, path, kind):
    for body in (
        RUBBISH,
        b"",
        b"--x\r\n\r\n" + RUBBISH,
        b'{"prompt": {"a": [1]}}',
        b'{"image": 3, "width": 7}',
    ):
        answer = http.post(server.address + path, content=body, headers={"Content-Type": kind})
        assert 400 <= answer.status_code < 500 or (path == "/api/login" and answer.status_code == 200)
        error = answer.json()
        assert "Traceback" not in answer.text
        if path.startswith("/sdapi"):
            assert answer.status_code == 200 or set(error) == {"error", "detail", "body", "errors"}


def test_an_error_of_our_own_tells_nothing_of_the_machine(server, monkeypatch):
    monkeypatch.setattr(type(server.runtime), "submit", lambda *_, **__: 1 / 0)
    for path in ("/api/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"):
        answer = http.post(server.address + path, json={"prompt": "a"})
        assert answer.status_code == 500 and "its log says more" in answer.text
        assert "division" not in answer.text and "File" not in answer.text


def test_the_history_is_closed_to_other_users_of_the_machine(server):
    assert (server.folder / "pictures").stat().st_mode & 0o077 == 0


def test_threads_do_not_pile_up(server):
    before = threading.active_count()
    for _ in range(20):
        http.get(f"{server.address}/api/pictures")
    assert threading.active_count() <= before + 8
