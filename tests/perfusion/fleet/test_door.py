"""A door and replicas in this process: what the single server answers, also when replicas die."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from perfusion.errors import BundleError, DeviceError
from perfusion.fleet.door import TRIES, ReplicaDiedError, door_application
from perfusion.fleet.replica import BUNDLE_HEADER, Replica, ReplicaSpec, bundle_hash
from perfusion.runtime import Runtime
from perfusion.serving.access import Access
from perfusion.serving.answers import StatusError
from perfusion.serving.rates import Limits
from tests.conftest import TOY_BUNDLE

DRAWING = {"prompt": "a cat on a beach", "seed": 3, "exact": True, "num_inference_steps": 2}
KEY = {"Authorization": "Bearer open sesame"}


class LocalCrew:
    """Replicas of this process in turn. `dying`: how many calls end with a replica's death, after so many messages."""

    def __init__(self, replicas):
        self.replicas, self.dying, self.after, self.calls, self.error = replicas, 0, 0, 0, None

    async def answer(self, call) -> AsyncIterator[dict]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        count = 0
        async for message in self.replicas[self.calls % len(self.replicas)].answer(call):
            if self.dying and count == self.after:
                self.dying -= 1
                raise ReplicaDiedError
            count += 1
            yield message

    async def answers(self, call):
        return [await replica.whole_answer(call) for replica in self.replicas]


def spec_of(**fields):
    values = {
        "bundle": str(TOY_BUNDLE),
        "bundle_hash": bundle_hash(str(TOY_BUNDLE)),
        "provider": "cpu",
        "threads": 1,
    }
    return ReplicaSpec(**(values | fields))


@pytest.fixture(scope="module")
def replicas():
    access = Access.of("127.0.0.1", ["open sesame"], origins=["http://page.example"])
    replicas = [Replica(spec_of(access=access), name) for name in ("a", "b")]
    yield replicas
    for replica in replicas:
        replica.close()


@pytest.fixture
def crew(replicas):
    return LocalCrew(replicas)


@pytest.fixture
def ask(crew):
    """Asks the door: a method, a path, and httpx's options."""
    access = Access.of("127.0.0.1", ["open sesame"], origins=["http://page.example"])
    door = door_application(crew, access, Limits())

    def ask(method, path, **options):
        async def answered():
            transport = httpx.ASGITransport(door, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **{"headers": KEY, "timeout": 60} | options)

        return asyncio.run(answered())

    return ask


def pixels(answer):
    assert answer.status_code == 200, answer.text
    (entry,) = answer.json()["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))))


@pytest.fixture(scope="module")
def picture():
    with Runtime(TOY_BUNDLE, provider="cpu", threads=1) as runtime:
        return np.asarray(runtime.generate(str(DRAWING["prompt"]), seed=3, num_inference_steps=2))


def test_a_picture_is_the_runtimes_and_its_answer_names_the_bundle(ask, picture):
    answer = ask("POST", "/v1/images/generations", json=DRAWING)
    assert np.array_equal(pixels(answer), picture)
    assert answer.headers[BUNDLE_HEADER.decode()] == bundle_hash(str(TOY_BUNDLE))[:16]


@pytest.mark.parametrize("after", [0, 1])
def test_a_request_whose_replicas_die_is_answered_by_another(ask, crew, picture, after):
    crew.dying, crew.after = TRIES - 1, after
    assert np.array_equal(pixels(ask("POST", "/v1/images/generations", json=DRAWING)), picture)
    assert crew.calls == TRIES


def test_a_request_that_kills_every_replica_is_given_up(ask, crew):
    crew.dying = 100
    answer = ask("POST", "/v1/images/generations", json=DRAWING)
    assert answer.status_code == 503 and answer.headers["retry-after"] and crew.calls == TRIES
    assert "3 replicas died" in answer.json()["error"]["message"]


def test_a_stream_that_has_begun_is_not_begun_again(ask, crew):
    crew.dying, crew.after = 1, 2
    with pytest.raises(ReplicaDiedError):
        stream = DRAWING | {"stream": True, "partial_images": 1}
        asyncio.run(_streamed(crew, stream))
    assert crew.calls == 1


async def _streamed(crew, fields):
    """A request whose answer the application of a door sends; what it raises passes."""
    door = door_application(crew, Access(), Limits())
    transport = httpx.ASGITransport(door, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        await client.post("/v1/images/generations", json=fields, headers=KEY)


def test_busy_replicas_are_429_with_a_time_to_ask_again_in_each_dialect(ask, crew):
    crew.error = StatusError(429, "All replicas are busy.", retry_after=5)
    for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
        answer = ask("POST", path, json=DRAWING)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "5"
        assert "All replicas are busy." in answer.text


def test_a_full_queue_of_a_replica_is_429_too(picture):
    replica = Replica(spec_of(queue=1, batch_size=1))
    crew = LocalCrew([replica])

    async def several():
        transport = httpx.ASGITransport(door_application(crew, Access(), Limits()))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            slow = DRAWING | {"num_inference_steps": 50}
            return await asyncio.gather(*(client.post("/v1/images/generations", json=slow) for _ in range(6)))

    try:
        answers = asyncio.run(several())
    finally:
        replica.close()
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert all(answer.headers.get("retry-after") for answer in answers if answer.status_code == 429)


@pytest.mark.parametrize(
    "method, path",
    [("GET", "/api/jobs"), ("POST", "/api/jobs"), ("DELETE", "/api/jobs/1"), ("GET", "/api/pictures/1"),
     ("GET", "/api/concepts"), ("POST", "/api/concepts"), ("GET", "/api/concepts/cat/file")],
)  # fmt: skip
def test_what_a_fleet_does_not_keep_is_answered_with_a_sentence(ask, method, path):
    answer = ask(method, path)
    assert answer.status_code == 501
    assert "This server" in answer.json()["error"]["message"]


def test_saving_a_picture_is_refused_and_options_are_not_kept(ask):
    answer = ask("POST", "/sdapi/v1/txt2img", json={"prompt": "a cat", "steps": 1, "save_images": True})
    assert answer.status_code == 501
    assert ask("POST", "/sdapi/v1/options", json={"samples_format": "webp"}).status_code == 200
    assert ask("GET", "/sdapi/v1/options").json()["samples_format"] == "png"
    assert ask("POST", "/sdapi/v1/options", json={"sd_model_checkpoint": "another"}).status_code == 400


def test_progress_and_interrupt_reach_the_replica_that_draws(replicas, crew):
    """The client asks again, and which replica answers is chance."""
    door = door_application(crew, Access.of("127.0.0.1", ["open sesame"]), Limits())

    async def drawn():
        transport = httpx.ASGITransport(door)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", headers=KEY, timeout=60
        ) as client:
            fields = {"prompt": "a cat", "steps": 150, "width": 32, "height": 32}
            drawing = asyncio.create_task(client.post("/sdapi/v1/txt2img", json=fields))
            for _ in range(2000):
                progress = (await client.get("/sdapi/v1/progress?skip_current_image=true")).json()
                if progress["state"]["sampling_step"] or drawing.done():
                    break
                await asyncio.sleep(0.005)
            assert (await client.post("/sdapi/v1/interrupt")).status_code == 200
            return progress, await drawing

    progress, answer = asyncio.run(drawn())
    assert progress["state"]["job_count"] == 1 and progress["state"]["sampling_step"] > 0
    assert answer.status_code == 200
    idle = asyncio.run(replicas[0].whole_answer(_call("/sdapi/v1/progress")))
    assert json.loads(idle.body)["state"]["job_count"] == 0


def _call(path):
    from perfusion.fleet.door import Call

    headers = [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer open sesame")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    return Call(scope=scope, body=b"")


def test_counters_are_those_of_every_replica(ask):
    ask("POST", "/v1/images/generations", json=DRAWING)
    text = ask("GET", "/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {sample.labels["replica"] for sample in families["perfusion_queue_waiting"].samples} == {"a", "b"}
    drawn = [
        sample.value for sample in families["perfusion_pictures"].samples if sample.name.endswith("_total")
    ]
    assert sum(drawn) >= 1


def test_the_door_keeps_out_who_has_no_key_before_a_replica_is_asked(ask, crew):
    assert ask("GET", "/v1/models", headers={}).status_code == 401
    assert ask("GET", "/v1/models", headers=KEY | {"Host": "evil.example"}).status_code == 403
    assert ask("GET", "/healthz", headers={}).status_code == 200
    assert crew.calls == 0
    answer = ask("OPTIONS", "/v1/models", headers={
        "Origin": "http://page.example", "Access-Control-Request-Method": "GET"})  # fmt: skip
    assert answer.headers["access-control-allow-origin"] == "http://page.example"
    assert ask("GET", "/readyz", headers={}).text == "ok" and crew.calls == 1


def test_a_client_that_goes_away_ends_its_pictures(replicas):
    call = _call("/v1/images/generations")
    call.scope["method"] = "POST"
    body = json.dumps(DRAWING | {"num_inference_steps": 1000}).encode()

    async def left():
        messages = replicas[0].answer(replace(call, body=body))
        asking = asyncio.ensure_future(anext(messages))
        queue = replicas[0]._service.desk.runtime.queue
        while not queue.drawing:
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.wait([asking])
        while queue.drawing:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(left(), 20))


def test_a_replica_that_fails_again_and_again_is_ill_and_requests_that_fail_are_not(monkeypatch):
    replica = Replica(spec_of())
    call = replace(
        _call("/v1/images/generations"), body=json.dumps(DRAWING | {"concepts": {"<x>": {}}}).encode()
    )
    call.scope["method"] = "POST"
    try:
        for _ in range(3):
            asyncio.run(replica.whole_answer(call))
        replica.check_health()

        def broken(*_: object) -> None:
            raise RuntimeError("the card has fallen off the bus")

        runtime = replica._service.desk.runtime
        monkeypatch.setattr(runtime._parts.graphs, "run", broken)
        call = replace(call, body=json.dumps(DRAWING).encode())
        for _ in range(3):
            replica.check_health()
            assert asyncio.run(replica.whole_answer(call)).status == 500
        with pytest.raises(DeviceError, match="3 pictures in a row failed"):
            replica.check_health()
    finally:
        replica.close()


def test_a_replica_refuses_files_that_were_changed_under_the_fleet(bundle_copy):
    spec = spec_of(bundle=str(bundle_copy), bundle_hash="0" * 64)
    with pytest.raises(BundleError, match="not the bundle that the fleet was started with"):
        Replica(spec)
